"""What a page may do on the web and what its links may say: behind a proxy, with a token, Back, and words of strangers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import LINKS, SETTLED, make, wait_until_shown
from tests.export.made import make_run
from tests.forwarder import forwarding
from tests.server import Server

pytestmark = pytest.mark.browser
Tab = Callable[..., Page]
PAGES = ["", "routing", "experts", "compare", "sweep", "batch", "learn", "export"]


def go(page: Page, name: str) -> None:
    page.get_by_test_id("stTopNavLink").filter(has_text=name).first.click()
    page.wait_for_function(f"location.pathname === '/{name.lower() if name != 'Live' else ''}' && {SETTLED}")


def words(page: Page) -> dict[str, str]:
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.search))")  # type: ignore[no-any-return]


def test_back_goes_back_a_page_a_press_and_a_lesson_stays_on_its_page(shared: Server, tab: Tab) -> None:
    page = tab(f"{shared.url}/?run=a")
    page.locator("[data-figure=balance] .main-svg").first.wait_for()
    been = [("/", {"run": "a"})]
    for name in ("Routing", "Learn", "Live", "Batch"):
        go(page, name)
        wanted = {"lesson": "1"} if name == "Learn" else {"run": "a"}
        page.wait_for_function(
            "wanted => JSON.stringify(wanted) === JSON.stringify(Object.fromEntries(new URLSearchParams(location.search)))",
            wanted,
        )
        been.append((page.evaluate("location.pathname"), wanted))
    assert page.evaluate("history.length") == len(been) + 1  # and the empty tab
    for path, wanted in reversed(been[:-1]):
        page.go_back()
        page.wait_for_function(f"location.pathname === '{path}' && {SETTLED}")
        page.wait_for_timeout(500)
        assert (page.evaluate("location.pathname"), words(page)) == (path, wanted)


@pytest.mark.parametrize("path", PAGES)
def test_a_link_of_a_stranger_s_shows_a_page_that_says_what_it_left_out(shared: Server, tab: Tab, path: str) -> None:
    bad = {
        "font": "9" * 400,
        "layer": "1" * 5000,
        "format": "x" * 400,
        "scale": "1e310",
        "expert": "9" * 400,
        "step": "٣",
        "theme": "<b>",
    }
    page = tab(f"{shared.url}/{path}?run=a&" + "&".join(f"{name}={text}" for name, text in bad.items()))
    for name in ("font", "scale"):
        expect(page.get_by_test_id("stToast").filter(has_text=f"{name} was left out of the link")).to_be_visible()
    page.wait_for_function(SETTLED)
    assert page.get_by_test_id("stException").count() == 0
    assert not set(words(page)) & {*bad, "unread"}


@pytest.mark.parametrize("run", ["x" * 400, "/etc", "../runs/a", "%00", "%ff"])
def test_a_link_names_a_run_and_never_a_path(shared: Server, tab: Tab, run: str) -> None:
    page = tab(f"{shared.url}/?run={run}")
    expect(page.get_by_test_id("stToast").filter(has_text="run was left out of the link")).to_be_visible()
    assert page.get_by_test_id("stException").count() == 0


def test_the_icon_comes_with_the_page(shared: Server, tab: Tab) -> None:
    page = tab(f"{shared.url}/?run=a")
    page.wait_for_function("document.querySelector('link[rel~=icon]').href.startsWith('data:image/svg')")


def test_a_chosen_format_is_never_given_in_the_old_one(server: Server, tab: Tab) -> None:
    """Export is pressed at any moment after the choice: the file is the new one, or there is none to press yet."""
    make_run(server.runs, "text").close()
    page = tab(f"{server.url}/export?run=text&figures=loss")
    page.get_by_role("button", name="Export", exact=True).wait_for()
    page.wait_for_function(SETTLED)
    # Of each moment after the click: whether the button can be pressed, and what it says it would give.
    page.evaluate(
        """() => { window.seen = []; const look = () => {
          const box = document.querySelector(".st-key-export-one"), button = box?.querySelector("button");
          const open = !!button && !button.disabled && getComputedStyle(box).pointerEvents !== "none";
          window.seen.push([open, document.body.innerText.includes("as svg")]); requestAnimationFrame(look); }; look(); }"""
    )
    page.locator("[data-testid=stButtonGroup] button, [role=radio]").filter(has_text="svg").first.click()
    clicked = page.evaluate("window.seen.length")
    page.get_by_text(" as svg").wait_for()
    page.wait_for_function(f"{SETTLED} && !!document.querySelector('.st-key-export-one button:enabled')")
    # In the first frames Streamlit has not heard of the click: nobody presses another button within them.
    seen = page.evaluate("window.seen")[clicked + 10 :]
    assert [as_svg for open, as_svg in seen if open and not as_svg] == []
    assert any(not open for open, _ in seen)
    with page.expect_download() as caught:
        page.get_by_role("button", name="Export", exact=True).click()
    assert caught.value.suggested_filename == "text-loss.svg"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """A server behind a proxy that takes a path off and puts its own Host, and that proxy's port."""
    folder = tmp_path_factory.mktemp("proxied")
    runs = folder / "runs"
    make(runs)
    server = Server(runs, log=Path(folder / "log"))
    server.kill()
    with forwarding(server.port, "/user/me/moe", f"127.0.0.1:{server.port}") as port:
        server.variables = {"MOE_ALLOW": f"127.0.0.1:{port},hub.example.org"}
        server.start()
        yield server, port
        server.kill()


@pytest.mark.parametrize("name", ["live", "learn", "export", "sweep"])
def test_a_page_lives_behind_a_proxy_below_a_path_with_a_token(
    guarded: tuple[Server, int], tab: Tab, name: str
) -> None:
    server, port = guarded
    base = f"http://127.0.0.1:{port}/user/me/moe"
    link = LINKS[name].path
    page = tab(f"{base}{link}{'&' if '?' in link else '?'}moe_token={server.token()}")
    wait_until_shown(page, name)
    assert "moe_token" not in page.url
    assert page.url.startswith(base)
    (cookie,) = [one for one in page.context.cookies() if one["name"] == f"moescope-{server.port}"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/user/me/moe")
    assert page.evaluate("document.cookie.includes('moescope')") is False
    page.get_by_test_id("stTopNavLink").filter(has_text="Routing").first.click()
    page.locator("[data-figure=churn] .main-svg").first.wait_for()
    assert page.url.startswith(f"{base}/routing?run=")
    page.reload()
    page.locator("[data-figure=churn] .main-svg").first.wait_for()
