"""A lesson as a person takes it: press, watch the charts grow, the check come true, press the next, read the answer."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import is_alive, list_runs, open_run
from tests.browser.conftest import Server

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
HAPPENED = ".moe-check[data-check=yes]"


def test_a_lesson_from_its_first_button_to_its_answer(server: Server, tab: Tab) -> None:
    page = tab(f"{server.url}/learn?lesson=3")
    later = page.get_by_role("button", name="Keep 2")
    expect(later).to_be_disabled(timeout=60_000)
    page.get_by_role("button", name="Train with all 8 experts").click()
    page.wait_for_url("**lesson=3&run=**")
    for name in ("probe_gates", "regions"):
        page.wait_for_function(
            "name => !!document.querySelector(`[data-figure=${name}] .main-svg`)", arg=name, timeout=60_000
        )
    assert page.locator(".moeknob-label").all_inner_texts() == ["k, experts per token"]
    page.locator(HAPPENED).wait_for(timeout=120_000)
    expect(later).to_be_enabled(timeout=30_000)
    later.click()
    expect(page.locator(HAPPENED)).to_contain_text("2 gates of each token are left", timeout=60_000)
    page.get_by_role("button", name="Keep 1").click()
    expect(page.locator(HAPPENED)).to_contain_text("The task's gradient on the gate is 0; before", timeout=60_000)
    page.get_by_text("Question.").click()
    expect(page.get_by_text("In your run the only gate weighs 1.00")).to_be_visible(timeout=30_000)
    (listed,) = list_runs(server.runs)
    assert [(c.name, c.value, c.who) for c in open_run(listed.id, server.runs).knob_changes()] == [
        ("k", 2, "lesson 3"),
        ("k", 1, "lesson 3"),
    ]

    again = tab(page.url)  # the link alone leads to the same lesson and run
    expect(again.locator(HAPPENED)).to_contain_text("The task's gradient on the gate is 0", timeout=60_000)

    page.locator("[data-testid=stButtonGroup] button, [role=radio]").filter(has_text="1").first.click()
    page.get_by_role("button", name="Train on the plane").click()
    page.wait_for_url("**lesson=1&run=**")
    page.locator(HAPPENED).wait_for(timeout=120_000)
    assert not is_alive(server.runs / listed.id), "the run of the lesson before goes on training"
