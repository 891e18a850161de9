"""Statistics and windows against counting by hand, and a probe that looks without touching."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_core.nn.choices import churn, saturation
from moe_core.nn.models import build
from moe_core.schema import DEAD_AFTER, STATS, WINDOW, Config, layout
from moe_core.training.data import load
from moe_core.training.telemetry import Probe, Telemetry, dropped, spread, unrouted
from moe_core.training.window import Window

CONFIG = Config.for_task("plane", num_experts=4, layers=2, tokens=32, d_model=8, d_hidden=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(CONFIG, 2, 2, k=2)


def routings_of(model, step: int = 1):
    return model(load(CONFIG).batch(step).inputs, 2, 1.0)[1]


def test_a_row_has_every_stored_statistic_where_the_layout_says(model) -> None:
    telemetry = Telemetry(CONFIG, torch.device("cpu"))
    routings = routings_of(model)
    telemetry.record(1, torch.tensor(3.0), torch.tensor(2.0), torch.tensor(1.0), 0.5, routings)
    first, rows = telemetry.take()
    columns = layout(2, 4)
    assert first == 1
    assert rows.shape == (1, columns[-1].start + columns[-1].width)
    assert {c.stat for c in columns} == {s.name for s in STATS if s.stored and not s.ranks}
    at = {(c.stat, c.layer): rows[0, c.start : c.start + c.width] for c in columns}
    assert at["loss", -1] == 3
    assert at["task_loss", -1] == 2
    assert at["grad_norm", -1] == 1
    assert at["seconds", -1] == 0.5
    for layer, routing in enumerate(routings):
        assert np.allclose(at["importance", layer], routing.gates_TE.sum(0).detach())
        assert np.allclose(at["load", layer], routing.load_E.detach())
        assert at["counts", layer].sum() == 2 * 32
        assert np.allclose(at["noise_scale", layer], routing.noise_std_TE.mean().detach())
        assert np.allclose(at["logit_spread", layer], routing.clean_logits_TE.std(1, correction=0).mean().detach())
        assert np.allclose(at["top1_gate", layer], routing.gates_TE.max(1).values.mean().detach())
        assert at["unrouted", layer] == 0
        assert at["dropped", layer] == at["dead_experts", layer] == 0
        assert np.isnan([at["churn", layer], at["saturation", layer]]).all()  # nothing to compare with yet
    assert telemetry.take()[1].size == 0


def test_the_tasks_gradient_is_held_until_it_is_measured_again_and_by_a_checkpoint(model) -> None:
    telemetry, one = Telemetry(CONFIG, torch.device("cpu")), torch.tensor(1.0)
    at = [c.start for c in layout(2, 4) if c.stat == "task_gradient"]
    routings = routings_of(model)
    for step, measured in enumerate([None, torch.tensor([0.5, 0.25]), None, torch.tensor([0.0, 2.0]), None], 1):
        telemetry.record(step, one, one, one, 0.1, routings, measured)
    rows = telemetry.take()[1][:, at]
    assert np.isnan(rows[0]).all()  # not measured yet
    assert rows[1:].tolist() == [[0.5, 0.25], [0.5, 0.25], [0, 2], [0, 2]]
    again = Telemetry(CONFIG, torch.device("cpu"))
    again.restore(telemetry.state())
    again.record(6, one, one, one, 0.1, routings)
    assert again.take()[1][0, at].tolist() == [0, 2]
    again.restore({name: value for name, value in telemetry.state().items() if name != "task_gradient"})  # an older one


def test_a_run_that_is_gone_on_with_gets_rows_in_its_own_columns(model) -> None:
    """Those that an earlier version measured, in the order that it had."""
    columns = layout(2, 4, ["task_loss", "counts", "loss"])
    telemetry = Telemetry(CONFIG, torch.device("cpu"), columns)
    routings = routings_of(model)
    telemetry.record(1, torch.tensor(3.0), torch.tensor(2.0), torch.tensor(1.0), 0.5, routings)
    (row,) = telemetry.take()[1]
    counts = [float(n) for routing in routings for n in routing.counts_E]
    assert row.tolist() == [2.0, *counts, 3.0]
    assert [(c.stat, c.layer, c.start, c.width) for c in columns] == [
        ("task_loss", -1, 0, 1), ("counts", 0, 1, 4), ("counts", 1, 5, 4), ("loss", -1, 9, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("flush", [1, 7, 1000])
def test_an_expert_is_dead_after_so_many_steps_without_a_selection(model, flush: int) -> None:
    telemetry = Telemetry(CONFIG, torch.device("cpu"))
    one = torch.tensor(1.0)
    routings = [r._replace(counts_E=torch.tensor([32, 32, 0, 0])) for r in routings_of(model)]
    woken = [r._replace(counts_E=torch.tensor([32, 31, 1, 0])) for r in routings]
    taken = []
    for step in range(1, DEAD_AFTER + 2):
        telemetry.record(step, one, one, one, 0.1, woken if step == DEAD_AFTER + 1 else routings)
        if step % flush == 0:
            taken.append(telemetry.take())
    taken.append(telemetry.take())
    assert [first for first, rows in taken if len(rows)] == list(range(1, DEAD_AFTER + 2, flush))
    at = next(c.start for c in layout(2, 4) if c.stat == "dead_experts")
    dead = np.concatenate([rows[:, at] for _, rows in taken if len(rows)])
    assert dead[DEAD_AFTER - 2] == 0
    assert dead[DEAD_AFTER - 1] == 2
    assert dead[DEAD_AFTER] == 1


def test_windows_count_exactly_the_last_steps(model) -> None:
    window = Window(CONFIG, {"class": 2})
    routing = routings_of(model)[0]
    old = routing._replace(experts_TK=torch.tensor([[3, 2]]))
    new = routing._replace(experts_TK=torch.tensor([[0, 1], [0, 2]]))
    window.add([old], {"class": torch.tensor([1])})
    for _ in range(WINDOW):
        window.add([new], {"class": torch.tensor([0, 1])})
    together = window.coactivation()[0]
    assert together.tolist() == [[1, 0.5, 0.5, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert window.specialisation("class")[0].tolist() == [[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]]


def test_churn_and_saturation_by_hand() -> None:
    before = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 0]])
    now = torch.tensor([[0, 2], [3, 2], [2, 3], [3, 0]])
    assert churn(now, before, 4) == 0.5
    assert saturation(now, before, 4) == (0.5 + 1 + 0 + 1) / 4
    assert saturation(now[:, :1], before, 4) == (1 + 1 + 0 + 1) / 4


def test_a_token_without_an_expert_counts_for_no_saturation() -> None:
    before = torch.tensor([[0, 1], [2, 4], [4, 4], [4, 4]])
    now = torch.tensor([[0, 4], [2, 1], [3, 4], [4, 4]])
    assert saturation(now, before, 4) == pytest.approx((1 + 0.5 + 0) / 3)
    assert saturation(torch.full((2, 1), 4), before[:2], 4).isnan()
    assert churn(now, before, 4) == 0.25


def test_the_first_expert_is_that_of_the_first_place_that_is_not_empty() -> None:
    before = torch.tensor([[4, 1], [4, 1], [4, 4]])
    assert churn(torch.tensor([[1, 2], [2, 1], [4, 4]]), before, 4) == pytest.approx(1 / 3)


def test_empty_places_are_in_no_window(model) -> None:
    window = Window(CONFIG, {"class": 2})
    routing = routings_of(model)[0]._replace(experts_TK=torch.tensor([[0, 1], [0, 4], [4, 4]]))
    window.add([routing], {"class": torch.tensor([0, 1, 1])})
    assert window.coactivation()[0].tolist() == [[1, 0.5, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert window.specialisation("class")[0].tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0]]


def test_drops_and_tokens_without_an_expert_are_counted(model) -> None:
    full = routings_of(model)[0]
    part = full._replace(
        experts_TK=torch.tensor([[0, 1], [4, 2], [4, 4], [4, 4]]),
        counts_E=torch.tensor([3, 3, 2, 0]),
        kept_E=torch.tensor([1, 1, 1, 0]),
    )
    assert dropped(part) == pytest.approx(5 / 8)
    assert unrouted(part.experts_TK, 4) == 0.5
    telemetry = Telemetry(CONFIG, torch.device("cpu"))
    lost = full._replace(
        experts_TK=part.experts_TK, counts_E=part.counts_E, kept_E=part.kept_E, dropped_from_TK=full.experts_TK
    )
    telemetry.record(1, torch.tensor(3.0), torch.tensor(2.0), torch.tensor(1.0), 0.5, [full, lost])
    row = telemetry.take()[1][0]
    at = {(c.stat, c.layer): row[c.start] for c in layout(2, 4)}
    assert [at["dropped", 0], at["dropped", 1]] == [0, pytest.approx(5 / 8)]
    assert [at["unrouted", 0], at["unrouted", 1]] == [0, 0.5]
    counts = next(c for c in layout(2, 4) if c.stat == "counts" and c.layer == 1)
    assert row[counts.start : counts.start + 4].tolist() == [3, 3, 2, 0]  # before the drop


@pytest.mark.parametrize(("num_experts", "kind"), [(4, "uint8"), (255, "uint8"), (256, "uint16")])
def test_a_snapshot_of_a_ragged_routing_has_places_for_the_token_with_most(num_experts, kind) -> None:
    config = replace(CONFIG, num_experts=num_experts)
    torch.manual_seed(0)
    model = build(config, 2, 2, k=2, strategy="expert-choice")
    with torch.no_grad():
        model.moe_layers[0].gate.w_gate[:, 0] += 1.0
    asked, window = {"k": 2, "strategy": "expert-choice"}, Window(config, {"class": 2})
    probe = Probe(config, load(config), torch.device("cpu"))
    inputs = load(config).batch(1)
    window.add(model.eval()(inputs.inputs, **asked)[1], inputs.labels)
    kinds = probe.snapshot(model, asked, True, window)()
    experts, gates = kinds["probe"]["experts"], kinds["probe"]["gates"]
    assert experts.dtype == kind
    assert experts.shape == gates.shape
    assert experts.max() == num_experts  # an empty place
    assert (gates[experts == num_experts] == 0).all()
    for layer in range(2):
        counts = np.bincount(experts[layer].ravel(), minlength=num_experts + 1)[:num_experts]
        assert (counts == round(2 * 256 / num_experts)).all()
    assert kinds["full"]["specialisation_class"].sum(-1) == pytest.approx(1)
    assert kinds["full"]["coactivation"].shape == (2, num_experts, num_experts)


def test_a_look_draws_nothing_and_leaves_the_model_training(model) -> None:
    telemetry, probe = Telemetry(CONFIG, torch.device("cpu")), Probe(CONFIG, load(CONFIG), torch.device("cpu"))
    window = Window(CONFIG, {"class": 2})
    window.add(routings_of(model), load(CONFIG).batch(1).labels)
    model.train()
    before = torch.get_rng_state()
    kinds = probe.snapshot(model, {"k": 2}, full=True, window=window)()
    choices = probe.compare(probe.look(model, {"k": 2}), telemetry)()["choices"]["experts"]
    assert np.array_equal(choices, kinds["probe"]["experts"])
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    shapes = {kind: {name: (a.shape, a.dtype.name) for name, a in arrays.items()} for kind, arrays in kinds.items()}
    assert shapes == {
        "probe": {
            "experts": ((2, 256, 2), "uint8"),
            "gates": ((2, 256, 2), "float16"),
            "regions": ((2, 64, 64), "uint8"),
        },
        "full": {
            "clean_gates": ((2, 256, 4), "float16"),
            "w_gate": ((2, 8, 4), "float16"),
            "coactivation": ((2, 4, 4), "float32"),
            "specialisation_class": ((2, 2, 4), "float32"),
        },
    }
    assert np.allclose(kinds["probe"]["gates"].sum(-1), 1, atol=2e-3)


def test_a_region_is_where_the_model_sends_that_point(model) -> None:
    with torch.no_grad():
        for layer in model.moe_layers:
            layer.gate.w_gate.normal_()
    probe = Probe(CONFIG, load(CONFIG), torch.device("cpu"))
    regions = probe.snapshot(model, {"k": 2}, False, Window(CONFIG, {"class": 2}))()["probe"]["regions"]
    x0, x1, y0, y1 = load(CONFIG).probe()[1]["extent"]
    row, column = 50, 7
    point = torch.tensor([[x0 + (x1 - x0) * (column + 0.5) / 64, y0 + (y1 - y0) * (row + 0.5) / 64]])
    model.eval()
    first = [int(r.experts_TK[0, 0]) for r in model(point, 2, 0.0)[1]]
    assert first == regions[:, row, column].tolist()
    assert len(np.unique(regions)) > 1


def test_the_second_comparison_says_what_moved_and_a_look_says_nothing(model) -> None:
    telemetry, probe = Telemetry(CONFIG, torch.device("cpu")), Probe(CONFIG, load(CONFIG), torch.device("cpu"))
    first = probe.compare(probe.look(model, {"k": 2}), telemetry)()["choices"]["experts"]
    assert telemetry.churn_L.isnan().all()
    assert telemetry.saturation_L.isnan().all()
    with torch.no_grad():
        model.moe_layers[0].gate.w_gate.normal_()
    probe.snapshot(model, {"k": 2}, True, Window(CONFIG, {"class": 2}))()
    second = probe.compare(probe.look(model, {"k": 2}), telemetry)()["choices"]["experts"]
    assert telemetry.churn_L[0] == pytest.approx((first[0, :, 0] != second[0, :, 0]).mean())
    assert telemetry.churn_L[0] > 0


def test_the_spread_of_logits_leaves_out_an_expert_that_is_off() -> None:
    logits = torch.tensor([[1.0, 3.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    assert spread(logits) == 0.5
    assert spread(torch.full((2, 3), -torch.inf)) == 0
