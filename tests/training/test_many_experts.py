"""Runs with many experts and many layers: trained for a few steps, read back, drawn, and written as CSV."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_core.__main__ import main
from moe_core.figures.catalog import FIGURES, shows, tiles_of
from moe_core.runs import Run, open_run, verify
from moe_core.runs.codec import LARGEST
from moe_core.runs.columns import COLUMNS, read_layout
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, check, layout, meta_of
from moe_core.training import evaluation, telemetry, window
from moe_core.training.again import resume
from moe_core.training.session import train
from tests.own_data import write

TINY = {"d_model": 8, "d_hidden": 4, "threads": 1, "eval_every": 4, "churn_every": 2, "checkpoint_every": 0.0}
CASES = {
    "300": ("plane", {"num_experts": 300, "layers": 1, "tokens": 300}, {"k": 300}),
    "1024": ("digits", {"num_experts": 1024, "layers": 2, "tokens": 256}, {"k": 4, "strategy": "expert-choice"}),
    "48": ("text", {"num_experts": 8, "layers": 48, "tokens": 32, "context": 16}, {"strategy": "loss-free"}),
    "groups": ("plane", {"num_experts": 1024, "groups": 256, "layers": 1, "tokens": 64}, {"k_primary": 128}),
}


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    task, config, knobs = CASES[request.param]
    if task == "text":  # of 48 layers the usual evaluation takes longer than all else here
        config = config | {"text": tuple(write("texts", tmp_path_factory.mktemp("texts")))}
    given = Config.for_task(task, steps=4, device="cpu", **TINY | config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SAMPLE_BYTES", 8)
        folder, state = train(given, Knobs(**knobs), tmp_path_factory.mktemp("runs"), "many")
    assert state == "finished"
    return open_run(folder)


def test_it_is_read_as_it_was_trained(run: Run) -> None:
    L, E = run.config.layers, run.config.num_experts
    assert verify(run) == []
    assert run.steps() == (1, 4)
    assert run.history("counts", L - 1)[1].shape == (4, E)
    _, arrays = run.snapshot() or (0, {})
    assert arrays["experts"].dtype == (np.uint16 if E > 255 else np.uint8)
    assert arrays["experts"].shape[:2] == (L, 256)
    assert E > 255 or arrays["experts"].max() < E
    assert run.evals()[-1].counts is not None
    assert run.evals()[-1].counts.shape == (L, E)


def test_every_figure_and_tile_is_drawn_of_the_first_and_the_last_layer(run: Run) -> None:
    names = [name for name in FIGURES if shows(run, name)]
    assert len(names) > 12
    for layer in {0, run.config.layers - 1}:
        for name in names:
            spec = FIGURES[name].draw.spec(**FIGURES[name].read(run, At(layer, None, None, 100)))
            assert spec["data"] or name == "knobs", name  # none was turned
        for page in ("live", "routing", "experts"):
            assert tiles_of(page, run, At(layer))


def test_it_is_written_as_csv_and_gone_on_with(run: Run, tmp_path: Path) -> None:
    assert main(["export", str(run.path), "--format", "csv", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.csv"))) > 8
    if run.config.num_experts == 300:
        run.close()
        assert resume(open_run(run.path), 6)[1] == "finished"
        assert open_run(run.path).steps() == (1, 6)


def test_the_widest_run_fits_in_a_record() -> None:
    widest, _ = check(Config(num_experts=1024, layers=256), Knobs())
    columns = layout(widest.layers, widest.num_experts)
    assert read_layout([list(column) for column in columns]) == columns
    wide = columns[-1].start + columns[-1].width
    assert wide < COLUMNS
    assert 4 * wide * 80 < LARGEST  # steps of one commit
    assert meta_of(Knobs, "k").high == meta_of(Config, "groups").high == 1024
    for name, most in (("num_experts", 1025), ("layers", 257)):
        with pytest.raises(ValueError, match=f"{name} must be between 1 and {most - 1}"):
            check(Config(**{name: most}), Knobs())


@pytest.mark.parametrize(("k", "E"), [(1, 4), (2, 4), (2, 300), (4, 300), (20, 300)])
def test_pairs_are_counted_the_same_either_way(k: int, E: int) -> None:
    torch.manual_seed(0)
    experts_TK = torch.rand(50, E + 1).topk(k).indices  # E: an empty place
    by_hand = np.zeros((E, E))
    for row in experts_TK.tolist():
        for i in row:
            for j in row:
                if i < E and j < E:
                    by_hand[i, j] += 1
    assert np.array_equal(window.together(experts_TK, E).numpy(), by_hand)


def test_what_would_be_too_large_for_a_snapshot_is_left_out(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    """Its charts then draw axes and no data, as before the first step."""
    if run.config.num_experts != 300:
        pytest.skip("one run is enough")
    monkeypatch.setattr(telemetry, "LARGE", 4 * 300 * 299)
    folder, _ = train(run.config, run.started_knobs, tmp_path, "left-out")
    left_out = open_run(folder)
    _, arrays = left_out.snapshot(kind="full") or (0, {})
    assert set(arrays) == {"clean_gates", "w_gate", "specialisation_class"}
    for name in ("coactivation", "specialisation", "similarity"):
        assert FIGURES[name].draw.spec(**FIGURES[name].read(left_out, At(0, None, None, 100)))["layout"]
