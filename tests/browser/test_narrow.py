"""Pages where there is little room, and of a run that measures little: nothing overlaps, is cut or lies empty."""

from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import Batch
from moe_core.runs.begin import create_record
from tests.browser.conftest import Server
from tests.browser.test_more_pages import drawn
from tests.browser.test_pages import Tab
from tests.export.made import make_run
from tests.figures.many_layers import described
from tests.figures.record import record
from tests.test_foreign import write

pytestmark = pytest.mark.browser
# Pairs of texts in the tiles that lie over each other, numbers or units that leave the window, and titles of charts that are cut.
CLASHES = """() => {
  const seen = [...document.querySelectorAll('.moescope-tile :is(.moescope-label, .moescope-number, .moescope-word, .moescope-line)')]
    .filter(one => one.textContent.trim()).map(one => {
      const text = document.createRange();
      text.selectNodeContents(one);
      return [one.textContent, text.getBoundingClientRect(), one.getBoundingClientRect().right];
    });
  const lower = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 9;
  const beside = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2;
  return seen.flatMap(([name, box], at) => [
    ...(box.right > innerWidth ? [`${name} leaves the window`] : []),
    ...seen.slice(at + 1).filter(([, other]) => lower(box, other) && beside(box, other)).map(([other]) => `${name} over ${other}`),
  ]).concat([...document.querySelectorAll('.moescope-chart .gtitle')].filter(one =>
    one.getBoundingClientRect().right > one.closest('.moescope-chart').getBoundingClientRect().right + 1
  ).map(one => `${one.textContent} is cut`));
}"""


def box_of(page: Page, selector: str) -> dict[str, float]:
    box = page.locator(selector).bounding_box()
    assert box, selector
    return dict(box)


@pytest.mark.parametrize("width", [390, 820])
def test_no_number_lies_over_another_on_a_narrow_page(server: Server, tab: Tab, width: int) -> None:
    record(server.runs / "a")
    record(server.runs / "b")
    page = tab(f"{server.url}/?run=a", width)
    for path, figure in (
        ("/", "balance"),
        ("/routing", "churn"),
        ("/experts", "expert_rank"),
        ("/batch", "batch_formula"),
    ):
        page.goto(f"{server.url}{path}?run=a")
        drawn(page, figure)
        assert page.evaluate(CLASHES) == [], path
    page.goto(f"{server.url}/compare?run=a&with=b")
    drawn(page, "compare_loss")
    assert page.evaluate(CLASHES) == []


def test_a_page_of_one_chart_is_filled_by_it(server: Server, tab: Tab) -> None:
    write(server.runs / "other").finish("finished")
    page = tab(f"{server.url}/routing?run=other")
    drawn(page, "confidence")
    expect(page.locator(".moescope-tiles")).to_be_hidden()
    expect(page.locator("[data-figure]")).to_have_count(1)
    grid, chart = box_of(page, ".moescope-grid"), box_of(page, "[data-figure=confidence]")
    assert chart["width"] == pytest.approx(grid["width"], abs=1)
    assert chart["height"] > grid["height"] - 30


def test_a_run_that_measures_selections_alone_leaves_no_row_of_live_empty(server: Server, tab: Tab) -> None:
    measures = ("loss", "task_loss", "counts")
    writer = create_record(server.runs / "counts", replace(described([8] * 6), measures=measures))
    writer.commit(Batch(1, np.ones((60, 2 + 6 * 8), np.float32), state="training"))
    writer.finish("finished")
    page = tab(f"{server.url}/?run=counts")
    drawn(page, "layers", "selection_share", "loss")
    grid = box_of(page, ".moescope-grid")
    for figure in ("selection_share", "loss"):
        chart = box_of(page, f"[data-figure={figure}]")
        assert chart["y"] + chart["height"] > grid["y"] + grid["height"] - 30, figure


@pytest.mark.parametrize("width", [390, 700, 820, 1280])
def test_the_numbers_of_all_lessons_find_room(server: Server, tab: Tab, width: int) -> None:
    page = tab(f"{server.url}/learn", width)
    row = page.get_by_role("radiogroup", name="Lesson")
    expect(row.get_by_role("radio")).to_have_count(8)
    assert row.evaluate("row => row.scrollWidth - row.clientWidth") <= 0


def test_a_lesson_beside_an_open_panel_has_its_formula_and_its_buttons_whole(server: Server, tab: Tab) -> None:
    page = tab(f"{server.url}/learn?lesson=7", 820, 1100)  # the widest formula
    page.get_by_test_id("stExpandSidebarButton").click()
    page.wait_for_function("() => document.querySelector('.moe-lesson').getBoundingClientRect().left > 280")
    parts = page.locator("[data-testid=stMain] :is(button, button *, .katex-display)")
    cut = "parts => parts.filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth).map(one => one.textContent)"
    expect(page.locator(".katex-display")).to_be_visible()
    assert page.evaluate("() => document.fonts.ready.then(() => true)")
    assert parts.evaluate_all(cut) == []
    text, charts = (box_of(page, name) for name in (".moe-lesson", ".moe-invite"))
    assert text["width"] > 400
    assert charts["y"] > text["y"] + text["height"]
    page.get_by_test_id("stSidebarCollapseButton").locator("button").click()
    page.wait_for_function("() => document.querySelector('.moe-lesson').getBoundingClientRect().left < 100")
    page.wait_for_function(
        "() => document.querySelector('.moe-invite').getBoundingClientRect().left > document.querySelector('.moe-lesson').getBoundingClientRect().right"
    )
    assert parts.evaluate_all(cut) == []


def test_export_beside_an_open_panel_has_its_words_whole_and_its_preview_below(server: Server, tab: Tab) -> None:
    make_run(server.runs, "plane", name="a").close()
    page = tab(f"{server.url}/export?run=a&figures=balance,loss,balance_now", 820, 1100)
    picture = page.locator("[data-testid=stMain] img[alt]")
    expect(picture).to_be_visible()
    theme = page.locator("[data-testid=stSelectbox]").filter(has_text="Theme")
    cut = "box => [...box.querySelectorAll('*')].some(one => one.clientWidth && one.scrollWidth > one.clientWidth + 1)"
    assert not theme.evaluate(cut)
    chosen = page.locator("[data-testid=stMultiSelect]").first
    assert not chosen.get_by_test_id("stMultiSelectTagsContainer").evaluate(
        "tags => tags.scrollWidth > tags.clientWidth + 1 || tags.scrollHeight > tags.parentElement.clientHeight + 1"
    )
    choices = theme.bounding_box()
    assert choices
    assert box_of(page, "[data-testid=stMain] img[alt]")["x"] > choices["x"] + choices["width"]
    page.get_by_test_id("stExpandSidebarButton").click()
    below = "() => document.querySelector('[data-testid=stMain] img[alt]').getBoundingClientRect().top > document.querySelector('.st-key-bare').getBoundingClientRect().bottom"
    page.wait_for_function(below)
    assert not theme.evaluate(cut)


@pytest.mark.parametrize(("width", "beside"), [(1280, True), (1920, False)])
def test_a_printed_page_fills_its_sheet(server: Server, tab: Tab, width: int, beside: bool) -> None:
    """As on the screen, smaller; of a window so wide that letters would be too small, below each other. A strip stays below its chart."""
    run = make_run(server.runs, "text")
    name = run.id
    assert run.knob_changes()
    run.close()
    page = tab(f"{server.url}/?run={name}", width)
    drawn(page, "selection_share", "balance_now", "balance", "loss", "knobs")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 with our margins
    left, right = (box_of(page, f"[data-figure={figure}]") for figure in ("selection_share", "balance_now"))
    assert (abs(left["y"] - right["y"]) < 2) is beside
    ends = [box["x"] + box["width"] for box in (left, right)]
    assert 0.95 * 703 < max(ends) <= 703
    assert right["width"] > 0.3 * 703
    strip, balance = (box_of(page, f"[data-figure={figure}]") for figure in ("knobs", "balance"))
    assert (strip["x"], strip["width"]) == pytest.approx((balance["x"], balance["width"]), abs=1)


def test_a_folded_panel_s_state_stands_above_every_page_and_a_long_name_keeps_its_end(server: Server, tab: Tab) -> None:
    names = [f"text-experts-16-noise-1.00-weights-0.10-seed-{seed}" for seed in (1, 2)]
    for name in names:
        make_run(server.runs, "plane", name=name, steps=20).close()
    page = tab(f"{server.url}/runs?run={names[1]}", 800, 700)
    where = page.locator(".moescope-where:visible")
    expect(where).to_have_text("Finished, step 20")
    expect(page.locator(".moeruns-page .moeruns-name").first).to_have_text(names[1])
    ends = page.locator(".moeruns-page .moeruns-name .moeruns-cut span:last-child").evaluate_all(
        "spans => spans.map(span => [span.textContent, span.scrollWidth <= span.clientWidth])"
    )
    assert sorted(ends) == [["0-seed-1", True], ["0-seed-2", True]]
    page.set_viewport_size({"width": 390, "height": 800})
    expect(where).to_have_text("Finished, step 20")
    assert where.locator(".moescope-dot").evaluate("dot => getComputedStyle(dot).backgroundColor") != "rgba(0, 0, 0, 0)"
    page.emulate_media(media="print")
    for hidden in (".moescope-where", ".moeruns-bar", ".moeruns-box"):
        expect(page.locator(hidden).last).to_be_hidden()
    page.set_viewport_size({"width": 703, "height": 900})  # A4 with our margins
    assert page.locator(".moeruns-page table").evaluate("table => table.getBoundingClientRect().right <= innerWidth")
    margin = "() => [...document.styleSheets].some(sheet => /@page\\s*{\\s*margin: 12mm/.test([...sheet.cssRules].map(rule => rule.cssText).join()))"
    assert page.evaluate(margin)
    page.emulate_media(media="screen")
    page.goto(f"{server.url}/learn")
    expect(where).to_have_text("No run")
    where.click()
    expect(page.locator(".moepanel-name")).to_be_in_viewport()
