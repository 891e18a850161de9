"""A replay opened from the disk plays in a real browser; the Export page downloads what it shows."""

from dataclasses import replace

import pytest
from PIL import Image

from moe_core.export.fonts import face, width_of
from moe_core.export.marks import Run, Sheet, Text
from moe_core.export.replay import replay
from moe_core.export.svg import to_svg
from moe_core.export.web import typefaces
from tests.export.made import make_run

pytestmark = pytest.mark.browser
DRAWN = "step => document.body.dataset.step === String(step)"


def stat(page, name):
    return page.locator(f"[data-stat={name}]").inner_text()


@pytest.mark.parametrize(
    ("task", "theme", "experts"), [("text", "light", 8), ("digits", "dark", 24), ("plane", "light", 8)]
)
def test_a_replay_plays_from_the_disk(tab, tmp_path, task, theme, experts):
    run = make_run(tmp_path, task, steps=300, experts=experts)
    run.started_knobs = replace(run.started_knobs, capacity_factor=1.0)  # which looks ahead, where there is an order
    page = tab(f"file://{replay(run, tmp_path / 'replay.html')}", theme=theme)
    page.wait_for_function(DRAWN, arg=300)
    page.keyboard.press("Home")
    page.wait_for_function(DRAWN, arg=1)
    page.keyboard.press("ArrowRight")
    page.wait_for_function(DRAWN, arg=2)
    # What stands on the page is what was recorded at that step.
    assert stat(page, "cv_load") == f"{run.history('cv_load', 0, 2, 2)[1][0]:.2f}"
    assert stat(page, "dead_experts") == f"{run.history('dead_experts', 0, 2, 2)[1][0]:.0f}"
    assert page.locator("[data-knob=noise] td").last.inner_text() == "1"
    shown = page.evaluate("document.querySelector('[data-figure=balance]').data[1].x.length")
    assert shown == 2
    if experts <= 20:
        bars = page.evaluate("document.querySelector('[data-figure=balance_now]').data[0].y")
        load = run.history("load", 0, 2, 2)[1][0]
        assert bars == pytest.approx(100 * load / load.sum(), abs=0.01)
    page.get_by_role("slider", name="step").fill("200")
    page.wait_for_function(DRAWN, arg=201)
    assert page.locator("[data-knob=noise] td").last.inner_text() == "0.5"
    done = [e for e in run.evals() if e.step <= 201]
    assert done
    words = "not comparable: looks ahead" if task == "text" else f"at step {done[-1].step}"
    assert page.locator(".tile", has=page.locator("[data-stat=heldout]")).locator(".line").inner_text() == words
    loss = page.evaluate("document.querySelector('[data-figure=loss]').data.map(line => [line.name, line.x.length])")
    names = ["held-out", "held-out, looks ahead"] if task == "text" else ["held-out"]
    assert loss[1:] == [[name, len(done)] for name in names]
    lines = "Plotly => document.querySelector('[data-figure=balance]').layout.shapes.filter(s => s.x0 === 151).length"
    assert page.evaluate(lines) >= 1
    page.get_by_label("speed").select_option("0.25")  # or a slow machine comes too late to pause it
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(document.body.dataset.step) > 205")
    page.get_by_role("button", name="Pause").click()
    stands = page.evaluate("state.at")
    page.wait_for_timeout(300)
    assert page.evaluate("state.at") == stands
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("performance.getEntriesByType('resource').filter(r => /^https?:/.test(r.name)).length") == 0


def test_the_export_page_gives_the_file_that_it_shows(server, tab, tmp_path):
    make_run(server.runs, "text").close()
    page = tab(f"{server.url}/export?run=text&figures=loss")
    page.get_by_text("Loss: 312 × 192 px, 624 × 384 pixels").wait_for(timeout=60_000)
    shown = page.locator("img[alt=Loss]")
    assert shown.evaluate("i => [i.clientWidth, i.naturalWidth, i.naturalHeight]") == [312, 624, 384]
    with page.expect_download() as caught:
        page.get_by_role("button", name="Export", exact=True).click()
    caught.value.save_as(tmp_path / "got.png")
    with Image.open(tmp_path / "got.png") as got:
        assert (got.size, got.text["Run"]) == ((624, 384), "text")
    page.get_by_role("button", name="Make replay").click()
    with page.expect_download(timeout=60_000) as caught:
        page.get_by_role("button", name="Download").click(timeout=60_000)
    assert caught.value.suggested_filename == "text-replay.html"


LABELS = (
    "Who owns which region", "To what it was, Te. P. AV Wa", "CV(load) was 0.12 at step 1,040", "w_importance 0 → 0.1",
    "Tokens per expert: k·T·D/E", "expert 11, 7.5 % of the load", "Favourite bytes of expert 3", "Yes, Ta. L’A “Vo” fi",
)  # fmt: skip


def test_words_are_as_wide_as_in_a_browser(tab):
    """Within a pixel, kerning and all: what is set out by us stands where the page has it."""
    page = tab("about:blank")
    page.set_content(f"<style>{typefaces()}</style><body></body>")
    measure = """([text, weight, size]) => document.fonts.load(`${weight} ${size}px "Source Sans"`).then(() => {
      const span = document.createElement("span");
      Object.assign(span.style, { font: `${weight} ${size}px "Source Sans"`, whiteSpace: "pre", fontVariantLigatures: "none" });
      span.textContent = text;
      document.body.append(span);
      return span.getBoundingClientRect().width;
    })"""
    kerned = 0.0
    for text in LABELS:
        for weight, size in ((400, 13), (600, 16), (700, 40)):
            ours = width_of((Run(text, (0, 0, 0, 1.0), size, weight, False),))
            assert ours == pytest.approx(page.evaluate(measure, [text, weight, size]), abs=0.5), (text, weight)
            kerned += sum(size * face(False, weight).advance(letter) for letter in text) - ours
    assert kerned > 20  # px: there was something to kern


def test_an_svg_is_as_wide_in_a_browser_as_in_its_png(tab, tmp_path):
    """The fonts that an SVG carries know their kerning too."""
    run = Run("To AV, Wa. P. Te", (0, 0, 0, 1.0), 40, 600, False)
    page = tab("about:blank")
    page.set_content(to_svg(Sheet(600, 100, (Text((run,), 0, 60),))))
    page.evaluate("document.fonts.ready")
    assert page.evaluate("document.querySelector('text').getComputedTextLength()") == pytest.approx(
        width_of((run,)), abs=0.5
    )
