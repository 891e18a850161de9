"""The Sweep page as a person uses it: start from the form, kill the dashboard, find it again, cancel, go on, open a run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import is_alive
from moe_core.schema import Config, Knobs
from moe_core.sweep import jobs, make_plan, make_sweep, open_sweep, results, run_sweep, sweep_ids
from tests.browser.conftest import Server

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
CONFIG = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, threads=1)


def test_a_sweep_started_from_the_form_outlives_the_dashboard(server: Server, tab: Tab) -> None:
    page = tab(f"{server.url}/sweep")
    page.get_by_label("Task").click()
    page.get_by_role("option", name="plane").click()
    page.get_by_label("Steps", exact=True).fill("100000")
    page.get_by_label("Seeds", exact=True).fill("1")
    page.get_by_label("Runs at a time").fill("1")
    page.get_by_label("w_load", exact=True).fill("0")
    page.get_by_label("w_load", exact=True).press("Tab")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_text("0 of 2 runs, 1 training")).to_be_visible(timeout=60_000)
    (name,) = sweep_ids(server.runs)
    page.wait_for_url(f"**sweep={name}**")
    sweep = open_sweep(name, server.runs)
    try:
        server.kill()
        assert is_alive(sweep.folder)
        server.start()
        page = tab(f"{server.url}/sweep")
        page.get_by_role("button", name="Cancel").click(timeout=60_000)
        expect(page.get_by_role("button", name="Go on")).to_be_visible(timeout=60_000)
        assert not is_alive(sweep.folder)
        assert not any(is_alive(sweep.runs / job.run_id) for job in jobs(sweep))
        assert results(sweep)[0].problem.startswith("stopped at step")
    finally:
        (sweep.folder / "cancel").touch()  # whatever failed, nothing goes on training


def test_a_click_on_a_cell_opens_its_run(server: Server, tab: Tab) -> None:
    lists = {"w_importance": [0.0, 0.1], "noise": [0.5, 1.0]}
    sweep = make_sweep(make_plan(replace(CONFIG, steps=20), Knobs(), lists), server.runs, "s")
    assert run_sweep(sweep, 2) == "finished"
    page = tab(f"{server.url}/sweep?sweep=s")
    cell = page.locator(".js-plotly-plot").first
    cell.wait_for(timeout=60_000)
    page.wait_for_timeout(1000)  # it has its size
    figures = "sweep_balance%2Csweep_quality%2Csweep_pareto"
    expect(page.locator(".moe-export")).to_have_attribute("href", f"./export?sweep=s&figures={figures}")
    box = cell.bounding_box()
    assert box
    # The lower right cell: w_importance 0.1, noise 0.5, which is the third of the four.
    page.mouse.click(box["x"] + 48 + 0.75 * (box["width"] - 56), box["y"] + 52 + 0.75 * (box["height"] - 90))
    page.wait_for_url("**/?run=s-c03-s0")
    page.go_back()
    page.locator("a", has_text="0").nth(3).click()
    page.wait_for_url("**/?run=s-c04-s0")


def test_names_are_text(server: Server, tab: Tab) -> None:
    page = tab(f"{server.url}/sweep?sweep=%3Cimg%20src%3Dx%20onerror%3D%22window.bad%3D1%22%3E")
    page.get_by_role("button", name="Start", exact=True).wait_for()
    assert page.evaluate("window.bad") is None
