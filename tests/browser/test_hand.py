"""The hand on the page: dragging a knob, resetting it, typing into it; the line at the foot, and what it takes to the past."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Locator, Page, expect

from moe_core.runs import Run, list_runs, open_run
from moe_core.schema import Knobs
from tests.browser.conftest import Server, until
from tests.browser.test_pages import SMALL, Tab, step_of, training, wait_for_step
from tests.values import VALUES

pytestmark = pytest.mark.browser


def knob(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def open_knobs(server: Server, tab: Tab) -> tuple[Run, Page]:
    run = training(server)
    page = tab(f"{server.url}/?run={run.id}")
    wait_for_step(page, 2)
    return run, page


def test_a_knob_acts_while_it_is_dragged_and_a_drag_is_one_entry(server: Server, tab: Tab) -> None:
    run, page = open_knobs(server, tab)
    box = knob(page, "noise").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for moved in range(1, 4):  # each is a turn before the button comes up
        page.mouse.move(x + 24 * moved, y)
        until(lambda moved=moved: len(run.knob_changes()) >= moved, page)
    for moved in range(1, 10):  # and some that may be too fast for a turn each
        page.mouse.move(x + 72 + 4 * moved, y)
    page.mouse.up()
    expect(page.locator(".moepanel-change")).to_have_count(1)
    now = lambda: float(knob(page, "noise").get_attribute("aria-valuenow") or 0)
    until(lambda: run.knob_changes()[-1].value == now(), page)
    changes = run.knob_changes()
    assert len({change.who for change in changes}) == 1
    values = [change.value for change in changes]
    assert values == sorted(set(values))
    expect(page.locator(".moeknob-was").first).to_have_text("was 1.00")
    knob(page, "noise").dblclick()
    expect(knob(page, "noise")).to_have_attribute("aria-valuenow", "1")
    until(lambda: run.knob_changes()[-1].value == 1, page)
    expect(page.locator(".moepanel-change")).to_have_count(2)


def test_the_page_rounds_a_value_as_everything_else_does(server: Server, tab: Tab) -> None:
    page = tab(server.url)
    load = (
        "async values => { const { valueText } = await import('/moescope/numbers.js'); return values.map(valueText); }"
    )
    assert page.evaluate(load, [value for value, _ in VALUES]) == [text for _, text in VALUES]


def test_every_knob_has_its_name_its_keys_and_its_text(server: Server, tab: Tab) -> None:
    run, page = open_knobs(server, tab)
    for name in ("noise", "k, experts per token", "w_importance", "w_load", "learning rate"):
        expect(knob(page, name)).to_have_count(1)
    keys = [("noise", "ArrowLeft", 0.95), ("noise", "Shift+ArrowRight", 0.96), ("noise", "PageUp", 1.46)]
    keys += [("k, experts per token", "ArrowUp", 3), ("k, experts per token", "End", 4), ("w_load", "Home", 0)]
    keys += [("w_load", "ArrowRight", 0.001), ("learning rate", "End", 0.1), ("learning rate", "Delete", 0.003)]
    for name, key, wanted in keys:
        knob(page, name).press(key)
        expect(knob(page, name)).to_have_attribute("aria-valuenow", str(wanted))
    expect(knob(page, "learning rate")).to_have_attribute("aria-valuetext", "3e-3")
    # Each knob's turns in their order; those of two knobs may cross, since each keeps its own pace.
    names = {"noise": "noise", "k, experts per token": "k", "w_load": "w_load", "learning rate": "lr"}
    for label, name in names.items():
        wanted = [value for at, _, value in keys if at == label][-1]
        until(
            lambda name=name, wanted=wanted: [c.value for c in run.knob_changes() if c.name == name][-1:] == [wanted],
            page,
        )
    field = page.get_by_role("textbox", name="w_importance, value")
    field.fill("0.025")
    field.press("Enter")
    expect(knob(page, "w_importance")).to_have_attribute("aria-valuenow", "0.025")
    field.fill("7")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("w_importance must be between 0 and 1")
    expect(page.locator(".moescope-notice")).to_be_empty()  # once, beside the knobs, and no chart moves for it
    expect(knob(page, "w_importance")).to_have_attribute("aria-valuenow", "0.025")
    assert open_run(run.id, server.runs).knobs.w_importance == 0.025


def test_the_line_at_the_foot_goes_to_a_past_step_and_back(server: Server, tab: Tab) -> None:
    run, page = open_knobs(server, tab)
    wait_for_step(page, 40)
    knob(page, "noise").press("End")
    expect(page.locator(".moescope-turn")).to_have_count(1)
    scrubber = page.get_by_role("slider", name="step", exact=True)
    scrubber.press("Home")
    page.wait_for_url(re.compile(r"[?&]step=1\b"))
    for _ in range(9):
        scrubber.press("ArrowRight")
    expect(scrubber).to_have_attribute("aria-valuetext", "step 10, as recorded")
    page.wait_for_function("document.querySelector('[data-figure=balance_now]').layout.meta.step === 10")
    expect(page.get_by_text("Step 10, as recorded")).to_be_visible()
    expect(knob(page, "noise")).to_have_attribute("aria-valuenow", "1")  # as it was
    expect(knob(page, "noise")).to_have_attribute("aria-disabled", "true")
    _, load = run.history("load", first=10, last=10)
    drawn = page.evaluate("[...document.querySelector('[data-figure=balance_now]').data[0].y]")
    assert drawn == pytest.approx(list(100 * load[0] / load[0].sum()), rel=1e-4)
    _, cv = run.history("cv_load", first=10, last=10)
    expect(page.locator("[data-stat=cv_load]")).to_have_text(f"{cv[0]:.2f}")
    # Another page looks at the same step, and so does a copied link.
    page.get_by_role("link", name="Routing").click()
    page.locator("[data-figure=churn]").wait_for()
    expect(page.get_by_text("Step 10, as recorded")).to_be_visible()
    page.wait_for_url(re.compile(rf"run={run.id}.*step=10"))
    again = tab(page.url)
    expect(again.get_by_text("Step 10, as recorded")).to_be_visible(timeout=15_000)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(document.querySelector('.moescope-track').getAttribute('aria-valuenow')) > 12")
    page.get_by_role("button", name="Back to live").click()
    expect(page.get_by_role("button", name="Live", exact=True)).to_be_visible()
    assert "step=" not in page.url
    at = step_of(page, "churn")
    wait_for_step(page, at + 1, "churn")


def test_a_step_below_the_pointer_is_marked_on_every_chart_over_time(server: Server, tab: Tab) -> None:
    _, page = open_knobs(server, tab)
    wait_for_step(page, 40)
    box = page.locator("[data-figure=balance]").bounding_box()
    assert box
    page.mouse.move(box["x"] + 70, box["y"] + box["height"] / 2)
    expect(page.locator(".moescope-mark:visible")).to_have_count(3)
    expect(page.locator(".moescope-ghost")).to_be_visible()
    page.mouse.move(5, 5)
    expect(page.locator(".moescope-mark:visible")).to_have_count(0)


def test_another_run_is_chosen_and_the_link_follows(server: Server, tab: Tab) -> None:
    first, second = training(server), training(server)
    page = tab(f"{server.url}/live?run={first.id}")
    wait_for_step(page, 2)
    chooser = page.get_by_role("button", name=f"Run: {first.id}")
    chooser.click()
    expect(page.locator(".moeruns tbody tr")).to_have_count(2)
    page.keyboard.type(second.id)  # the search has the focus
    expect(page.locator(".moeruns tbody tr")).to_have_count(1)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**run={second.id}**")
    page.locator(f".moepanel-chooser[title='{second.id}']").click()
    page.get_by_role("button", name="New run").click()
    expect(page.get_by_role("button", name="Plane", exact=True)).to_be_visible()


def test_a_finished_run_says_how_it_ended(server: Server, tab: Tab) -> None:
    run = training(server, type(SMALL)(**{**SMALL.__dict__, "steps": 30}))
    page = tab(f"{server.url}/?run={run.id}")
    expect(page.locator(".moescope-notice")).to_contain_text(
        re.compile(r"Finished: 30 steps in .* CV\(load\) \d"), timeout=30_000
    )
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    expect(knob(page, "noise")).to_have_attribute("aria-disabled", "true")


def test_a_stopped_run_goes_on_and_a_fork_with_another_k_is_made_from_a_past_step(server: Server, tab: Tab) -> None:
    run = training(server, replace(SMALL, layers=2), Knobs())
    page = tab(f"{server.url}/?run={run.id}&layer=2")
    wait_for_step(page, 2)
    run.command("checkpoint")
    wait_for_step(page, 40)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".moescope-notice")).to_contain_text("Stopped")
    stopped = run.steps()[1]
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("textbox", name="Train to step").fill(str(stopped + 20))
    page.get_by_role("button", name="Go on", exact=True).click()
    expect(page.locator(".moescope-notice")).to_contain_text("Finished")
    assert run.steps()[1] == stopped + 20
    page.get_by_role("slider", name="step", exact=True).press("PageDown")
    page.locator(".moepanel-buttons").get_by_role("button", name="Fork").click()
    knob(page, "k, experts per token").press("Home")
    expect(page.locator(".moepanel-form")).to_contain_text("k 2 → 1")
    page.get_by_role("textbox", name="Train to step").fill("")
    knob(page, "w_load").press("End")
    page.get_by_role("combobox", name="strategy").select_option("loss-free")  # its own knobs come at once, others go
    expect(knob(page, "w_load")).to_have_count(0)
    expect(page.get_by_role("textbox", name="bias_speed, value")).to_have_value("1e-3")
    expect(page.locator(".moepanel-form")).not_to_contain_text("w_load")
    knob(page, "bias_speed").press("End")
    page.get_by_role("button", name="Start the fork").click()
    page.wait_for_url(lambda url: "run=" in url and run.id not in url)
    expect(page.locator(".moepanel-state")).to_contain_text("Training")
    (fork,) = (one for one in list_runs(server.runs) if one.id != run.id)
    knobs = open_run(fork.id, server.runs).knobs
    assert (knobs.k, knobs.strategy, knobs.w_load) == (1, "loss-free", run.knobs.w_load)
    assert knobs.bias_speed > Knobs().bias_speed
    expect(page.get_by_role("radio", name="2")).to_be_checked()  # in the layer in which its parent was looked at


FOCUSED = """() => {
  const node = document.activeElement, look = getComputedStyle(node), around = getComputedStyle(node.parentElement);
  const shown = [look, around].some((one) => (one.outlineStyle !== 'none' && parseFloat(one.outlineWidth) >= 2) || one.boxShadow !== 'none');
  return [node.getAttribute('aria-label') ?? node.innerText.trim(), node.tagName === 'MAIN' || node.tagName === 'BODY' || shown];
}"""


def tab_to(page: Page, name: str, most: int = 90) -> None:
    """Press Tab until the control of this name has the focus; wherever it comes by, one sees that it does."""
    for _ in range(most):
        page.keyboard.press("Tab")
        at, shown = page.evaluate(FOCUSED)
        assert shown, f"{at} does not show that it has the focus"
        if at == name:
            return
    raise AssertionError(f"{name} was not reached with {most} tabs")


def through_the_tools(page: Page) -> None:
    """The tools of each chart are one stop of the Tab key; arrow keys go on within them."""
    tab_to(page, "Download plot as a PNG")
    for key, name in (
        ("ArrowLeft", "Download plot as SVG"),
        ("Home", "Download plot as a PNG"),
        ("ArrowRight", "Zoom"),
    ):
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == [name, True]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('[data-figure]').dataset.figure") == "balance_now"
    stops = "bar => [...bar.querySelectorAll('button')].filter(one => one.tabIndex === 0).length"
    assert set(page.locator(".modebar").evaluate_all(f"all => all.map({stops})")) == {1}


def test_all_can_be_done_without_a_mouse(server: Server, tab: Tab) -> None:
    page = tab(f"{server.url}/?run=new")
    page.get_by_role("button", name="Plane", exact=True).wait_for()
    tab_to(page, "Plane")
    page.keyboard.press("Enter")
    wait_for_step(page, 10)
    (listed,) = list_runs(server.runs)
    run = open_run(listed.id, server.runs)
    page.evaluate("document.activeElement.blur()")
    for name in (f"Run: {run.id}", "Pause", "Fork", "Stop", "noise, value", "noise"):
        tab_to(page, name)
    page.keyboard.press("ArrowRight")
    expect(knob(page, "noise")).to_have_attribute("aria-valuenow", "1.05")
    tab_to(page, "strategy")
    page.keyboard.press("ArrowDown")
    tab_to(page, "More knobs")
    page.keyboard.press("Enter")
    expect(page.get_by_role("slider", name="speed limit")).to_be_visible()
    for name in ("Live", "Routing", "Export", "Live", "Play", "Steps a second", "step"):
        tab_to(page, name)
        if name == "Export":
            through_the_tools(page)
    page.keyboard.press("Home")
    expect(page.get_by_text("Step 1, as recorded")).to_be_visible()
    changes = {change.name: change.value for change in run.knob_changes()}
    assert changes["noise"] == 1.05
    assert changes["strategy"] != run.started_knobs.strategy
    tab_to(page, "Fork")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Start the fork")).to_be_visible()
    page.keyboard.type("900")  # in the field of the steps, which has the focus
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "run=" in url and run.id not in url, timeout=60_000)
