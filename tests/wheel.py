"""The wheel, and environments that have it and what it asks for, nothing else.

No network is needed: what it asks for are links to the packages of the environment that the tests run in.
"""

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.server import ROOT, Server

SETTINGS = ("PYTHONPATH", "PYTHONHOME", "MOE_RUNS", "MOE_ALLOW")  # of whoever runs the tests


def build(folder: Path) -> Path:
    """Build the wheel of the checkout into a folder."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def about(wheel: Path) -> Distribution:
    """Its metadata."""
    (info,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    return PathDistribution(info)


def needed(wheel: Path, extras: Iterable[str]) -> dict[str, Distribution]:
    """By name, what the wheel asks for with these extras, and what that asks for. All of it is within the ranges asked for."""
    packages: dict[str, Distribution] = {}
    waiting = [(about(wheel), set(extras))]
    while waiting:
        asking, wanted = waiting.pop()
        for requirement in map(Requirement, asking.requires or ()):
            marker, name = requirement.marker, canonicalize_name(requirement.name)
            if marker and not any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                continue
            there = distribution(name)
            assert requirement.specifier.contains(there.version, prereleases=True), (
                f"{requirement}, got {there.version}"
            )
            if name not in packages:
                packages[name] = there
                waiting.append((there, requirement.extras))
    return packages


class Environment:
    """A venv with the wheel and what it asks for. extras: of the wheel."""

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.elsewhere = folder / "elsewhere"  # the current folder of what runs in it: not the checkout
        self.elsewhere.mkdir()
        (site,) = folder.glob("lib/python*/site-packages")
        for package in needed(wheel, extras).values():
            for top in {path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():  # parts of google, of backports, come in several packages
                    (site / top).symlink_to(package.locate_file(top))
        words = ["-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]  # fmt: skip
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, elsewhere."""
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return subprocess.run(
            [self.bin / program, *words], cwd=self.elsewhere, env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def lacks(self, *modules: str) -> bool:
        """Whether none of these modules can be imported there."""
        code = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
        return self.run("python", "-c", code, *modules).stdout == "[]\n"


class Installed(Server):
    """The dashboard of an environment, started elsewhere by the command `moescope`."""

    def __init__(self, environment: Environment, runs: Path, log: Path) -> None:
        self.environment, self.folder = environment, environment.elsewhere
        super().__init__(runs, log=log)

    def words(self) -> list[str]:
        return [str(self.environment.bin / "moescope"), "--no-browser", "--port", str(self.port)]
