"""Screenshots of every page from real runs into docs/screens: `make screens`.

A gate collapses with both loss weights at 0; then w_importance and w_load are turned up and it recovers. Both sizes,
both themes; the machine's speed decides how long it takes (six minutes of processor time).
`python tests/browser/screens.py --runs FOLDER live batch` keeps what it records in FOLDER, takes what it finds there,
and shoots only the pages named; `--out FOLDER` puts the pictures elsewhere. `--quick` is the form that a test runs: one page
of a short run, in one size and theme.
"""

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from moe_core.runs import open_run  # noqa: E402
from tests.chromium import FLAGS, find  # noqa: E402

LOOKS = tuple((size, theme) for size in ((1280, 800), (1920, 1080)) for theme in ("light", "dark"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(*words: str) -> str:
    """One call of the command line, its output."""
    return subprocess.run(
        [sys.executable, "-m", "moe_core", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def trainer(run: str, *flags: str) -> "subprocess.Popen[str]":
    words = ["train", "--run-id", run, "--w-importance", "0", "--w-load", "0", "--json", "--threads", "1", *flags]
    return subprocess.Popen([sys.executable, "-m", "moe_core", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def reach(training: "subprocess.Popen[str]", step: int) -> None:
    """Read what a trainer says until it is at a step."""
    assert training.stdout
    for line in training.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] >= step:
            return
    raise AssertionError(f"the run ended before step {step}")


def record_run(run: str, collapse: int, end: int, *flags: str, who: str = "screens", **turned: float) -> None:
    """Train one run to `end`, with its knobs turned at `collapse`: to both weights at 0.1 if nothing else is said."""
    training = trainer(run, "--steps", str(end), *flags)
    reach(training, collapse)
    open_run(run).turn(who=who, **(turned or {"w_importance": 0.1, "w_load": 0.1}))
    training.communicate()
    assert training.returncode == 0


def serve(port: int) -> subprocess.Popen[bytes]:
    words = ["streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
            return server
        except OSError:
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.2)


def drawn(page: Page) -> None:
    """Wait for every chart that the page has a place for, and until nothing moves."""
    page.wait_for_selector(
        ".js-plotly-plot .main-svg, img[alt], [data-testid=stCode], .moeruns tbody tr:visible", timeout=60_000
    )
    seen = "[...document.querySelectorAll('[data-figure]')].filter(one => one.offsetParent && one.getBoundingClientRect().top < innerHeight)"
    page.wait_for_function(f"{seen}.every(one => one.querySelector('.main-svg'))", timeout=60_000)
    page.wait_for_timeout(1200)


def lighter(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours, a third of the bytes: its 160 commonest exactly, so that no ground and no cell is tinted."""
    colours, at, count = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    spread: Any = picture.quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette()
    palette = np.concatenate([colours[np.argsort(-count)[:160]], np.reshape(spread[:288], (-1, 3))])
    points, ends = colours.astype(np.float32), palette.astype(np.float32)
    nearest = ((ends**2).sum(1) - 2 * points @ ends.T).argmin(1).astype(np.uint8)
    light = Image.fromarray(nearest[at].reshape(picture.size[::-1]), "P")
    light.putpalette(palette.astype(np.uint8).tobytes())
    return light


def shoot(browser: Browser, at: str, pages: dict[str, str], out: Path, looks: Any = LOOKS) -> None:
    """Each page (name: link) in each look, which is a size and a theme."""
    out.mkdir(parents=True, exist_ok=True)
    for (width, height), theme in looks:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, bypass_csp=True
        )  # what it waits for is evaluated within the page
        page = context.new_page()
        for name, link in pages.items():
            page.goto(at + link)
            drawn(page)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            lighter(picture).save(out / f"{name}-{theme}-{width}x{height}.png", optimize=True)
        context.close()


def record() -> None:
    """What the pages show: a run a task, one with 64 experts, one with 12 layers, a fork with another weight, a lesson's, a tiny sweep."""
    record_run("text-demo", 320, 800, "--task", "text")
    for task in ("plane", "digits"):
        record_run(f"{task}-demo", 160, 400, "--task", task)
    record_run("text-64-experts", 120, 300, "--task", "text", "--num-experts", "64")
    record_run("text-12-layers", 60, 120, "--task", "text", "--layers", "12")
    record_run("text-lesson", 120, 200, "--task", "text", who="lesson 6", w_importance=1.0)
    command("fork", "text-demo", "--at", "320", "w_load=0.02", "--run-id", "text-fork")
    words = ["--task", "plane", "--w-importance", "0,0.01,0.1", "--w-load", "0,0.01,0.1", "--steps", "150"]
    command("sweep", *words, "--sweep-id", "plane-grid")


PAGES = {
    "live": "/?run=text-demo&layer=2",
    "live-past": "/?run=text-demo&layer=2&step=300",
    "live-64-experts": "/?run=text-64-experts",
    "live-layers": "/?run=text-12-layers&layer=4&step=60",
    "routing-text": "/routing?run=text-demo",
    "routing-digits": "/routing?run=digits-demo",
    "routing-plane": "/routing?run=plane-demo",
    "experts-text": "/experts?run=text-demo&layer=2",
    "experts-digits": "/experts?run=digits-demo",
    "experts-plane": "/experts?run=plane-demo",
    "compare": "/compare?run=text-demo&with=text-fork",
    "batch": "/batch?run=text-demo&devices=16",
    "sweep": "/sweep?sweep=plane-grid",
    "learn": "/learn?lesson=6&run=text-lesson&layer=2",
    "export": "/export?run=text-demo",
    "runs": "/runs?run=text-demo",
}


APART = ("start", "live-training", "live-paused")  # the pages of no run, and of one that goes on


def look(pages: dict[str, str], out: Path, looks: Any = LOOKS) -> None:
    """Serve the runs of MOE_RUNS and shoot these pages."""
    port = free_port()
    server = serve(port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
            shoot(browser, f"http://127.0.0.1:{port}", pages, out, looks)
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def look_at_one_that_goes_on(names: list[str], out: Path) -> None:
    """A run while it trains, slowly so that four pictures are of one moment, and then paused."""
    training = trainer("digits-now", "--task", "digits", "--speed-limit", "30")
    try:
        reach(training, 200)
        command("set", "digits-now", "speed_limit=1")
        if "live-training" in names:
            look({"live-training": "/?run=digits-now"}, out)
        command("pause", "digits-now")
        if "live-paused" in names:
            look({"live-paused": "/?run=digits-now"}, out)
    finally:
        command("stop", "digits-now")
        training.communicate()


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = [*PAGES, *APART]
    asked.add_argument("pages", nargs="*", metavar="PAGE", help=f"{', '.join(every)} (default: all)")
    asked.add_argument("--runs", type=Path, help="keep the runs here, and take them from here")
    asked.add_argument("--out", type=Path, default=ROOT / "docs" / "screens", help="where the pictures go")
    asked.add_argument("--quick", action="store_true", help="one page of a short run, to see that it works")
    given = asked.parse_args()
    names = given.pages or every
    if unknown := set(names) - set(every):
        asked.error(f"no page {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    with tempfile.TemporaryDirectory() as made:
        folder = given.runs or Path(made) / "runs"
        os.environ["MOE_RUNS"] = str(folder.absolute())
        if given.quick:
            # A trainer tells of a step once a second; one as fast as this task's would be done before the first word.
            record_run("plane-quick", 20, 100, "--task", "plane", "--speed-limit", "25")
            look({"live-quick": "/?run=plane-quick"}, given.out, LOOKS[:1])
            return
        pages = {name: PAGES[name] for name in names if name in PAGES}
        if pages and not (folder / "text-demo").exists():
            record()
        if pages:
            look(pages, given.out)
        os.environ["MOE_RUNS"] = str(Path(made) / "apart")  # so that neither is chosen for the other's sake
        if "start" in names:
            look({"start": "/"}, given.out)
        if set(names) & {"live-training", "live-paused"}:
            look_at_one_that_goes_on(names, given.out)


if __name__ == "__main__":
    main()
