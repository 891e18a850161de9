"""The throughput measurement: a process of its own, seen through its file, one at a time, stopped on request."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_core.runs import bench_file, measured, start_measuring, stop_measuring
from moe_core.runs.locks import is_locked
from moe_core.schema import Config

SMALL = Config(num_experts=2, d_model=4, d_hidden=4)


def wait(until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return bench_file(tmp_path, SMALL, 1, "cpu", 1)


def test_a_file_is_named_by_what_was_measured(tmp_path: Path) -> None:
    names = {
        bench_file(tmp_path, config, k, device, threads)
        for config in (SMALL, Config(num_experts=2, d_model=4, d_hidden=8))
        for k in (1, 2)
        for device in ("cpu", "cuda:0")
        for threads in (1, 2)
    }
    assert len(names) == 16
    assert all(name.parent == tmp_path / "bench" and ":" not in name.name for name in names)


def test_nothing_measured_is_nothing_wrong(path: Path) -> None:
    measurement = measured(path)
    assert (len(measurement.tokens), measurement.running, measurement.problem) == (0, False, "")


def test_a_measurement_runs_to_its_end_in_the_file(path: Path) -> None:
    assert start_measuring(path, SMALL, 1, "cpu", 1, seconds=0.0)
    assert is_locked(path)
    assert measured(path).running
    assert not start_measuring(path, SMALL, 1, "cpu", 1)  # one at a time
    wait(lambda: not is_locked(path), 120)
    measurement = measured(path)
    assert (measurement.of, len(measurement.tokens), measurement.problem) == (9, 9, "")
    assert measurement.tokens.tolist() == [64 * 2**i for i in range(9)]
    assert (measurement.per_second > 0).all()
    assert "1 thread" in measurement.machine


def test_one_that_is_stopped_keeps_what_it_found_and_says_so(path: Path) -> None:
    start_measuring(path, SMALL, 1, "cpu", 1, seconds=0.5)
    wait(lambda: len(measured(path).tokens) > 0)
    stop_measuring(path)
    wait(lambda: not is_locked(path))
    measurement = measured(path)
    assert 0 < len(measurement.tokens) < 9
    assert "stopped" in measurement.problem
    stop_measuring(path)  # and again, to no effect
    assert start_measuring(path, SMALL, 1, "cpu", 1, seconds=0.0)  # the next begins anew
    assert len(measured(path).tokens) == 0
    stop_measuring(path)
    assert not is_locked(path)


def test_one_that_is_stopped_brings_the_whole_result_before_it_back(path: Path) -> None:
    path.parent.mkdir()
    sizes = [{"event": "size", "tokens": 64, "tokens_per_second": 640.0}]
    path.write_text(
        "".join(json.dumps(e) + "\n" for e in [{"event": "start", "pid": 1, "sizes": [64]}, *sizes, {"event": "end"}])
    )
    assert start_measuring(path, SMALL, 1, "cpu", 1)
    found = measured(path)
    assert (found.running, found.per_second.tolist(), found.progress) == (True, [640], (0.0, "Starting"))
    stop_measuring(path)
    found = measured(path)
    assert (found.running, found.per_second.tolist(), found.earlier) == (False, [640], True)


def test_what_went_wrong_is_its_last_line(path: Path) -> None:
    start_measuring(path, SMALL, 3, "cpu", 1)
    wait(lambda: not is_locked(path))
    assert measured(path).problem == "moe: k must be between 1 and num_experts=2, got 3"


def test_half_a_line_is_not_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"event": "start", "pid": 1, "sizes": [64]}\n[1]\n{"event": "size", "tokens": 64, "tok')
    measurement = measured(path)
    assert (measurement.of, len(measurement.tokens)) == (1, 0)
