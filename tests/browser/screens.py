"""Screenshots of every page from real runs into docs/screens: `make screens`.

A gate collapses for COLLAPSE steps with both loss weights at 0; then w_importance and w_load are turned up and it
recovers. Both sizes, both themes; the machine's speed decides how long it takes (a few minutes on two cores).
`python tests/browser/screens.py --runs FOLDER live batch` keeps what it records in FOLDER, takes what it finds there,
and shoots only the pages named.
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

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.chromium import FLAGS, find  # noqa: E402

COLLAPSE, END = 160, 400
SIZES = ((1280, 800), (1920, 1080))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(*words: str) -> str:
    """One call of the command line, its output."""
    return subprocess.run(
        [sys.executable, "-m", "moe_core", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def record_run(run: str, *flags: str) -> None:
    """Train one run to END, with the weights turned up at COLLAPSE."""
    words = ["train", "--run-id", run, "--w-importance", "0", "--w-load", "0", "--steps", str(END), "--json", *flags]
    words += ["--threads", "1"]
    trainer = subprocess.Popen([sys.executable, "-m", "moe_core", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout
    turned = False
    for line in trainer.stdout:
        event = json.loads(line)
        if not turned and event["event"] == "step" and event["step"] >= COLLAPSE:
            command("set", run, "w_importance=0.1", "w_load=0.1")
            turned = True
    assert trainer.wait() == 0
    assert turned, "the run ended before its weights were turned"


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
    page.wait_for_selector(".js-plotly-plot .main-svg, img[alt], [data-testid=stCode]", timeout=60_000)
    page.wait_for_timeout(1200)


def shoot(browser: Browser, at: str, pages: dict[str, str]) -> None:
    """Each page (name: link) at both sizes in both themes, in full colour: a palette would tint the scales of heatmaps."""
    out = ROOT / "docs" / "screens"
    out.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES:
        for theme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
            page = context.new_page()
            for name, link in pages.items():
                page.goto(at + link)
                drawn(page)
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                picture.save(out / f"{name}-{theme}-{width}x{height}.png", optimize=True)
            context.close()


def record() -> None:
    """What the pages show: a run a task, one with 64 experts, a fork with another weight, a tiny sweep."""
    for task in ("text", "plane", "digits"):
        record_run(f"{task}-demo", "--task", task)
    record_run("text-64-experts", "--task", "text", "--num-experts", "64")
    command("fork", "text-demo", "--at", str(COLLAPSE), "w_load=0.02", "--run-id", "text-fork")
    words = ["--task", "plane", "--w-importance", "0,0.01,0.1", "--w-load", "0,0.01,0.1", "--steps", "150"]
    command("sweep", *words, "--sweep-id", "plane-grid")


PAGES = {
    "live": "/?run=text-demo",
    "live-64-experts": "/?run=text-64-experts",
    "routing-text": "/routing?run=text-demo",
    "routing-digits": "/routing?run=digits-demo",
    "routing-plane": "/routing?run=plane-demo",
    "experts-text": "/experts?run=text-demo",
    "experts-digits": "/experts?run=digits-demo",
    "experts-plane": "/experts?run=plane-demo",
    "compare": "/compare?run=text-demo&with=text-fork",
    "batch": "/batch?run=text-demo&devices=16",
    "sweep": "/sweep?sweep=plane-grid",
    "learn": "/learn?lesson=6&run=text-demo",
    "export": "/export?run=text-demo",
}


def look(pages: dict[str, str]) -> None:
    """Serve the runs of MOE_RUNS and shoot these pages."""
    port = free_port()
    server = serve(port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
            shoot(browser, f"http://127.0.0.1:{port}", pages)
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("pages", nargs="*", metavar="PAGE", help=f"{', '.join(PAGES)}, start (default: all)")
    asked.add_argument("--runs", type=Path, help="keep the runs here, and take them from here")
    given = asked.parse_args()
    names = given.pages or [*PAGES, "start"]
    with tempfile.TemporaryDirectory() as made:
        folder = given.runs or Path(made)
        os.environ["MOE_RUNS"] = str(folder)
        if not (folder / "text-demo").exists():
            record()
        if pages := {name: PAGES[name] for name in names if name != "start"}:
            look(pages)
        if "start" in names:
            os.environ["MOE_RUNS"] = str(Path(made) / "none")
            look({"start": "/"})


if __name__ == "__main__":
    main()
