"""axe-core looks at every page, light and dark: nothing serious, nothing critical."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

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


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [*LINKS, *FIRST])
def test_axe_finds_nothing_serious(shared: Server, tab: Tab, name: str, theme: str) -> None:
    path = FIRST[name][0] if name in FIRST else LINKS[name].path
    page = tab(shared.url + path, theme=theme)
    if name in LINKS:
        wait_until_shown(page, name)
    else:
        page.get_by_role("button", name=FIRST[name][1], exact=True).wait_for()
    wait_until_still(page)
    found = complaints(page)
    assert not found, "\n".join(found)
