"""axe-core looks at every page, light and dark, and on a phone: nothing serious, nothing critical."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server
from tests.browser.pages import LINKS, SETTLED, wait_until_shown

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
NOT_OURS: list[str] = []
# Pages before there is anything to show: the link, and a button that they have then. Lesson 7 has the widest formula.
FIRST = {
    "start": ("/?run=new", "Plane"),
    "new sweep": ("/sweep?sweep=new", "Start"),
    "new lesson": ("/learn?lesson=7", "Train without losses"),
}
GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 21, 26)"}  # of .streamlit/config.toml


def complaints(page: Page) -> list[str]:
    """What axe calls serious or critical, one line a place."""
    found = Axe().run(page, context={"include": ["html"], "exclude": NOT_OURS} if NOT_OURS else None).response
    return [
        f"{broken['impact']} {broken['id']}: {broken['help']}: {place['target']} {place['html'][:160]}"
        for broken in found["violations"]
        if broken["impact"] in ("serious", "critical")
        for place in broken["nodes"]
    ]


def wait_until_still(page: Page) -> None:
    """Until nothing is between two colours: while a script runs, what is stale is pale, and a change of colour is faded in."""
    for _ in range(3):  # a part of a page may run once more when the rest has
        page.wait_for_timeout(200)
        page.wait_for_function(
            f"{SETTLED} && !document.querySelector('[data-stale=true]')"
            " && document.getAnimations().every(one => one.playState !== 'running' || one.effect.getTiming().iterations === Infinity)"
        )


def wait_until_shown_whole(page: Page, name: str, theme: str) -> None:
    """Until it shows what its link names, in this theme, and nothing on it changes any more."""
    expect(page.get_by_test_id("stApp")).to_have_css("background-color", GROUNDS[theme])
    if name in LINKS:
        wait_until_shown(page, name)
    else:
        page.get_by_role("button", name=FIRST[name][1], exact=True).wait_for()
    wait_until_still(page)


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [(name, *(("light", "dark") if at % 2 else ("dark", "light"))) for at, name in enumerate([*LINKS, *FIRST])],
)
def test_axe_finds_nothing_serious(shared: Server, tab: Tab, name: str, first: str, then: str) -> None:
    """A page opens in one theme and follows the machine into the other: every other page opens in the dark. Then it is made as narrow
    as a phone."""
    page = tab(shared.url + (FIRST[name][0] if name in FIRST else LINKS[name].path), theme=first)
    wait_until_shown_whole(page, name, first)
    found = [f"{first}: {line}" for line in complaints(page)]
    page.emulate_media(color_scheme=then)
    wait_until_shown_whole(page, name, then)
    found += [f"{then}: {line}" for line in complaints(page)]
    page.set_viewport_size({"width": 390, "height": 844})
    wait_until_shown_whole(page, name, then)
    found += [f"on a phone: {line}" for line in complaints(page)]
    assert not found, "\n".join(found)
