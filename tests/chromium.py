"""Find a Chromium for the browser tests, or bring one: on the machine, else playwright's, else the system's package.

`python tests/chromium.py` makes sure that there is one that starts and prints its path; without one it says so and the
browser tests, which ask `find()`, fail.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What playwright turns off too: of two such flags Chromium obeys the last. And the lists below the address bar: they are two pages of
# Chromium's own, which it loads for each window, also where no window is shown.
OFF = (
    "AimEnabled", "AvoidCorsURLLoaderRestartOnRedirect", "AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose",
    "HttpsFirstBalancedModeAutoEnable", "HttpsUpgrades", "LensOverlay", "MediaRouter", "NetworkTimeServiceQuerying",
    "OptimizationHints", "PaintHolding", "PreconnectToSearch", "ThirdPartyStoragePartitioning",
    "WebUIOmniboxAimPopup", "WebUIOmniboxPopup",
)  # fmt: skip
# Chromium looks things up on the network at its start unless told not to; tests reach this machine only.
FLAGS = [
    f"--disable-features={','.join(OFF)}",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@cache
def find() -> str | None:
    """The path of a Chromium: the variable CHROMIUM, else the first that starts, on the PATH or of playwright's keeping."""
    if named := os.environ.get("CHROMIUM"):
        return named
    return next((path for path in candidates() if starts(path)), None)


def candidates() -> Iterator[str]:
    yield from (path for name in NAMES if (path := shutil.which(name)))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    if Path(path).exists():
        yield path


def starts(path: str) -> bool:
    """One may lie there and lack libraries, or only be a word that says how to install it."""
    words = [path, *FLAGS, "--headless", "--dump-dom", "about:blank"]
    try:
        done = subprocess.run(words, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
    except (subprocess.SubprocessError, OSError):
        return False
    return done.returncode == 0 and b"<html" in done.stdout


def bring() -> str | None:
    """Find one, or install one and find it; None if none can be had."""
    if path := find():
        return path
    playwright = [sys.executable, "-m", "playwright"]
    attempts = [[[*playwright, "install", "chromium"]]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        attempts.append([[*playwright, "install-deps", "chromium"]])  # the libraries that the one above may lack
        attempts.append([["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]])
    for attempt in attempts:
        try:
            for command in attempt:
                subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"could not bring a Chromium with {attempt[-1][0]}: {error}", file=sys.stderr)
        find.cache_clear()
        if path := find():
            return path
    return None


if __name__ == "__main__":
    path = bring()
    print(
        path
        or "no Chromium could be had: install one, or name it in the variable CHROMIUM; the browser tests will fail"
    )
