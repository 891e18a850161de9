"""A link keeps what is looked at, on every page: on a cold server, in two tabs, and copied."""

import os
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from moe_core.runs import start, wait_ready
from moe_core.schema import Config, Knobs
from tests.browser.conftest import Server
from tests.browser.pages import LINKS, wait_until_settled, wait_until_shown

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]


def wait_until_opened(tab: Tab, server: Server, name: str) -> Page:
    """Open a page by its link, which keeps all that it names."""
    page = tab(server.url + LINKS[name].path)
    wait_until_shown(page, name)
    asked = dict(part.split("=") for part in LINKS[name].path.split("?")[1].split("&"))
    for word, value in asked.items():  # the page took nothing out of its link
        assert f"{word}={value}" in page.url.replace("%2C", ",")
    return page


def copy(tab: Tab, first: Page, name: str) -> None:
    """Open a page's link in another browser, while the first stays open."""
    second = tab(first.url)
    wait_until_shown(second, name)
    expect(second).to_have_url(first.url)  # the panel adds its run to a link that names none, in both


# One link of each page. The server is started anew for every third: of the other pages it has not run the code yet either.
COLD = [name for name in LINKS if not name.startswith("export-")]


@pytest.mark.parametrize("name", COLD)
def test_a_page_opens_on_a_cold_server_and_its_link_copied(shared: Server, tab: Tab, name: str) -> None:
    if COLD.index(name) % 3 == 0:
        shared.kill()
        shared.start()
    copy(tab, wait_until_opened(tab, shared, name), name)


@pytest.mark.parametrize("name", [name for name in LINKS if name not in COLD])
def test_another_link_of_a_page_opens_and_copied(shared: Server, tab: Tab, name: str) -> None:
    copy(tab, wait_until_opened(tab, shared, name), name)


CHARTS = "[...document.querySelectorAll('[data-figure]')].filter(one => one.querySelector('.main-svg'))"
IN_SIGHT = "one.offsetParent && one.getBoundingClientRect().top < innerHeight"
ALL = f"[...document.querySelectorAll('[data-figure]')].every(one => !({IN_SIGHT}) || one.querySelector('.main-svg'))"
PLACES = (
    f"{CHARTS}.flatMap(one => [one, one.querySelector('.main-svg')]).concat(...document.querySelectorAll('img[alt]'))"
)
# Each chart, the step that it shows, and how many values it draws.
SHOWN = f"""() => {{
  const parts = (one) => (one?.length === undefined || typeof one === "string" ? [one] : [...one].flatMap(parts));
  const values = (trace) => parts(["x", "y", "z", "values", "link"].map((name) => trace[name] ?? [])).length;
  return {CHARTS}.map((one) => [one.dataset.figure, one.layout.meta.step, one.data.map(values).reduce((a, b) => a + b, 0)]);
}}"""


def test_every_page_says_that_the_trainer_was_killed_and_keeps_its_charts(shared: Server, tab: Tab) -> None:
    config = Config.for_task("plane", num_experts=4, tokens=64, threads=1)
    run = wait_ready(start(config, Knobs(speed_limit=20), shared.runs), 60, shared.runs)
    paths = ["/", "/routing", "/experts", "/compare", "/batch", "/export"]
    tabs = [tab(f"{shared.url}{path}?run={run.id}") for path in paths]
    for path, page in zip(paths, tabs, strict=True):
        expect(page.locator(".moepanel-state b")).to_have_text("Training", timeout=60_000)
        some = f"(({SHOWN})()).some(([name, step, values]) => values > 0)" if path != "/export" else "true"
        page.wait_for_function(f"{PLACES}.length > 0 && {ALL} && {some}", timeout=60_000)
    stood = [page.evaluate(f"window.kept = {PLACES}; (({SHOWN})())") for page in tabs]
    os.kill(run.status().pid, signal.SIGKILL)
    for path, page, before in zip(paths, tabs, stood, strict=True):
        expect(page.locator(".moepanel-state b")).not_to_have_text("Training")
        assert page.locator(".moepanel-state b").inner_text() == "Interrupted"
        assert page.evaluate("window.kept.length > 0 && window.kept.every(node => node.isConnected)"), path
        after = {name: rest for name, *rest in page.evaluate(SHOWN)}
        for name, step, values in before:
            last, drawn = after[name]
            assert (last or 0) >= (step or 0), name
            assert drawn >= 0.4 * values, name  # a line that grew may have been thinned meanwhile


STATE = "document.querySelector('[data-testid=stApp]').dataset.testConnectionState"


def test_every_page_comes_back_after_its_server_was_killed(shared: Server, tab: Tab) -> None:
    """The same view in the same tab, without a reload: the page connects again, and its live part gets frames again."""
    tabs = {name: tab(shared.url + link.path) for name, link in LINKS.items()}
    for name, page in tabs.items():
        wait_until_settled(page, name)
    links = {name: page.url for name, page in tabs.items()}
    shared.kill()
    for page in tabs.values():
        page.wait_for_function(f"{STATE} !== 'CONNECTED'")
        page.evaluate("window.moescopeBytes = 0")
    shared.start()
    for name, page in tabs.items():
        page.wait_for_function(f"{STATE} === 'CONNECTED'", timeout=60_000)
        if "run=" in LINKS[name].path:
            page.wait_for_function("window.moescopeBytes > 0", timeout=60_000)
        wait_until_shown(page, name)
        assert page.url == links[name]
        assert page.locator("[data-testid=stException], [data-testid=stAlert]").count() == 0


def test_a_page_whose_scripts_could_not_be_fetched_fetches_them_again(shared: Server, tab: Tab) -> None:
    """As when the server is killed while the page loads."""
    page = tab("about:blank")
    failed = {"mount.js": 0, "knob.js": 0, "plotly.min.js": 0, "live.css": 0}

    def fetch(route: Route) -> None:
        name = route.request.url.rsplit("/", 1)[1].split("?")[0]
        if failed.get(name, 2) < 2:
            failed[name] += 1
            route.abort("connectionrefused")
        else:
            route.continue_()

    page.route("**/moescope/*", fetch)
    Server.kills += 1  # as far as the console is concerned
    page.goto(shared.url + LINKS["live"].path)
    wait_until_shown(page, "live")
    assert failed == {"mount.js": 2, "knob.js": 2, "plotly.min.js": 2, "live.css": 2}
    page.wait_for_function("[...document.styleSheets].some(sheet => sheet.href?.endsWith('/moescope/live.css'))")
