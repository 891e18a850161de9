"""A gate that collapses says so above the charts, and the button beside the words mends it."""

import pytest
from playwright.sync_api import expect

from moe_core.schema import Config, Knobs
from tests.browser.conftest import Server
from tests.browser.test_pages import SMALL, Tab, training, wait_for_step

pytestmark = pytest.mark.browser

TEXT = Config.for_task("text", threads=1)  # its second layer collapses within some fifty steps


def test_a_collapse_is_said_and_its_button_mends_it(server: Server, tab: Tab) -> None:
    run = training(server, TEXT, Knobs(w_importance=0, w_load=0))
    page = tab(f"{server.url}/?run={run.id}&layer=2")
    wait_for_step(page, 2)
    chart = page.evaluate_handle("document.querySelector('[data-figure=balance]')")
    finding = page.locator("[data-rule=collapse]")
    expect(finding.locator("summary")).to_contain_text("The gate has collapsed", timeout=120_000)
    expect(finding.locator("summary")).to_contain_text("Since step ")
    expect(finding.locator(".moescope-why")).to_be_hidden()
    finding.locator("summary").click()
    expect(finding.locator(".moescope-why")).to_contain_text("No loss asks for balance")
    finding.locator("summary").click()
    expect(page.locator("[data-figure=knobs]")).to_be_hidden()
    _, cv = run.history("cv_load", 1)
    assert cv[-20:].mean() > 0.8
    finding.get_by_role("button", name="Turn w_importance and w_load to 0.1").click()
    expect(page.locator("[data-rule=collapse]")).to_have_count(0, timeout=120_000)
    changes = run.knob_changes()
    assert {(c.name, c.value) for c in changes} == {("w_importance", 0.1), ("w_load", 0.1)}
    assert len({c.who for c in changes}) == 1
    assert len({c.step for c in changes}) == 1
    page.wait_for_function("Number(document.querySelector('[data-stat=cv_load]').textContent) < 0.4", timeout=120_000)
    # What was turned stands below the charts, which are the same nodes.
    expect(page.locator("[data-figure=knobs] .main-svg").first).to_be_visible()
    assert page.evaluate("[...document.querySelector('[data-figure=knobs]').data].map((d) => d.name).sort()") == [
        "w_importance",
        "w_load",
    ]
    left = "(name) => document.querySelector(`[data-figure=${name}]`).getBoundingClientRect().x"
    assert page.evaluate(left, "knobs") == page.evaluate(left, "balance") < page.evaluate(left, "loss")
    assert page.evaluate("(chart) => chart === document.querySelector('[data-figure=balance]')", chart)


def test_a_finding_is_put_away_until_it_comes_again(server: Server, tab: Tab) -> None:
    run = training(server, SMALL, Knobs(noise=0))
    page = tab(f"{server.url}/?run={run.id}")
    finding = page.locator("[data-rule=idle_load_loss]")
    expect(finding).to_have_count(1)
    finding.get_by_role("button", name="Dismiss").click()
    expect(finding).to_have_count(0)
    page.wait_for_timeout(1500)
    expect(finding).to_have_count(0)
    run.turn(noise=1)
    page.wait_for_timeout(2500)
    run.turn(noise=0)
    expect(finding).to_have_count(1)
