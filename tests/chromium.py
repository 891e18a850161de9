"""Find a Chromium for the browser tests, or bring one: on the machine, else playwright's, else the system's package.

`python tests/chromium.py` makes sure that there is one and prints its path; without one it says so and the browser
tests, which ask `find()`, fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Chromium looks things up on the network at its start unless told not to; tests reach this machine only.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find() -> str | None:
    """The path of a Chromium: the variable CHROMIUM, else one on the PATH, else the one playwright keeps."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    on_path = next((path for name in NAMES if (path := shutil.which(name))), None)
    return on_path or _playwrights()


def _playwrights() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def bring() -> str | None:
    """Find one, or install one and find it; None if none can be had."""
    if found := find():
        return found
    attempts = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        attempts.append([["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]])
    for attempt in attempts:
        try:
            for command in attempt:
                subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"could not bring a Chromium with {attempt[-1][0]}: {error}", file=sys.stderr)
        if found := find():
            return found
    return None


if __name__ == "__main__":
    path = bring()
    print(
        path
        or "no Chromium could be had: install one, or name it in the variable CHROMIUM; the browser tests will fail"
    )
