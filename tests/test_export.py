"""Cells of the CSV, and files that are whole or not there."""

from types import SimpleNamespace

import numpy as np
import pytest

from moe_core import export
from moe_core.schema import Config


def test_cells_are_safe_and_exact():
    assert export.table({"=x": [1, float("nan")], "y": [np.float32(0.1)]}) == "'=x,y\n1,0.100000001\n,\n"


def test_what_there_is_not_is_refused_before_anything_is_written(tmp_path):
    run = SimpleNamespace(config=Config())
    for given in ({"formats": ["png"]}, {"figures": ["regions"]}, {"layer": 2}, {"theme": "pink"}):
        with pytest.raises(ValueError, match=r"there are|between"):
            export.export(run, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        export.export(run, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_real_run_gives_the_same_bytes_twice(tmp_path):
    from moe_core.runs import store
    from moe_core.schema import Knobs, layout

    config = Config(num_experts=4, layers=1)
    tokens = np.full(256, 65, np.uint8)
    writer = store.create_run(tmp_path / "runs" / "r", config, Knobs(), probe={"tokens": tokens}, facts={})
    columns = layout(1, 4)
    writer.commit(store.Batch(1, np.ones((8, columns[-1].start + columns[-1].width), np.float32)))
    writer.finish("finished")
    run = store.open_run("r", runs=tmp_path / "runs")
    first = {path.name: path.read_bytes() for path in export.export(run, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in export.export(run, tmp_path / "b")}
    assert first == again
    assert {"load_share.csv", "load_share.html", "statistics.csv"} <= set(first)
    lines = first["load_share.csv"].decode().splitlines()
    assert lines[1] == "1,0.25,0.25,0.25,0.25"
    assert len(lines) == 9
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(first)
