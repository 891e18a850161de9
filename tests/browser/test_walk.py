"""A newcomer's walk through everything that the pages do, in one Chromium: own data, 32 experts, a turn, a fork, a comparison, names, a
figure for a paper; then stop, go on, delete."""

import re

import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import list_runs, open_run, read_notes
from tests.browser.conftest import Server, until
from tests.browser.test_pages import Tab, wait_for_step
from tests.own_data import write

pytestmark = pytest.mark.browser


def fill(page: Page, label: str, value: str) -> None:
    """A field of Configure."""
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Tab")


def unfold(page: Page) -> None:
    """The panel, which a narrow page folds away."""
    button = page.locator("[data-testid=stExpandSidebarButton]")
    if button.is_visible():
        button.click()


def fold(page: Page, width: int) -> None:
    """Fold it again, where it lies over the page."""
    if width < 700:
        page.locator("[data-testid=stSidebarCollapseButton] button").click()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_newcomer_goes_from_a_table_to_a_figure_for_a_paper(server: Server, tab: Tab, tmp_path, width: int) -> None:
    (table,) = write("table", tmp_path)
    page = tab(server.url, width, 844 if width < 700 else 800)
    page.get_by_text("Configure").first.click()
    page.get_by_text("digits", exact=True).click()
    page.get_by_text("uploaded", exact=True).click()
    page.locator("input[type=file]").set_input_files(table)
    expect(page.locator(".moe-recognised")).to_contain_text("150 rows in 3 classes")
    for label, value in (("num_experts", "32"), ("layers", "3"), ("seed", "7"), ("speed_limit", "40")):
        fill(page, label, value)
    expect(page.locator(".moe-takes")).to_contain_text("parameters")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url(re.compile("run="))
    wait_for_step(page, 5)
    (run,) = list_runs(server.runs)
    first = open_run(run.id, server.runs)
    assert (first.config.num_experts, first.config.layers, first.config.seed) == (32, 3, 7)

    unfold(page)
    noise = page.get_by_role("slider", name="noise", exact=True)
    noise.click()
    page.keyboard.press("ArrowRight")
    until(lambda: any(change.step for change in first.knob_changes()), page)
    page.get_by_role("button", name="Fork", exact=True).click()
    k = page.get_by_role("slider", name=re.compile("^k"))
    k.click()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".moepanel-form")).to_contain_text("k 2 → 3")
    page.get_by_role("button", name="Start the fork").click()
    until(lambda: len(list_runs(server.runs)) == 2, page)
    fork = next(one for one in list_runs(server.runs) if one.id != run.id)
    page.wait_for_url(re.compile(re.escape(fork.id)))
    wait_for_step(page, 8)

    fold(page, width)
    page.goto(f"{server.url}/runs")
    for id, name in ((run.id, "two experts"), (fork.id, "three experts")):
        page.locator(f".moeruns-page tr[data-run='{id}'] input").check()
        field = page.get_by_placeholder(id, exact=True)
        field.wait_for(state="attached")
        if not field.is_visible():  # folded at first, and open from then on
            page.get_by_text("Name, tags and note").click()
        field.fill(name)
        field.press("Enter")
        until(lambda id=id, name=name: read_notes(server.runs / id).name == name, page)
        page.locator(f".moeruns-page tr[data-run='{id}'] input").uncheck()
    page.goto(f"{server.url}/compare?run={run.id}&with={fork.id}")
    page.locator("[data-figure=compare_balance] .main-svg").first.wait_for()
    expect(page.locator(".moescope-tiles")).to_contain_text("three experts")

    page.goto(
        f"{server.url}/export?run={run.id}&with={fork.id}&figures=compare_balance&format=pdf&smooth=5&size=3.25in"
    )
    expect(page.locator("img[alt]")).to_be_visible()
    with page.expect_download() as got:
        page.get_by_role("button", name="Export", exact=True).click()
    pdf = got.value.path().read_bytes()
    assert pdf[:5] == b"%PDF-"
    assert b"[0 0 234" in pdf, "3.25 inches are 234 points"

    page.goto(f"{server.url}/live?run={fork.id}")
    wait_for_step(page, 9)
    unfold(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".moepanel-state")).to_contain_text("Stopped")
    last = open_run(fork.id, server.runs).steps()[1]
    page.get_by_role("button", name="Resume", exact=True).click()
    page.get_by_role("button", name="Go on", exact=True).click()
    until(lambda: open_run(fork.id, server.runs).steps()[1] > last, page)

    fold(page, width)
    page.goto(f"{server.url}/runs")
    page.get_by_role("button", name="Stop all 2").click()
    expect(page.get_by_text("Nothing trains now.")).to_be_visible()
    for id in (run.id, fork.id):  # at once, before the page's script has heard of the first
        page.locator(f".moeruns-page tr[data-run='{id}'] input").check()
    expect(page.get_by_text("2 runs are chosen.")).to_be_visible()
    page.locator(f".moeruns-page tr[data-run='{run.id}'] input").uncheck()
    expect(page.get_by_placeholder(fork.id, exact=True)).to_have_value("three experts")
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    until(lambda: [one.id for one in list_runs(server.runs)] == [run.id], page)
