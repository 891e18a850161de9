"""The states of a run as a person sees them: no run, starting, training, paused, a past step, lost touch, stopped, failed."""

import os
import re
import signal
from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import Batch, create_run, list_runs, open_run
from moe_core.schema import Config, Knobs, layout
from tests.browser.conftest import Server, until
from tests.browser.test_pages import wait_for_step

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
LIVE = ("selection_share", "balance_now", "balance", "loss")

# What a page showed, moment by moment: a state may pass faster than a test can look.
WATCH = """
window.seen = [];
setInterval(() => {
  const charts = [...document.querySelectorAll('[data-figure]')].filter(chart => chart.layout && !chart.parentElement.hidden);
  window.seen.push({
    word: document.querySelector('.moepanel-state b')?.textContent,
    tiles: [...document.querySelectorAll('[data-stat]')].map(tile => tile.textContent),
    charts: charts.map(chart => [chart.dataset.figure, chart.layout.meta.step, !!chart.layout.title.text, !!chart.layout.yaxis.title.text]),
    notice: document.querySelector('.moescope-notice')?.textContent ?? '',
  });
}, 30);
"""

# Between tiles, findings, charts and scrubber: a finding may come at any time, nothing else may.
GAPS = """
['tiles', 'findings', 'grid', 'scrubber'].map(part => document.querySelector(`.moescope-${part}`).getBoundingClientRect())
  .map((box, at, all) => at ? box.top - all[at - 1].bottom : box.top)
"""


def word(page: Page) -> str:
    return page.locator(".moepanel-state b").inner_text()


def shape(page: Page) -> tuple[str, bool]:
    """Colour of the state's mark, and whether it is a disc, not a square."""
    dot = page.locator(".moepanel-state .moescope-dot")
    round_ = dot.evaluate("dot => getComputedStyle(dot).borderTopLeftRadius") == "50%"
    return dot.get_attribute("data-colour") or "", round_


def steps(page: Page) -> list[int]:
    return page.evaluate("names => names.map(name => document.querySelector(`[data-figure=${name}]`).layout.meta.step)", LIVE)  # fmt: skip


def test_a_run_goes_through_every_state_to_its_end(server: Server, tab: Tab) -> None:
    page = tab(f"{server.url}/?run=new")
    page.get_by_role("button", name="Plane", exact=True).wait_for()
    buttons = page.locator("[data-testid=stBaseButton-primary], [data-testid=stBaseButton-secondary]")
    # A button with a tooltip is in the page twice: Streamlit shows one of them, by the width of the screen.
    expect(buttons.filter(visible=True)).to_have_text(["Text", "Digits", "Plane", "Watch an example"])
    assert page.locator("button[kind=primary]").inner_text() == "Text"
    expect(page.get_by_text("Starting values")).to_be_visible()
    assert word(page) == "No run"
    for name in ("Pause", "Step", "Fork", "Stop"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()
    expect(page.locator("[data-testid=stCode]").last).to_have_text("python -m moe_core train --task text --w-importance 0 --w-load 0")  # fmt: skip

    page.evaluate(WATCH)
    page.get_by_role("button", name="Plane", exact=True).click()
    wait_for_step(page, 2)
    seen = page.evaluate("window.seen")
    started = [one for one in seen if one["tiles"] and {name for name, *_ in one["charts"]} >= set(LIVE)]
    # Torch is loaded already, so the start may be too short to be seen (tests/dashboard/test_starting.py draws its pages).
    assert {one["word"] for one in started} <= {"Starting…", "Training"}
    for one in (one for one in started if one["word"] == "Starting…"):
        assert one["tiles"] == ["–"] * 6
        assert all((step or 0) == 0 for _, step, _, _ in one["charts"])
    assert all(title and axis for _, _, title, axis in started[0]["charts"])
    assert {one["notice"] for one in started} == {""}

    (listed,) = list_runs(server.runs)
    run = open_run(listed.id, server.runs)
    until(lambda: (word(page), shape(page)) == ("Training", ("green", True)), page)
    expect(page.get_by_role("button", name="Live", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Fork", exact=True)).to_be_enabled()

    before = page.evaluate(GAPS)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".moescope-hint")).to_have_text("Paused. Knobs act on the next step.")
    assert (word(page), shape(page)) == ("Paused", ("amber", False))
    expect(page.get_by_role("button", name="Resume")).to_have_class(re.compile("moescope-primary"))
    rule = page.evaluate("[...[getComputedStyle(document.querySelector('.moescope'), '::before')].map(s => [s.height, s.backgroundColor])][0]")  # fmt: skip
    assert rule[0] == "3px"
    assert rule[1] != "rgba(0, 0, 0, 0)"
    assert page.evaluate(GAPS) == before  # pausing shifts no chart
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".moepanel-state b")).to_have_text("Training")
    wait_for_step(page, 30)
    page.get_by_role("slider", name="step", exact=True).press("Home")
    expect(page.get_by_text("Step 1, as recorded")).to_be_visible()
    expect(page.get_by_role("button", name="Back to live")).to_have_class(re.compile("moescope-primary"))
    for name in ("selection_share", "balance", "loss"):
        cursor = f"document.querySelector('[data-figure={name}]').layout.shapes.some(one => one.x0 === 1 && one.line.dash === 'dot')"
        page.wait_for_function(cursor)
    assert word(page) == "Training"
    page.get_by_role("button", name="Back to live").click()

    os.kill(run.status().pid, signal.SIGSTOP)
    try:
        expect(page.locator(".moepanel-state b")).to_have_text(re.compile(r"^No answer for \d+ s$"))
        assert shape(page) == ("grey", True)
        stood = steps(page)
        assert min(stood) > 1
        opacity = page.locator("[data-figure=balance]").evaluate("chart => getComputedStyle(chart).opacity")
        assert opacity == "1"
        assert page.locator("[data-stat=cv_load]").inner_text() != "–"
    finally:
        os.kill(run.status().pid, signal.SIGCONT)
    expect(page.locator(".moepanel-state b")).to_have_text("Training")

    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".moescope-notice")).to_contain_text(
        re.compile(r"^Stopped: [\d,]+ steps in .*Held-out .*CV\(load\) \d\.\d\d \(mean of the last \d+ steps\), (balanced|uneven|collapsed)( in training(, \w+ without noise)?)?\."), timeout=20_000
    )  # fmt: skip
    assert (word(page), shape(page)) == ("Stopped", ("grey", False))
    notice = page.locator(".moescope-notice")
    expect(notice.get_by_role("link", name="Export")).to_have_attribute(
        "href", re.compile(rf"^\./export\?run={run.id}&figures=")
    )
    expect(notice.get_by_role("button", name=re.compile("^Fork at"))).to_have_class(re.compile("moescope-primary"))


def test_a_failed_run_says_what_when_what_is_kept_and_why(server: Server, tab: Tab) -> None:
    config = Config.for_task("plane", num_experts=4, tokens=64)
    columns = sum(column.width for column in layout(config.layers, 4))
    writer = create_run(server.runs / "broken", config, Knobs())
    writer.commit(Batch(1, np.ones((850, columns), np.float32), state="training"))
    writer.finish("failed", error="FloatingPointError: the loss is not a number")
    page = tab(f"{server.url}/?run=broken")
    notice = page.locator(".moescope-notice")
    expect(notice).to_contain_text("Failed after step 850. Everything recorded until then is kept.")
    assert (word(page), shape(page)) == ("Failed", ("red", False))
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()  # after a disk that failed it goes on
    notice.get_by_text("Show error").click()
    expect(notice.get_by_text("FloatingPointError: the loss is not a number")).to_be_visible()
    expect(notice.get_by_role("button", name="Fork at 850")).to_have_class(re.compile("moescope-primary"))
    wait_for_step(page, 850)  # its charts stay
