"""Screenshots of every page from a real run into docs/screens: `make screens`.

A gate collapses for COLLAPSE steps with both loss weights at 0; then w_importance and w_load are turned up and it
recovers. Both sizes, both themes; the machine's speed decides how long it takes (a few minutes on two cores).
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.chromium import FLAGS, find  # noqa: E402

COLLAPSE, END = 200, 500
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


def shoot(browser: Browser, url: str, name: str, wait_for: str) -> None:
    """One page at both sizes in both themes."""
    out = ROOT / "docs" / "screens"
    out.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        for width, height in SIZES:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector(wait_for, timeout=30_000)
            page.wait_for_timeout(2500)
            page.screenshot(path=out / f"{name}-{theme}-{width}x{height}.png")
            context.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOE_RUNS"] = folder
        record_run("text-demo", "--task", "text")
        record_run("plane-demo", "--task", "plane")
        record_run("digits-demo", "--task", "digits")
        record_run("text-64-experts", "--task", "text", "--num-experts", "64")
        port = free_port()
        server = serve(port)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
                at = f"http://127.0.0.1:{port}"
                drawn = ".js-plotly-plot .main-svg"
                shoot(browser, f"{at}/?run=text-demo", "live", drawn)
                shoot(browser, f"{at}/?run=text-64-experts", "live-64-experts", drawn)
                for task in ("text", "digits", "plane"):
                    shoot(browser, f"{at}/routing?run={task}-demo", f"routing-{task}", drawn)
                    shoot(browser, f"{at}/experts?run={task}-demo", f"experts-{task}", drawn)
                shoot(browser, f"{at}/compare?run=text-demo&with=text-64-experts", "compare", drawn)
                shoot(browser, f"{at}/batch?run=text-demo&devices=16", "batch", drawn)
                shoot(browser, f"{at}/learn?lesson=6&run=text-demo", "learn", drawn)
                browser.close()
        finally:
            server.terminate()
            server.wait(20)
        os.environ["MOE_RUNS"] = str(Path(folder) / "none")
        port = free_port()
        server = serve(port)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
                shoot(browser, f"http://127.0.0.1:{port}/", "start", "text=Plane")
                browser.close()
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
