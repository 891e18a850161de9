"""How the whole run is spread over the cores of a machine, and where its files lie: `make test`."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # a folder that Linux keeps in memory, and the bytes that must be free in it
NAME, FOLDER = "moe-tests-", pytest.StashKey[Path]()

# Files of few tests that take long each: begun last, one of them would keep a worker busy when the others have ended.
LONG = (
    "browser/test_links.py",
    "test_gpu_benchmark.py",
    "parallel/test_hosts.py",
    "sweep/test_running.py",
    "browser/test_short_forms.py",
    "browser/test_sweep.py",
    "browser/test_learn.py",
    "browser/test_wheel.py",
    "browser/test_own_data.py",
    "browser/test_states.py",
    "browser/test_findings.py",
    "browser/test_",
    "test_wheel.py",
    "training/test_faults.py",
    "runs/test_beside.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, each whole. xdist keeps this order when it is told not to put files of many tests first."""
    places = [f"tests/{part}" for part in LONG]
    items.sort(key=lambda item: next((at for at, part in enumerate(places) if item.nodeid.startswith(part)), len(LONG)))


def pytest_configure(config: pytest.Config) -> None:
    """Temporary files lie in memory where there is room: a record is synced at each commit, and a disk takes milliseconds for that."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        return  # a worker has it from its parent
    for left in MEMORY.glob(f"{NAME}*-*"):  # by a run that failed, or was killed
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix=f"{NAME}{os.getpid()}-", dir=MEMORY)
    config.stash[FOLDER] = Path(tempfile.tempdir)
    config.stash[FOLDER].chmod(0o711)  # as one may go through /tmp: some tests look at files as another user


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What tests left is there to be looked at until the next run, if one failed."""
    if exitstatus != pytest.ExitCode.TESTS_FAILED and (folder := session.config.stash.get(FOLDER, None)):
        shutil.rmtree(folder, ignore_errors=True)
