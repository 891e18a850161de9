"""What several of these tests begin with."""

from pathlib import Path

import pytest

from moe_core.schema import Knobs
from moe_core.sweep import Sweep, jobs, make_plan, make_sweep
from tests.sweep.made import CONFIG, record


@pytest.fixture
def recorded(tmp_path: Path) -> Sweep:
    """Two cells, two seeds: the first cell is done, the second has one run done and one that has not begun."""
    sweep = make_sweep(make_plan(CONFIG, Knobs(w_load=0.0), {"w_importance": [0.0, 0.3]}, seeds=2), tmp_path, "s")
    for job, load, accuracy in zip(
        jobs(sweep)[:3], ([1, 1, 0, 0], [1, 1, 1, 1], [2, 2, 1, 1]), (0.5, 0.9, 0.7), strict=True
    ):
        record(job, tmp_path, load, accuracy).finish("finished")
    return sweep
