"""A run of 61 layers on Live: a click on a row goes to its layer, and the chooser is a list between two buttons."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server, wait_for_function
from tests.browser.test_pages import Tab
from tests.figures.many_layers import name_of, record_layers

pytestmark = pytest.mark.browser


def row(page: Page, layer: int, layers: int) -> tuple[float, float]:
    """A place in a layer's row, in px of the window."""
    box = page.locator("[data-figure=layers] .nsewdrag").bounding_box()
    assert box
    return box["x"] + 40, box["y"] + box["height"] * (layer - 0.5) / layers


def test_a_layer_is_chosen_by_its_row_by_its_name_and_by_keys(server: Server, tab: Tab) -> None:
    record_layers(server.runs / "many", [64] * 61)
    page = tab(f"{server.url}/?run=many")
    wait_for_function(page, "() => !!document.querySelector('[data-figure=layers] .hm')")
    chooser = page.get_by_role("combobox", name="Layer")
    expect(chooser.locator("option")).to_have_count(61)
    expect(page.locator(".moepanel-layers input")).to_have_count(0)
    expect(chooser).to_have_value("1")
    expect(page.get_by_role("button", name="Previous layer")).to_be_disabled()

    page.mouse.move(*row(page, 40, 61))
    hover = page.locator("[data-figure=layers] .hoverlayer")
    expect(hover).to_contain_text(name_of(39))
    expect(hover).to_contain_text("× its ideal selections over the last steps, at step 60")
    page.mouse.click(*row(page, 40, 61))
    page.wait_for_url("**layer=40**")
    expect(chooser).to_have_value("40")
    wait_for_function(page, "() => document.querySelector('[data-figure=layers]').layout.shapes[0].y1 === 40.5")

    page.get_by_role("button", name="Next layer").click()
    page.wait_for_url("**layer=41**")
    chooser.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_url("**layer=42**")
    page.keyboard.press("End")
    page.wait_for_url("**layer=61**")
    expect(page.get_by_role("button", name="Next layer")).to_be_disabled()
    chooser.select_option(label=f"3 · {name_of(3)}")
    page.wait_for_url("**layer=4**")

    page.get_by_role("button", name="Next layer").click()
    page.wait_for_url("**layer=5**")
    # The findings of layer 4 stand above the charts until the frame of layer 5 comes.
    wait_for_function(page, "() => document.querySelector('[data-figure=layers]').layout.shapes[0].y1 === 5.5")
    worst = page.locator("[data-figure=layers_spread] .points path").first.bounding_box()
    assert worst
    page.mouse.click(worst["x"] + worst["width"] / 2, worst["y"] + worst["height"] / 2)
    page.wait_for_url("**layer=4**")  # most of its experts are dead
    expect(chooser).to_have_value("4")


def test_four_layers_have_a_button_each_and_no_figures_over_all(server: Server, tab: Tab) -> None:
    record_layers(server.runs / "few", [16] * 4)
    page = tab(f"{server.url}/?run=few")
    expect(page.locator(".moepanel-layers input")).to_have_count(4)
    expect(page.get_by_role("combobox", name="Layer")).to_have_count(0)
    expect(page.locator("[data-figure=layers]")).to_have_count(0)
