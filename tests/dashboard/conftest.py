"""What the tests of pages begin with."""

from pathlib import Path

import pytest


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, which the pages read."""
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    return tmp_path
