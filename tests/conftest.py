"""How the whole run is spread over the cores of a machine: `make test`."""

import pytest

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
