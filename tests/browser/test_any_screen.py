"""A page on a phone, under a finger; for people who need other colours or no motion; and on paper."""

import re

import pytest
from playwright.sync_api import Browser, CDPSession, Page, expect

from tests.browser.conftest import Server, wait_for_function
from tests.browser.test_pages import training

pytestmark = pytest.mark.browser
CHART = "document.querySelector('[data-figure=balance]')"
PRINTED = """async (spec) => {
    const loaded = performance.getEntriesByType("resource").map((one) => one.name);
    const { onPaper } = await import(loaded.find((name) => name.endsWith("/print.js")));
    return onPaper(spec, { "#A99A05": "#4B3F00", "#39FFE4": "#0E4A42" });
}"""


def drag(session: CDPSession, x: float, y: float, across: float, down: float) -> None:
    """A finger that goes from one place to another in ten moves."""
    touch = lambda kind, points: session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch("touchStart", [{"x": x, "y": y}])
    for part in range(1, 11):
        touch("touchMove", [{"x": x + across * part / 10, "y": y + down * part / 10}])
    touch("touchEnd", [])


def use_fingers(page: Page, session: CDPSession) -> None:
    """Turn a knob, go to a past step, zoom and scroll."""
    page.locator(".moescope-where").tap()
    track = page.locator(".moeknob-track").first
    box = track.bounding_box()
    assert box
    track.tap(position={"x": 0.75 * box["width"], "y": box["height"] / 2})
    expect(page.get_by_role("slider", name="noise", exact=True)).to_have_attribute("aria-valuenow", re.compile("2.9|3"))
    page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").tap()
    expect(track).not_to_be_in_viewport()
    box = page.locator(".moescope-track").bounding_box()
    assert box
    drag(session, box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2, -0.4 * box["width"], 0)
    expect(page.locator(".moescope-step")).to_contain_text(", as recorded")
    page.locator(".moescope-live.moescope-button").tap()
    chart = page.locator("[data-figure=balance] .nsewdrag")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    before = page.evaluate(f"{CHART}.layout.xaxis.range")
    drag(session, box["x"] + 0.2 * box["width"], box["y"] + 20, 0.5 * box["width"], 3)
    page.wait_for_timeout(100)
    wait_for_function(page, f"before => {CHART}.layout.xaxis.range[0] > before[0]", before)
    scrolled = "document.querySelector('[data-testid=stMain]').scrollTop"
    at = page.evaluate(scrolled)
    drag(session, box["x"] + 0.5 * box["width"], box["y"] + 20, 3, 120)
    wait_for_function(page, f"at => {scrolled} < at - 50", at)


def test_a_phone_other_colours_no_motion_and_paper(server: Server, browser: Browser) -> None:
    run = training(server)
    context = browser.new_context(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        color_scheme="dark",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{server.url}/?run={run.id}")
    wait_for_function(page, f"() => {CHART}?.layout?.meta.step > 60")
    use_fingers(page, context.new_cdp_session(page))
    style = "([one, name]) => getComputedStyle(document.querySelector(one))[name]"
    page.emulate_media(color_scheme="dark", forced_colors="active")
    thumb = (
        f"() => ({style})(['.moescope-thumb', 'outlineStyle']) === 'solid'"  # of the browser's colours: one around it
    )
    wait_for_function(page, f"() => matchMedia('(forced-colors: active)').matches && ({thumb})()")
    assert page.evaluate(style, [".moescope .modebar", "transitionDuration"]) == "0.001s"
    page.emulate_media(color_scheme="dark", forced_colors="none", media="print")
    for hidden in (".moescope-scrubber", ".moescope .modebar", "[data-testid=stSidebar]", ".moescope-where"):
        expect(page.locator(hidden).first).to_be_hidden()
    expect(page.locator(".moescope-titled")).to_have_text(re.compile(r"^MoEscope, live page · .+ · step [\d,]+$"))
    ground = f"() => {CHART}.querySelector('.main-svg').style.background"
    wait_for_function(page, f"() => ({ground})() === 'rgb(255, 255, 255)'")
    cells = {
        "marker": {"color": ["#39FFE4", "#A99A05"]},
        "textfont": {"color": ["#0B0E12"]},
        "meta": {"printed": ["#FFFFFF"]},
    }
    printed = page.evaluate(PRINTED, {"data": [cells], "layout": {"meta": {"paper": {"#A99A05": "#6E7308"}}}})["data"][
        0
    ]
    assert printed["marker"]["color"] == ["#0E4A42", "#6E7308"]  # a run's colour becomes that of the same run
    assert printed["textfont"]["color"] == ["#FFFFFF"]  # and letters read on the printed cell
    page.emulate_media(color_scheme="dark", media="screen")
    wait_for_function(page, f"() => ({ground})() === 'rgb(17, 21, 26)'")
    context.close()
