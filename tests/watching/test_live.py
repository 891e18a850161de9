"""The live handle: what it records of a model that is trained in somebody's own loop, and what can be turned meanwhile."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_core.diagnosis import Finding
from moe_core.recording import recent
from moe_core.runs import Run, StoreError, list_runs, open_run, verify
from moe_core.schema import columns_of
from moe_core.watching import Knob, Live, StopTraining, recorder, watch
from moe_core.watching.measuring import Rows, Step
from moe_core.watching.tally import SCORE_STATS, Sums
from tests.watching.test_counting import D, E, K, Model, batch, reference


def train(live: Live, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[Tensor]:
    """A plain loop on fresh tokens; the losses."""
    losses = []
    for step in range(steps):
        x = torch.randn(20, D, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        live.step(loss=loss)
        losses.append(loss.detach())
    return losses


@pytest.fixture
def model() -> Model:
    return Model()


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.01)


def ended(live: Live) -> Run:
    live.close()
    return open_run(live.path)


def test_a_loop_of_ones_own_is_recorded_exactly(model: Model, tmp_path: Path) -> None:
    optimizer, expected, losses = sgd(model), [], []
    live = watch(model, "mine", optimizer=optimizer, runs=tmp_path)
    for step in range(30):
        x = torch.randn(20, D, generator=torch.Generator().manual_seed(step))
        expected.append(reference(model.eval(), x))
        model.train()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        live.step(loss=loss, grad_norm=2.5)
        losses.append(loss.item())
    run = ended(live)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 30), [])
    for layer in range(2):
        steps, counts = run.history("counts", f"blocks.{layer}.experts")
        assert steps.tolist() == list(range(1, 31))
        assert counts.tolist() == [row[layer] for row in expected]
        assert (run.history("importance", layer)[1].sum(1) < 20).all()  # of weights that sum to less than 1
    assert run.history("loss")[1].tolist() == pytest.approx(losses)
    assert set(run.history("grad_norm")[1]) == {2.5}
    description = run.description
    assert (description.origin, description.task) == ("watched", "Model")
    assert [(layer.name, layer.experts, layer.k) for layer in description.layers] == [
        ("blocks.0.experts", E, K),
        ("blocks.1.experts", E, K),
    ]
    assert description.settings["optimizer"] == "SGD"
    (listed,) = list_runs(tmp_path)
    assert (listed.id, listed.problem) == ("mine", "")


def test_training_computes_the_same_bits_watched_or_not(tmp_path: Path) -> None:
    def run(watched: bool) -> tuple[list[Tensor], list[Tensor]]:
        model = Model()
        optimizer = sgd(model)
        if watched:
            live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
        else:
            live = type("Nobody", (), {"step": lambda self, **said: None})()
        return train(live, model, optimizer, 20), [p.detach().clone() for p in model.parameters()]

    for plain, watched in zip(run(False), run(True), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


def test_what_is_turned_acts_in_the_recorded_step(model: Model, tmp_path: Path) -> None:
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, knobs={"noise": Knob(1.0, 0, 4, help="mine")}, runs=tmp_path)
    train(live, model, optimizer, 3)
    assert live.knobs.noise == 1.0
    Run(live.path).turn("me", noise=0.5, lr=0.0)
    train(live, model, optimizer, 1)  # read when the fourth step is done
    assert (live.knobs.noise, live.knobs.lr) == (0.5, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    train(live, model, optimizer, 2)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    live.turn(lr=0.1)
    train(live, model, optimizer, 1)
    assert not all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1
    run = ended(live)
    assert [(c.name, c.value, c.who, c.step) for c in run.knob_changes()] == [
        ("noise", 0.5, "me", 5),
        ("lr", 0.0, "me", 5),
        ("lr", 0.1, "script", 7),
    ]
    with pytest.raises(ValueError, match="noise must be between 0 and 4"):
        Run(live.path).turn("me", noise=9)


def test_groups_keep_their_ratio_and_a_schedule_goes_on(model: Model, tmp_path: Path) -> None:
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": others, "lr": 0.02}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    seen: list[list[float]] = []
    live.turn(lr=0.2)

    def note(optimizer, args, kwargs) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])

    optimizer.register_step_pre_hook(note)
    for _ in range(2):
        train(live, model, optimizer, 1)
        schedule.step()
    live.close()
    assert seen == [pytest.approx([0.2, 0.04]), pytest.approx([0.1, 0.02])]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.005])


def test_an_expert_that_is_off_adds_nothing_and_is_not_counted(model: Model, tmp_path: Path) -> None:
    live = watch(model, "a", runs=tmp_path)
    optimizer = sgd(model, 0.0)
    train(live, model, optimizer, 1)
    x = batch()
    with torch.no_grad():
        weights, ids = model.blocks[1].gate(model.blocks[0](x)).softmax(1).topk(K, dim=1)
        wanted = model.blocks[0](x) * (1 + (weights * (ids != 1)).sum(1, keepdim=True))
        live.turn(off="2:2")
        assert torch.allclose(model(x), wanted)
    train(live, model, optimizer, 2)
    live.turn(off="")
    train(live, model, optimizer, 1)
    run = ended(live)
    counts = run.history("counts", 1)[1]
    assert [row[1] == 0 for row in counts] == [False, True, True, False]
    assert [c.value for c in run.knob_changes()] == ["2:2", ""]


def test_pause_waits_single_steps_are_taken_and_stop_ends(model: Model, tmp_path: Path) -> None:
    asked: list[str] = []
    optimizer = sgd(model)
    live = watch(model, "a", checkpoint=lambda: asked.append("saved") or "saved to here", runs=tmp_path)
    train(live, model, optimizer, 2)
    Run(live.path).command("checkpoint")
    Run(live.path).command("pause")
    Run(live.path).command("step")
    train(live, model, optimizer, 1)  # pause is read, and one more step asked for
    Run(live.path).command("stop")
    with pytest.raises(StopTraining, match="stopped after step 4"):
        train(live, model, optimizer, 1)
    run = open_run(live.path)
    assert (run.state, run.steps(), asked) == ("stopped", (1, 4), ["saved"])
    assert [(c.name, c.result) for c in run.commands()] == [
        ("checkpoint", "saved to here"),
        ("pause", "done"),
        ("step", "done"),
        ("stop", "done"),
    ]


def test_with_an_error_is_recorded_and_goes_on_its_way(model: Model, tmp_path: Path) -> None:
    optimizer = sgd(model)

    def fail() -> None:
        with watch(model, "a", runs=tmp_path) as live:
            train(live, model, optimizer, 3)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    run = open_run("a", tmp_path)
    assert (run.state, run.status().reason) == ("failed", "KeyError: 'mine'")
    assert not model.blocks[0].experts._forward_pre_hooks
    with watch(model, "b", runs=tmp_path) as live:
        train(live, model, optimizer, 1)
        Run(live.path).command("stop")
        train(live, model, optimizer, 1)
        raise AssertionError("it went on")
    assert open_run("b", tmp_path).state == "stopped"


def test_evaluations_are_recorded_with_their_selections(model: Model, tmp_path: Path) -> None:
    live = watch(model, "a", metrics=["loss", "accuracy"], runs=tmp_path)
    train(live, model, sgd(model), 2)
    model.eval()(batch())
    model.train()
    live.eval(loss=1.5, accuracy=0.5)
    run = ended(live)
    (evaluation,) = run.evals()
    assert (evaluation.step, evaluation.metrics) == (2, {"loss": 1.5, "accuracy": 0.5})
    assert [row.tolist() for row in evaluation.counts] == reference(model, batch())
    assert run.history("counts", 0)[1].sum() == 2 * 20 * K


def test_what_goes_wrong_in_watching_never_ends_the_training(
    model: Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = sgd(model)
    live = watch(model, "a", runs=tmp_path)
    train(live, model, optimizer, 2)

    def fail(*_: object) -> None:
        raise OSError("a hook of ours is broken")

    monkeypatch.setattr(live.taps, "_keep", fail)
    with caplog.at_level(logging.ERROR):
        train(live, model, optimizer, 3)
    live.close()
    assert [record.getMessage() for record in caplog.records] == [
        "MoEscope stopped watching a after step 2: a hook of ours is broken. The training goes on."
    ]
    run = open_run(live.path)
    reason = "watching stopped, and the training went on: a hook of ours is broken"
    assert (run.state, run.status().reason, run.steps()) == ("failed", reason, (1, 2))


def test_mistakes_are_one_line(model: Model, tmp_path: Path) -> None:
    live = watch(model, "a", runs=tmp_path)
    with pytest.raises(
        ValueError, match=r"live.step takes loss, task_loss, grad_norm, got accuracy; of a held-out split"
    ):
        live.step(accuracy=1.0)
    with pytest.raises(ValueError, match="no knob 'nois'"):
        live.turn(nois=1)
    live.step(loss=1.0)
    live.step(loss=1.0)
    with pytest.raises(RuntimeError, match="no expert of Model was called in 3 steps; looked for modules"):
        live.step(loss=1.0)
    train(watch(model, "taken", runs=tmp_path), model, sgd(model), 1)
    with pytest.raises(StoreError, match="run taken exists already"):
        watch(model, "taken", runs=tmp_path)
    with pytest.raises(ValueError, match="knobs must have names of their own, and off is a knob of the model already"):
        watch(model, "b", knobs={"off": Knob(0.0)}, runs=tmp_path)
    with pytest.raises(ValueError, match=r"optimizer must be a torch.optim.Optimizer, got int"):
        watch(model, "b", optimizer=3, runs=tmp_path)


def test_a_router_holds_still_while_it_is_frozen(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.watching.families import build
    from tests.watching.test_taps import batch as tokens

    model = build("mixtral")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    assert {"lr", "weight_decay", "freeze_router", "off", "router_aux_loss_coef"} <= set(live.knobs)

    def step() -> tuple[bool, bool]:
        router, head = model.model.layers[0].mlp.gate.weight, model.lm_head.weight
        before = router.detach().clone(), head.detach().clone()
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        live.step(loss=loss)
        return torch.equal(router, before[0]), torch.equal(head, before[1])

    assert step() == (False, False)
    live.turn(freeze_router=1)
    assert step() == (True, False)
    live.turn(freeze_router=0)
    assert step() == (False, False)
    run = ended(live)
    margin = run.history("router_margin", 0)[1]
    assert np.isfinite(margin).all()
    assert (margin > 0).all()


def test_the_diagnosis_tells_listeners_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "EVERY", 0.0)
    monkeypatch.setattr(recent, "REST", 0)
    monkeypatch.setattr(recorder, "FLUSH", 0.0)
    with torch.no_grad():
        model.blocks[1].gate.weight.zero_()  # every token goes to the same two
    live = watch(model, "a", runs=tmp_path)
    heard: list[Finding] = []
    live.on_alert(heard.append)
    for _ in range(130):
        train(live, model, sgd(model, 0.0), 1)
        live.recorder.committer.settle()
    live.close()
    assert [(finding.rule, finding.layer) for finding in heard] == [
        ("collapse", 1), ("constant_bias", 1), ("dead_experts", 1),
    ]  # fmt: skip
    assert heard[0].since == 1


def test_a_mask_holds_until_the_step_is_done(model: Model, tmp_path: Path) -> None:
    live = watch(model, "a", runs=tmp_path)
    live.mask(torch.arange(20) < 13)
    train(live, model, sgd(model), 2)
    assert ended(live).history("counts", 0)[1].sum(1).tolist() == [13 * K, 20 * K]


def test_of_several_forwards_counts_are_added_and_scores_averaged() -> None:
    """Of layer 0, two forwards in step 1 and one in step 2."""
    scores_SC = torch.tensor([[1.0, 3.0, 5.0]] * len(SCORE_STATS))
    counts_CE1 = torch.tensor([[1, 2, 0], [3, 4, 0], [5, 6, 0]])
    columns = columns_of((2,), ("seconds", "counts", "dead_experts", *SCORE_STATS))
    steps = [Step(1, 0.5, {}), Step(2, 0.5, {}), Step(3, 0.5, {})]
    rows_nC = Rows(columns, {7: 0}).make(steps, [Sums([7, 7, 7], [1, 1, 2], counts_CE1, None, 1, scores_SC)])
    of = {c.stat: rows_nC[:, c.start : c.start + c.width].tolist() for c in columns}
    assert of["counts"][:2] == [[4, 6], [5, 6]]
    assert np.isnan(of["counts"][2]).all(), "nothing was counted"
    assert of[SCORE_STATS[0]] == [[2], [5], [5]], "the third step has what was measured last"


def test_what_was_measured_last_and_selected_last_goes_on_over_flushes() -> None:
    columns = columns_of((2,), ("seconds", "counts", "dead_experts", *SCORE_STATS))
    rows = Rows(columns, {0: 0})
    of = {c.stat: slice(c.start, c.start + c.width) for c in columns}
    first = Sums([0], [2], torch.tensor([[1, 0, 0]]), None, 1, torch.full((len(SCORE_STATS), 1), 7.0))
    rows.make([Step(2, 0.5, {})], [first])
    later = Sums([0, 0], [99, 100], torch.tensor([[5, 5, 0], [0, 1, 0]]), None, 1)
    rows_nC = rows.make([99, Step(100, 0.5, {}), Step(101, 0.5, {}), Step(102, 0.5, {})], [later])
    assert np.isnan(rows_nC[0]).all(), "a step that was not kept has no row"
    assert rows_nC[1:, of[SCORE_STATS[0]]].tolist() == [[7], [7], [7]]
    assert rows_nC[1, of["counts"]].tolist() == [0, 1]
    assert np.isnan(rows_nC[2:, of["counts"]]).all(), "what was selected in step 99 is in no other row"
    assert rows_nC[1:, of["dead_experts"]].tolist() == [[0], [0], [1]], "expert 0 was selected last in step 2"


def test_scores_are_measured_in_every_tenth_step_and_after_a_slow_one(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.watching.live.SLOW", 1e9)
    live = watch(model, "a", runs=tmp_path)
    heard = []
    for step in range(1, 14):
        heard += [step] if live.taps.listening else []
        if step == 12:
            monkeypatch.setattr("moe_core.watching.live.SLOW", 0.0)
        train(live, model, sgd(model), 1)
    assert heard == [1, 11, 13]


def test_a_commit_is_a_sign_of_life_and_between_commits_there_are_others(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 1)
    beats: list[int] = []
    monkeypatch.setattr(live.recorder.committer, "beat", lambda: beats.append(live.number))
    live.recorder.next_flush = live.recorder.next_beat = 0.0
    train(live, model, sgd(model), 1)
    assert not beats
    assert live.recorder.next_beat < time.monotonic() + 2 * recorder.BEAT
    live.recorder.next_flush, live.recorder.next_beat = float("inf"), 0.0
    train(live, model, sgd(model), 1)
    assert beats == [3]


def test_a_turn_is_asked_for_until_it_is_taken(model: Model, tmp_path: Path) -> None:
    live = watch(model, "a", runs=tmp_path, optimizer=sgd(model))
    train(live, model, sgd(model), 1)
    writer = live.recorder.writer
    assert writer is not None
    assert not writer.asked()
    open_run(live.path).turn("page", lr=0.5)
    assert writer.asked()
    assert writer.asked(), "asking takes nothing"
    train(live, model, sgd(model), 1)
    assert live.knobs.lr == 0.5
    assert not writer.asked()


def test_sums_of_kept_and_forgotten_steps_are_kept(model: Model, tmp_path: Path) -> None:
    kept = watch(model, "a", runs=tmp_path).recorder
    kept.steps = [Step(number, 0.1, {}) for number in (1, 2, 3)]
    both, old = (Sums([0, 0], steps, torch.ones(2, E + 1), None, K) for steps in ([2, 3], [1, 2]))
    kept.sums = [both, old]
    kept._forget(2)
    assert kept.steps[:2] == [1, 2]
    assert kept.steps[2].number == 3
    assert kept.sums == [both]
