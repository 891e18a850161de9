"""The dashboard of an installed wheel, opened from a folder that is not the checkout's, offline."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import end_trainers
from tests.browser.test_pages import Tab, step_of, wait_for_step
from tests.server import ask
from tests.wheel import Environment, Installed, build

pytestmark = pytest.mark.browser
PRIMARY = "rgb(11, 98, 208)"  # of .streamlit/config.toml


def test_the_command_opens_the_dashboard_from_any_folder(tab: Tab, tmp_path: Path) -> None:
    """With our settings, whatever lies where it is started; a card starts a run, and the charts move."""
    environment = Environment(tmp_path / "all", build(tmp_path), "all")
    (environment.elsewhere / "moe_core.py").write_text("raise SystemExit('a file of the current folder was imported')")
    theirs = environment.elsewhere / ".streamlit" / "config.toml"
    theirs.parent.mkdir()
    theirs.write_text(
        '[server]\naddress = "0.0.0.0"\n[theme]\nbase = "dark"\n[theme.light]\nprimaryColor = "#FF0000"\n'
    )
    server = Installed(environment, tmp_path / "runs", tmp_path / "log")
    server.runs.mkdir()
    try:
        assert server.said() == f"MoEscope: http://127.0.0.1:{server.port}/\n"
        assert ask(server.port, "/", Host="elsewhere.example")[0] == 403
        page = tab(server.url)
        expect(page.get_by_role("button", name="Text", exact=True)).to_have_css("background-color", PRIMARY)
        page.get_by_role("button", name="Plane", exact=True).click()
        wait_for_step(page, 5)
        wait_for_step(page, step_of(page) + 20)
        (run,) = server.runs.iterdir()
        page.goto(f"{server.url}/export?run={run.name}&figures=loss")
        expect(page.locator("img[alt=Loss]")).to_be_visible()
        page.close()  # before its server ends: a download button may be asking it for its file
    finally:
        server.kill()
        end_trainers(server.runs)
