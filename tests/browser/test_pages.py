"""The pages as a person uses them: a cold server, a real trainer, a real Chromium."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import Run, list_runs, open_run, start, wait_ready
from moe_core.schema import Config, Knobs
from tests.browser.conftest import Server, until

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
SMALL = Config.for_task("plane", num_experts=4, tokens=128, threads=1)
SLOW = Knobs(speed_limit=50)  # at full speed a trainer takes a core from the browser that looks at it
STEP = "name => document.querySelector(`[data-figure=${name}]`)?.layout?.meta?.step ?? 0"


def step_of(page: Page, figure: str = "balance") -> int:
    return page.evaluate(STEP, figure)


def wait_for_step(page: Page, step: int, figure: str = "balance", timeout: float = 60_000) -> None:
    page.wait_for_function(f"step => (({STEP})('{figure}')) >= step", arg=step, timeout=timeout)


def training(server: Server, config: Config = SMALL, knobs: Knobs = SLOW) -> Run:
    return wait_ready(start(config, knobs, server.runs), 60, server.runs)


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("card", ["Text", "Digits", "Plane"])
def test_one_click_on_a_card_and_the_charts_move(server: Server, tab: Tab, card: str) -> None:
    page = tab(server.url)
    page.get_by_role("button", name=card, exact=True).click()
    wait_for_step(page, 2)
    first = step_of(page)
    wait_for_step(page, first + 1)
    (run,) = list_runs(server.runs)
    knobs = open_run(run.id, server.runs).started_knobs
    assert (knobs.w_importance, knobs.w_load) == (0, 0)
    assert ("layer=2" in page.url) == (card == "Text")  # the layer that collapses first
    for figure in ("selection_share", "balance_now", "balance", "loss"):
        assert step_of(page, figure) > 0
    for stat in ("cv_load", "cv_importance", "max_over_mean_load", "dead_experts", "speed"):
        expect(page.locator(f"[data-stat={stat}]")).to_have_text(re.compile(r"\d"))
    told = page.evaluate("document.querySelector('[data-stat=cv_load]').closest('[title]').title")  # on hover
    assert told.startswith("CV(load), this step\ncoefficient of variation of the smooth load")


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("path", ["/", "/live", "/routing"])
def test_a_deep_link_opens_its_page_on_a_cold_server(server: Server, tab: Tab, path: str) -> None:
    run = training(server)
    page = tab(f"{server.url}{path}?run={run.id}")
    figure = "churn" if path == "/routing" else "balance"
    wait_for_step(page, 2, figure)
    expect(page.get_by_role("link", name="Routing")).to_be_visible()


def test_a_slider_turned_by_keyboard_reaches_the_trainer_and_shows_on_the_chart(server: Server, tab: Tab) -> None:
    run = training(server)
    page = tab(f"{server.url}/?run={run.id}")
    wait_for_step(page, 5)
    slider = page.get_by_role("slider", name="noise", exact=True)
    slider.focus()
    for turn in range(1, 8):
        page.keyboard.press("ArrowRight")
        until(lambda turn=turn: [change.step is not None for change in run.knob_changes()] == turn * [True], page)
        wait_for_step(page, run.knob_changes()[-1].step or 0)
    assert [round(c.value, 2) for c in run.knob_changes()] == [round(1 + 0.05 * i, 2) for i in range(1, 8)]
    # How soon they are there is measured by benchmarks/dashboard.py.
    page.wait_for_function("document.querySelector('[data-figure=balance]').layout.shapes.length >= 7")


def test_no_chart_is_replaced_and_zoom_survives(server: Server, tab: Tab) -> None:
    run = training(server, knobs=Knobs())
    page = tab(f"{server.url}/?run={run.id}")
    wait_for_step(page, 30)
    page.evaluate(
        """() => {
          window.kept = [...document.querySelectorAll('[data-figure], [data-figure] .main-svg')];
          window.before = window.moescopeFrames;
          Plotly.relayout(document.querySelector('[data-figure=selection_share]'), {'xaxis.range[0]': 5, 'xaxis.range[1]': 20});
        }"""
    )
    page.wait_for_function("window.moescopeFrames - window.before >= 20")
    ranges = "['selection_share', 'balance', 'loss'].map(n => document.querySelector(`[data-figure=${n}]`)._fullLayout.xaxis.range)"
    assert page.evaluate("window.kept.every(node => node.isConnected)")
    assert page.evaluate(ranges) == [[5, 20]] * 3  # a zoom of one chart over time is a zoom of all
    page.evaluate("Plotly.relayout(document.querySelector('[data-figure=balance]'), {'xaxis.autorange': true})")
    page.wait_for_function(f"{ranges}.every(range => range[0] === 0 && range[1] > 20)")


def test_two_tabs_turn_one_knob_and_both_see_it(server: Server, tab: Tab) -> None:
    run = training(server)
    one, two = (tab(f"{server.url}/?run={run.id}") for _ in range(2))
    for page in (one, two):
        wait_for_step(page, 2)
    one.get_by_role("slider", name="noise", exact=True).press("End")
    expect(two.get_by_role("slider", name="noise", exact=True)).to_have_attribute("aria-valuenow", "4")
    two.get_by_role("slider", name="noise", exact=True).press("Home")
    expect(one.get_by_role("slider", name="noise", exact=True)).to_have_attribute("aria-valuenow", "0")
    assert [c.value for c in run.knob_changes()] == [4, 0]


def test_a_dashboard_that_is_killed_finds_the_run_still_training(server: Server, tab: Tab) -> None:
    run = training(server)
    page = tab(f"{server.url}/?run={run.id}")
    wait_for_step(page, 2)
    server.kill()
    before = run.steps()[1]
    server.start()
    wait_for_step(page, before + 1, timeout=60_000)
    assert run.state == "training"


def test_a_trainer_that_is_killed_is_said_and_its_charts_stay(server: Server, tab: Tab) -> None:
    run = training(server)
    page = tab(f"{server.url}/?run={run.id}")
    wait_for_step(page, 5)
    os.kill(run.status().pid, signal.SIGKILL)
    expect(page.locator(".moescope-notice")).to_contain_text("The trainer died")
    assert step_of(page) >= 5
    assert open_run(run.id, server.runs).state == "interrupted"


def test_pause_step_resume_stop(server: Server, tab: Tab) -> None:
    run = training(server, knobs=Knobs())
    page = tab(f"{server.url}/?run={run.id}")
    wait_for_step(page, 400)  # its charts are thinned by now
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".moescope-hint")).to_contain_text("Paused")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    before = run.steps()[1]
    for at in range(before, before + 4):
        page.get_by_role("button", name="Step", exact=True).click()
        wait_for_step(page, at + 1)
    page.wait_for_timeout(500)
    assert run.steps()[1] == at + 1
    page.get_by_role("button", name="Resume").click()
    wait_for_step(page, at + 5)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".moescope-notice")).to_contain_text("Stopped")


def test_the_layer_is_in_the_link(server: Server, tab: Tab) -> None:
    run = training(server, Config.for_task("plane", num_experts=4, tokens=128, threads=1, layers=2))
    page = tab(f"{server.url}/?run={run.id}&layer=2")
    wait_for_step(page, 2)
    expect(page.get_by_role("radio", name="2")).to_be_checked()
    page.get_by_role("radio", name="1").click()
    page.wait_for_url("**layer=1**")
    wait_for_step(page, 3)


@pytest.mark.parametrize("task", ["text", "digits", "plane"])
def test_the_routing_page_draws_every_tasks_probe(server: Server, tab: Tab, task: str) -> None:
    run = training(server, Config.for_task(task, threads=1, seed=1))
    page = tab(f"{server.url}/routing?run={run.id}", 1920, 1080, "dark")
    wait_for_step(page, 3, "churn", 60_000)
    for figure in {
        "text": ["probe_text"],
        "digits": ["digit_images", "probe_gates"],
        "plane": ["regions", "probe_gates"],
    }[task]:
        page.wait_for_function("name => document.querySelector(`[data-figure=${name}]`)?.data?.length > 0", arg=figure)


def test_names_of_runs_are_text(server: Server, tab: Tab, tmp_path: Path) -> None:
    page = tab(f"{server.url}/?run=%3Cimg%20src%3Dx%20onerror%3D%22window.bad%3D1%22%3E")
    page.get_by_role("button", name="Plane", exact=True).wait_for()
    assert page.evaluate("window.bad") is None
