"""ablate: what it measures is what leaving an expert out by hand costs, and what it leaves is read back without torch."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moe_core.__main__ import main
from moe_core.nn.models import build
from moe_core.runs import Ablation, Run, StoreError, create_run, read_ablation, write_ablation
from moe_core.schema import Config, Knobs, as_dict
from moe_core.training import checkpoint
from moe_core.training.ablate import ablate, nearest
from moe_core.training.data import load

CONFIG = Config.for_task("plane", num_experts=4, layers=2, tokens=64, d_model=8, d_hidden=8)
KNOBS = Knobs(k=1)


def crafted(folder, step: int = 7):
    """A run whose first layer sends all points to expert 2 (counted from 0), while its second layer uses all four."""
    data = load(CONFIG)
    torch.manual_seed(0)
    model = build(CONFIG, data.features, data.classes, 1)
    with torch.no_grad():
        first, second = model.moe_layers
        model.norms[0].weight.zero_()
        model.norms[0].bias.fill_(1.0)  # every token comes to the first gate as ones
        first.gate.w_gate.zero_()
        first.gate.w_gate[:, 2] = 1.0
        first.gate.w_gate[:, 3] = 0.5
        first.w2[3] *= 100  # all goes through 2; without it, to 3, which makes noise of it
        second.gate.w_gate.normal_()
    create_run(folder, CONFIG, KNOBS).finish("finished")
    checkpoint.write(folder, step, {"model": model.state_dict(), "step": step, "knobs": as_dict(KNOBS)})
    return Run(folder), model.eval(), data


def loss_of(model, data) -> float:
    batches = data.held_out()
    logits = torch.cat([model(b.inputs, 1, 0.0)[0] for b in batches])
    return F.cross_entropy(logits, torch.cat([b.targets for b in batches])).item()


@torch.no_grad()
def test_the_rise_is_what_leaving_an_expert_out_by_hand_costs(tmp_path) -> None:
    run, model, data = crafted(tmp_path / "a")
    told = []
    found = ablate(run, progress=lambda done, of: told.append((done, of)))
    whole = loss_of(model, data)
    assert found.step == 7
    assert found.loss == pytest.approx(whole, rel=1e-6)
    assert told == [(done, 8) for done in range(8)]
    # In the first layer nothing goes to 0, 1 and 3: leaving them out changes nothing; 2 carries everything.
    assert found.share_LE[0].tolist() == [0, 0, 1, 0]
    assert found.rise_LE[0, [0, 1, 3]].tolist() == [0, 0, 0]
    model.moe_layers[0].gate.w_gate[:, 2] = -1.0  # so that every token goes to expert 3, the next best
    assert found.rise_LE[0, 2] == pytest.approx(loss_of(model, data) - whole, rel=1e-4)
    assert abs(found.rise_LE[0, 2]) > 0.01
    assert abs(found.rise_LE[1]).max() > 0.01
    assert found.share_LE.sum(1).tolist() == pytest.approx([1, 1])


def test_the_checkpoint_nearest_to_a_step_is_taken(tmp_path) -> None:
    run, _, _ = crafted(tmp_path / "a", step=10)
    checkpoint.write(run.path, 30, checkpoint.read(nearest(run, None)))
    assert [nearest(run, at).name for at in (None, 1, 19, 20, 21, 999)] == [
        checkpoint.name_of(step) for step in (30, 10, 10, 30, 30, 30)
    ]


def test_the_command_prints_the_most_missed_first_and_leaves_a_file(tmp_path, capsys) -> None:
    crafted(tmp_path / "a")
    out = tmp_path / "table.csv"
    assert main(["ablate", "--runs", str(tmp_path), "a", "--json", "--out", str(out)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rises = [e["rise"] for e in events[:-1]]
    assert rises == sorted(rises, reverse=True)
    assert len(rises) == 8
    assert {(e["layer"], e["expert"]) for e in events[:-1]} == {(i, j) for i in (1, 2) for j in (1, 2, 3, 4)}
    kept = Run(tmp_path / "a").ablation()
    assert kept.rise_LE[events[0]["layer"] - 1, events[0]["expert"] - 1] == rises[0]
    assert events[-1]["step"] == kept.step == 7
    assert [float(line.split(",")[2]) for line in out.read_text().splitlines()[1:]] == rises
    assert main(["ablate", "--runs", str(tmp_path), "a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert "at step 7" in lines[0]


def test_a_run_without_a_checkpoint_is_told_how_to_get_one(tmp_path, capsys) -> None:
    create_run(tmp_path / "a", CONFIG, KNOBS).finish("finished")
    assert main(["ablate", "--runs", str(tmp_path), "a"]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    assert Run(tmp_path / "a").ablation() is None


def test_what_is_written_is_read_back_nan_too(tmp_path) -> None:
    rise = np.array([[0.5, math.nan], [-0.1, 0.0]])
    write_ablation(tmp_path, Ablation(3, 1.5, rise, np.full((2, 2), 0.5)))
    found = read_ablation(tmp_path)
    assert (found.step, found.loss) == (3, 1.5)
    np.testing.assert_array_equal(found.rise_LE, rise)
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 1, "loss": 1, "rise": [[1]], "share": [[1, 2]]}', '{"step": 1}'])
def test_a_damaged_file_is_said_to_be_one(text: str, tmp_path) -> None:
    (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(StoreError, match="run `ablate` again"):
        read_ablation(tmp_path)
