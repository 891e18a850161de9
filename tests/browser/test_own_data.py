"""Every page of runs on people's own data, in a browser: a table, pixels, images, and texts of one name."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from moe_core.__main__ import main
from tests.browser.conftest import end_trainers
from tests.own_data import KINDS, SMALL, task_of, write
from tests.server import ROOT, Server

ROUTING = {"table": "probe_rows", "pixels": "digit_images", "images": "digit_images", "texts": "probe_text"}
FAVOURITE = {"table": "favourite_rows", "pixels": "favourite_images", "images": "favourite_images", "texts": "favourite_bytes"}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a run of each kind, and one more of the table to compare with."""
    runs = tmp_path_factory.mktemp("runs")
    for kind in (*KINDS, "other"):
        folder = tmp_path_factory.mktemp(kind)
        task = "table" if kind == "other" else kind
        words = ["train", *task_of(task, write(task, folder)), *SMALL, "--steps", "12", "--runs", str(runs), "--run-id", kind]  # fmt: skip
        assert main(words) == 0  # in this process: to start another takes longer than its training
    server = Server(runs)
    yield server
    server.kill()
    end_trainers(runs)


def drawn(page: Page, name: str) -> None:
    page.wait_for_function(
        f"!!document.querySelector('[data-figure={name}]')?.querySelector('.main-svg')", timeout=60_000
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_shows_it(own: Server, tab, kind: str) -> None:
    page = tab(f"{own.url}/?run={kind}")
    drawn(page, "balance")
    expect(page.locator(".moepanel-name")).to_have_text(kind)
    expect(page.locator(".moeknob-label").first).to_be_visible()
    page.get_by_text("How your data were read").click()
    said = {"table": "left out: column 'Id'", "pixels": "class: column 'label'", "images": "shown as images of 28 x 28", "texts": "domain b/notes"}  # fmt: skip
    expect(page.locator(".moe-taken")).to_contain_text(said[kind])
    page.goto(f"{own.url}/routing?run={kind}")
    for name in (ROUTING[kind], "tokens_by_expert", "churn"):
        drawn(page, name)
    page.goto(f"{own.url}/experts?run={kind}&expert=2")
    for name in ("expert_rank", "specialisation", FAVOURITE[kind]):
        drawn(page, name)
    beside = "other" if kind == "table" else "table" if kind != "texts" else ""
    page.goto(f"{own.url}/compare?run={kind}" + (f"&with={beside}" if beside else ""))
    drawn(page, "compare_balance")
    page.goto(f"{own.url}/batch?run={kind}")
    drawn(page, "batch_formula")
    page.goto(f"{own.url}/export?run={kind}&figures={ROUTING[kind]},{FAVOURITE[kind]}")
    expect(page.locator("img[alt]")).to_be_visible(timeout=60_000)
    for text in ("cannot be drawn", "Traceback"):
        expect(page.get_by_text(text)).to_have_count(0)


def test_a_row_says_its_values_when_pointed_at(own: Server, tab) -> None:
    page = tab(f"{own.url}/routing?run=table")
    drawn(page, "probe_rows")
    box = page.locator("[data-figure=probe_rows] .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("[data-figure=probe_rows] .hoverlayer")).to_contain_text("spreads from the mean")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 6)
    expect(page.locator("[data-figure=probe_rows] .hoverlayer")).to_contain_text("petal")


def test_a_replay_plays_rows_and_images(own: Server, tab, tmp_path: Path) -> None:
    for kind in ("table", "images"):
        file = tmp_path / f"{kind}.html"
        words = ["export", str(own.runs / kind), "--format", "replay", "--out", str(file)]
        subprocess.run([sys.executable, "-m", "moe_core", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        page = tab(file.as_uri())
        canvas = page.locator("canvas")
        expect(canvas).to_have_attribute("aria-label", f"Colour: the first expert of each {'row' if kind == 'table' else 'image'}, as recorded at step 12.")  # fmt: skip
        painted = (
            "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
        )
        assert canvas.evaluate(painted) > 3
        if kind == "table":
            canvas.hover(position={"x": 10, "y": 10})
            assert canvas.get_attribute("title").startswith("Row 0, of class ")
