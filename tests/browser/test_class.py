"""A teacher and one of the class, each in a browser of their own, at a server that asks for a token."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from moe_core.dashboard.gate import LOOKING
from tests.browser.conftest import end_trainers
from tests.server import Server

pytestmark = pytest.mark.browser


@pytest.fixture
def school(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "runs").mkdir()
    server = Server(tmp_path / "runs", log=tmp_path / "log", MOE_ALLOW="class.example.org")
    yield server
    server.kill()
    end_trainers(server.runs)


def test_the_class_sees_what_the_teacher_starts_and_turns(school: Server, tab: Callable[..., Page]) -> None:
    look = re.findall(r"learn\?moe_token=([\w-]+)", school.said())[0]
    viewer = tab(f"{school.url}/learn?moe_token={look}", width=390, height=844)
    expect(viewer.get_by_text("the teacher shows nothing new now")).to_be_visible()
    teacher = tab(f"{school.url}/learn?moe_token={school.token()}")
    teacher.get_by_text("For the class").click()
    expect(teacher.get_by_text("Open this page by the address that the class uses")).to_be_visible()
    teacher.get_by_role("button", name="Start for the class").click()
    expect(viewer.get_by_text("This page follows the class.")).to_be_visible()
    viewer.wait_for_function("() => document.querySelector('[data-figure]')?.layout?.meta?.step > 0")
    expect(teacher.get_by_text("1 page looks")).to_be_visible()
    teacher.keyboard.press("Escape")

    viewer.get_by_test_id("stExpandSidebarButton").click()
    expect(viewer.locator(".moepanel").get_by_text(LOOKING)).to_be_visible()
    for name in ("Pause", "Step", "Fork", "Stop"):
        expect(viewer.get_by_role("button", name=name, exact=True)).to_be_disabled()
    viewer.locator(".moepanel-chooser").click()
    expect(viewer.locator(".moeruns-over .moeruns-name")).to_be_visible()
    expect(viewer.get_by_role("button", name="New run")).to_have_count(0)  # which they cannot start
    viewer.keyboard.press("Escape")
    teacher.get_by_role("slider", name="k, experts per token").press("ArrowRight")
    expect(viewer.locator(".moepanel-change").first).to_contain_text("k 2")
    teacher.get_by_role("radio", name="2", exact=True).click()
    expect(viewer.get_by_role("heading", name="2. Softmax gating")).to_be_visible()
    assert "lesson" not in viewer.url  # so that it follows on
