"""Experts, Compare and Batch in a real Chromium: each draws by deep link, moves, and follows a choice."""

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from moe_core.runs import Batch, Run, open_run, start, wait_ready
from moe_core.schema import Config, Knobs, layout
from tests.browser.conftest import Server
from tests.figures.record import _open, record

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
DRAWN = "name => !!document.querySelector(`[data-figure=${name}] .main-svg`)"


def drawn(page: Page, *figures: str) -> None:
    for name in figures:
        page.locator(f"[data-figure={name}]").scroll_into_view_if_needed()
        page.wait_for_function(DRAWN, arg=name)


def title(page: Page, figure: str) -> str:
    return str(
        page.evaluate("name => document.querySelector(`[data-figure=${name}]`)?.layout?.title?.text ?? ''", figure)
    )


def test_experts_draws_and_a_click_on_a_bar_chooses_without_replacing_a_chart(server: Server, tab: Tab) -> None:
    record(server.runs / "a", E=4)
    page = tab(f"{server.url}/experts?run=a")
    drawn(page, "expert_rank", "specialisation", "coactivation", "favourite_bytes", "similarity", "specialisation_byte")
    drawn(page, "expert_share", "saturation", "expert_flow")
    page.evaluate("document.querySelectorAll('[data-figure]').forEach(chart => chart.kept = true)")
    page.locator("[data-figure=expert_rank]").scroll_into_view_if_needed()
    lowest = page.locator("[data-figure=expert_rank] .points .point").last
    number = page.evaluate("[...document.querySelector('[data-figure=expert_rank]').data[0].customdata].at(-1)")
    box = lowest.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url(f"**expert={number}*")
    drawn(page, "expert_share")
    page.wait_for_function(
        "want => document.querySelector('[data-figure=expert_share]').layout.title.text.startsWith(want)",
        arg=f"Share of expert {number} ",
    )
    assert page.evaluate("[...document.querySelectorAll('[data-figure]')].every(chart => chart.kept)")
    expect(page.locator("[data-stat=expert_share]")).to_be_visible()


def test_the_busiest_stays_while_others_become_it_until_it_is_asked_for_again(server: Server, tab: Tab) -> None:
    record(server.runs / "a", E=4, L=1, state="training")
    writer, width = _open[-1], sum(column.width for column in layout(1, 4))

    def train(first: int, busiest: int) -> None:
        rows = np.ones((60, width), np.float32)
        for column in layout(1, 4):
            if column.stat in ("load", "counts", "importance"):
                rows[:, column.start + busiest - 1] = 5
        writer.commit(Batch(first, rows))

    def shows(expert: int) -> None:
        for figure, words in (
            ("expert_share", f"Share of expert {expert} "),
            ("favourite_bytes", f" of expert {expert}"),
        ):
            page.wait_for_function(
                "([figure, words]) => document.querySelector(`[data-figure=${figure}]`)?.layout?.title.text.includes(words)",
                arg=[figure, words],
            )
        expect(page.locator(".moescope-hero .moescope-label")).to_have_text(f"Expert {expert}, share of selections")

    train(61, 2)
    page = tab(f"{server.url}/experts?run=a")
    drawn(page, "expert_rank", "favourite_bytes")
    shows(2)
    expect(page.locator(".moescope-hero")).to_contain_text("the busiest at step 120")
    for first, busiest in ((121, 3), (181, 4), (241, 3)):
        train(first, busiest)
        expect(page.locator(".moescope-step")).to_have_text(f"step {first + 59}")
        expect(page.locator("[data-stat=expert_rank]")).not_to_have_text("1")
        shows(2)
    page.get_by_role("button", name="Choose the busiest now").click()
    shows(3)
    expect(page.locator(".moescope-hero")).to_contain_text("the busiest at step 300")
    train(301, 1)
    expect(page.locator(".moescope-step")).to_have_text("step 360")
    shows(3)
    _open.pop().finish("stopped")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080)])
def test_on_a_page_that_scrolls_the_line_at_the_foot_stays_in_sight_and_covers_no_chart_at_the_end(
    server: Server, tab: Tab, width: int, height: int
) -> None:
    record(server.runs / "a", "digits", E=4, L=1)
    page = tab(f"{server.url}/experts?run=a", width, height)
    drawn(page, "expert_rank", "saturation")
    place = "(at) => [...document.querySelectorAll(at)].at(-1).getBoundingClientRect()"
    for top in (0, 10_000):
        page.evaluate("top => document.querySelector('[data-testid=stMain]').scrollTo(0, top)", top)
        page.wait_for_timeout(300)
        foot = page.evaluate(place, ".moescope-scrubber")
        assert height - 60 < foot["top"] < foot["bottom"] <= height
    assert page.evaluate(place, ".moescope-cell")["bottom"] <= foot["top"] + 1


def test_the_chooser_beside_the_knobs_works_by_keyboard(server: Server, tab: Tab) -> None:
    record(server.runs / "a", "digits", E=4, L=1)
    page = tab(f"{server.url}/experts?run=a&expert=2")
    drawn(page, "favourite_images")
    assert title(page, "favourite_images").startswith("Favourite images of expert 2")
    page.get_by_role("combobox", name="Expert").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("listbox").wait_for()  # a key that comes while it opens is lost
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "!document.querySelector('[data-figure=favourite_images]').layout.title.text.includes('expert 2<')"
    )


def test_compare_follows_runs_that_train_and_draws_their_difference(server: Server, tab: Tab) -> None:
    config = Config.for_task("plane", num_experts=4, tokens=128, threads=1)
    runs: list[Run] = []
    for weight in (0.0, 0.1):
        runs.append(wait_ready(start(config, Knobs(w_importance=weight, w_load=weight, speed_limit=20), server.runs), 60, server.runs))  # fmt: skip
    first, second = runs
    page = tab(f"{server.url}/compare?run={first.id}&with={second.id}")
    drawn(
        page,
        "compare_balance",
        "compare_loss",
        "compare_balance_difference",
        "compare_loss_difference",
        "compare_selections",
    )
    ends = "() => document.querySelector('[data-figure=compare_balance]').data.map(line => line.x.at(-1))"
    page.locator("[data-figure=compare_balance]").scroll_into_view_if_needed()
    page.wait_for_function(f"(({ends})()).length == 2")
    before = page.evaluate(ends)
    page.wait_for_function(f"before => (({ends})()).every((x, i) => x > before[i])", arg=before)
    lines = page.evaluate("document.querySelector('[data-figure=compare_loss_difference]').data.length")
    assert lines == 1
    table = page.locator(".moe-differences")  # made anew while the runs train, so nothing may hold on to it
    expect(table.get_by_role("row", name="w_load")).to_contain_text("0.1")
    expect(table.get_by_role("row", name="lr", exact=True)).to_have_count(0)
    page.reload()
    drawn(page, "compare_balance_difference")


def test_batch_measures_beside_everything_else_and_its_sliders_move_the_formula(server: Server, tab: Tab) -> None:
    run = record(server.runs / "a", E=2, d_model=4, d_hidden=4)
    page = tab(f"{server.url}/batch?run=a&devices=4")
    drawn(page, "batch_formula", "batch_throughput", "batch_measured")
    chosen = "() => { const t = document.querySelector('[data-figure=batch_formula]').data.at(-1); return [t.x[0], t.y[0]]; }"
    assert page.evaluate(chosen) == [2, run.config.tokens * 4]
    slider = page.get_by_role("slider", name="E, experts")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**experts=4*")
    page.wait_for_function(f"(({chosen})())[0] == 4")
    page.get_by_role("button", name="Measure throughput").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    other = tab(f"{server.url}/batch?run=a")
    expect(other.get_by_role("button", name="Cancel")).to_be_visible(timeout=15_000)  # the other tab sees it
    page.wait_for_function(
        "document.querySelector('[data-figure=batch_throughput]').data[0]?.x.length > 0", timeout=60_000
    )
    other.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Measure throughput")).to_be_visible(timeout=15_000)
    assert not open_run("a", server.runs).throughput().running


def test_a_step_pointed_at_is_marked_on_every_chart_since_the_fork(server: Server, tab: Tab) -> None:
    run = record(server.runs / "a", E=4)
    record(server.runs / "b", E=4, seed=1)
    page = tab(f"{server.url}/compare?run={run.id}&with=b&align=fork")
    drawn(page, "compare_balance", "compare_loss")
    # As if these runs had parted at step 20: what stands at 0 is said in each chart's layout.
    page.evaluate("document.querySelectorAll('[data-figure]').forEach(c => { c._fullLayout.meta.offset = 20; })")
    chart = page.locator("[data-figure=compare_balance]")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    place = "c => c._fullLayout.xaxis._offset + c._fullLayout.xaxis.d2p(30)"
    page.mouse.move(box["x"] + chart.evaluate(place), box["y"] + box["height"] / 2)
    expect(page.locator(".moescope-step")).to_have_text("step 50")
    for name in ("compare_balance", "compare_loss"):
        mark = page.locator(f"[data-figure={name}] + .moescope-mark")
        expect(mark).to_be_visible()
        want = page.locator(f"[data-figure={name}]").evaluate(place)
        assert mark.evaluate("m => parseFloat(m.style.transform.slice(11))") == pytest.approx(want, abs=1)


def test_the_export_of_a_page_opens_on_what_is_looked_at_there(server: Server, tab: Tab) -> None:
    """Layer and step were chosen after the page was drawn, and live in its link alone."""
    record(server.runs / "a", E=4)
    record(server.runs / "b", E=4, seed=1)
    page = tab(f"{server.url}/compare?run=a&with=b&align=fork")
    drawn(page, "compare_balance")
    page.locator(".moepanel-layers label", has_text="2").click()
    page.get_by_role("slider", name="step").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".moescope-step")).to_have_text("Step 57, as recorded")
    page.locator(".moe-export").click()
    page.wait_for_url("**/export?*")
    asked = {name: value[0] for name, value in parse_qs(urlsplit(page.url).query).items()}
    figures = asked.pop("figures").split(",")
    assert asked == {"run": "a", "with": "b", "align": "fork", "layer": "2", "step": "57"}
    expect(page.get_by_text("As it stood at step 57. Beside a: b.")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name=f"Export {len(figures)} figures")).to_be_visible()
    assert figures == ["compare_balance", "compare_loss", "compare_balance_difference", "compare_loss_difference", "compare_selections"]  # fmt: skip
    expect(page.get_by_role("radio", name="2").first).to_be_checked()
    page.get_by_role("link", name="As it stands at the last step").click()
    expect(page.get_by_text("Beside a: b.")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("As it stood at step")).to_have_count(0)
    assert "with=b" in page.url
