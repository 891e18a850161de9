"""What must not end, hang or bend somebody's training: a renamed folder, a router of an odd form, ranks that differ, a failing
diagnosis. Each was a fault once."""

import atexit
import math
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_core.diagnosis import marks
from moe_core.figures.pages.words import NOTHING, word_at
from moe_core.recording.holding import HIGH, steer
from moe_core.remedies import COEFFICIENT, of_other_models
from moe_core.runs import open_run
from moe_core.schema import Description, Knob, Layer, Values
from moe_core.schema.description import Loss
from moe_core.watching import ranks as ranks_module
from moe_core.watching import watch
from moe_core.watching.balancing import Balance, cv
from moe_core.watching.ranks import Shared, WatchedRanks
from moe_core.watching.readers import find_taps
from moe_core.watching.routers import Router
from moe_core.watching.state import State
from moe_core.watching.tally import Sums
from moe_core.watching.taps import Taps
from tests.watching.test_counting import D, E, K, Model, batch
from tests.watching.test_live import ended, sgd, train


def test_a_turn_after_the_folder_was_renamed_opens_nothing_anew(tmp_path: Path) -> None:
    """The committing thread is using those connections: closing them under it was a segmentation fault."""
    model = Model()
    optimizer = sgd(model)
    live = watch(model, "a", runs=tmp_path, optimizer=optimizer)
    train(live, model, optimizer, 1)
    live.recorder.committer.settle()
    writer = live.recorder.writer
    assert writer is not None
    connections = writer.db, writer.guard
    live.path.rename(tmp_path / "b")
    live.turn(lr=0.5)
    assert (writer.db, writer.guard) == connections
    train(live, model, optimizer, 1)
    live.close()
    run = open_run(tmp_path / "b")
    assert [(change.name, change.value) for change in run.knob_changes()] == [("lr", 0.5)]
    assert run.steps()[1] == 2


def test_a_router_without_logits_stops_watching_and_not_the_forward() -> None:
    model = Model()
    taps = find_taps(model)

    def read(*given: Any) -> Tensor:
        raise AttributeError("no logits")

    routers = {tap.name: Router("gate", block.gate, read, "softmax", None, None) for tap, block in zip(taps, model.blocks, strict=True)}  # fmt: skip
    failures: list[Exception] = []
    watched = Taps(model, taps, routers, failures.append)
    assert model(batch()).shape == (20, D)
    assert [str(error) for error in failures] == ["no logits"]
    assert watched.silent


class UnweighedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts = E
        self.scale_E = nn.Parameter(torch.ones(E))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor | None = None) -> Tensor:
        return hidden_states * self.scale_E[top_k_index].sum(1, keepdim=True)


class Unweighed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(D, E, bias=False), UnweighedExperts()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.experts(x, self.gate(x).topk(K, dim=1).indices)


def test_an_expert_that_gets_no_weights_cannot_be_off_and_the_forward_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = Unweighed()
    taps = Taps(model, find_taps(model))
    taps.switch_off({0: [1]})
    assert model(batch()).shape == (20, D)
    assert "called without weights" in caplog.text
    assert not taps.off


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("wrong", [{"knobs": {"lr": 3}}, {"balance": "lossfree"}, {"balance": "loss-free"}])
def test_a_watch_that_is_refused_leaves_no_hook(tmp_path: Path, wrong: dict[str, Any]) -> None:
    model = Model()
    optimizer = sgd(model)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        watch(model, "a", runs=tmp_path, optimizer=optimizer, **wrong)
    assert hooks_of(model) == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"knobs": 3}, r"knobs must be a dict, such as knobs=.*, got 3"),
        ({"knobs": [1]}, r"knobs must be a dict, such as knobs=.*, got \[1\]"),
        ({"routers": 3}, r"routers must be a dict, such as routers=.*, got 3"),
        ({"routers": {"0": 3}, "experts": {"0": 4}}, "routers must give a function for '0', got 3"),
        ({"experts": 3}, "experts must be a dict, such as experts=.*, got 3"),
        ({"experts": {"o": 4}}, "experts must name modules that routers= gives a reader for, got 'o'"),
        ({"routers": {"0": print}, "experts": {"0": -1}}, "experts of '0' must be at least 1, got -1"),
        ({"routers": {"0": print}, "experts": {"0": "4"}}, "experts of '0' must be a whole number, got '4'"),
        ({"metrics": "loss"}, r"metrics must be a list of names or Metrics, such as metrics=\['loss'\], got 'loss'"),
        ({"metrics": 3}, "metrics must be a list of names or Metrics, .*, got 3"),
        ({"metrics": ["loss", 3]}, "metrics must be names or Metrics, .*, got 3"),
        ({"metrics": ["loss", "loss"]}, "metrics must have names of their own, got loss twice"),
        ({"metrics": ["x" * 500]}, "must have at most 400 characters"),
        ({"checkpoint": "now"}, "checkpoint must be a function that is called without arguments, got 'now'"),
        ({"also": 3}, "also takes tensorboard, wandb, trackio, or a list of them, got 3"),
        ({"runs": 3}, "runs must be the path of a folder, got 3"),
        ({"runs": "\0"}, r"runs must be the path of a folder, got '\\x00'"),
        ({"probe": torch.ones(1, 2).long(), "tokenizer": 3}, "tokenizer must be that of your model, .*, got 3"),
        ({"probe": ["a"], "tokenizer": 3}, r"which needs watch\(tokenizer=...\), the tokenizer of your model"),
        ({"probe": torch.ones(1, 2).long(), "probe_every": 1.5}, "probe_every must be a whole number, got 1.5"),
        ({"probe": torch.ones(1, 2).long(), "probe_every": "x"}, "probe_every must be a whole number, got 'x'"),
    ],
)  # fmt: skip
def test_an_argument_of_another_type_is_refused_at_once_in_a_line(
    tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    """Not at the first step, when it would only stop the watching."""
    model = Model()
    with pytest.raises(ValueError, match=f"^.*{says}") as refused:
        watch(model, "a", **{"runs": tmp_path, **wrong})
    assert "\n" not in str(refused.value)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("model", [None, 3, Model, [Model()]])
def test_what_is_no_model_is_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ValueError, match=r"watch needs a model that is a torch.nn.Module, got "):
        watch(model, "a", runs=tmp_path)


@pytest.mark.parametrize(("wrong", "shown"), [("left", "'left'"), ([None], r"\[None\]"), ([[1], [1, 0]], r"\[\[1\], ")])
def test_a_mask_that_is_no_tensor_is_refused(tmp_path: Path, wrong: Any, shown: str) -> None:
    live = watch(Model(), "a", runs=tmp_path)
    with pytest.raises(ValueError, match=f"a mask must be a tensor with 0 where a token does not count, got {shown}"):
        live.mask(wrong)


def test_a_misspelt_balance_is_refused_with_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="balance must be one of loss-free, quantile, or None, got 'lossfree'"):
        watch(Model(), "a", runs=tmp_path, balance="lossfree")


def test_a_closed_run_takes_no_turn_and_is_forgotten_at_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone: list[Any] = []
    monkeypatch.setattr(atexit, "unregister", gone.append)
    model = Model()
    optimizer = sgd(model)
    live = watch(model, "a", runs=tmp_path, optimizer=optimizer)
    train(live, model, optimizer, 1)
    live.close()
    live.turn(lr=0.5)
    assert "is closed" in caplog.text
    assert not open_run(live.path).knob_changes()
    assert gone == [live.at_exit]


def test_a_diagnosis_that_fails_is_said_once_and_recording_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 1)

    def fail() -> Any:
        raise ZeroDivisionError("no ceiling")

    monkeypatch.setattr(live.recorder.committer.recent, "new_findings", fail)
    live.recorder.committer.recent.next_diagnosis = 0.0
    for _ in range(3):
        train(live, model, sgd(model), 1)
        live.recorder.committer.settle()
    live.close()
    assert caplog.text.count("not diagnosed any further: no ceiling") == 1
    assert (ended(live).state, ended(live).steps()[1]) == ("finished", 4)


def test_more_balance_is_never_less_of_a_weight() -> None:
    assert steer({"c": 2 * HIGH}, 1.3) == {}
    assert steer({"c": 2 * HIGH}, 0.5) == {"c": HIGH}


def test_autobalance_decides_by_steps_that_follow_each_other() -> None:
    model = Model()
    turned: list[float] = []
    balance = Balance(model, Taps(model, find_taps(model)), None, 0.1, turned.append)
    balance.target = 0.1
    counts_CE1 = torch.tensor([[60, 0, 0, 0, 0, 0, 0]])
    for step in range(2, 26):  # 24 steps, one too few
        balance.update(step, [Sums([0], [step], counts_CE1, None, 1)], [])
    balance.update(1000, [Sums([0], [1000], counts_CE1, None, 1)], [])
    assert not turned
    for step in range(1001, 1026):
        balance.update(step, [Sums([0], [step], counts_CE1, None, 1)], [])
    assert len(turned) == 1


def test_a_rate_that_a_scheduler_sets_after_a_failing_step_stays(tmp_path: Path) -> None:
    model = Model()
    optimizer = sgd(model)
    live = watch(model, "a", runs=tmp_path, optimizer=optimizer)
    train(live, model, optimizer, 1)
    live.turn(lr=0.2)

    def closure() -> float:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        optimizer.step(closure)
    optimizer.param_groups[0]["lr"] = 0.05  # by a scheduler
    train(live, model, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0.05
    live.close()


# Experts that are off


def test_experts_that_are_off_move_no_bias_and_do_not_count_as_uneven() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    balance = Balance(model, taps, None, 0.1, lambda value: None)
    taps.switch_off({0: [0, 1]})
    counts_E1 = torch.tensor([0, 0, 10, 20, 30, 40, 0])
    assert balance._held(0, counts_E1).tolist() == [25, 25, 10, 20, 30, 40]
    assert balance._held(1, counts_E1).tolist() == counts_E1[:-1].tolist(), "of another layer all are on"
    assert cv(counts_E1[:-1], balance._on(0, counts_E1)).item() == pytest.approx(np.std([10, 20, 30, 40]) / 25)
    balance.target = 0.5
    assert balance._held(0, counts_E1).tolist() == [25] * 6, "even enough"


def test_a_watched_layer_that_lost_experts_may_be_less_even_than_one_that_chooses_others() -> None:
    knobs = Values({"off": "1,2"})
    of = SimpleNamespace(experts=8, layer=0, knobs=knobs, description=described(8, 2))
    assert marks(of)[1] == pytest.approx(math.sqrt(6 - 1))
    assert marks(SimpleNamespace(**{**vars(of), "knobs": Values({"off": ""})}))[1] == pytest.approx(
        math.sqrt(8 / 2 - 1)
    )


def described(experts: int, k: int) -> Description:
    layers = (Layer("a", experts, k),)
    return Description("watched", "Model", layers, {"off": Knob("")}, (), Loss("nats", 1.0, "loss"), "none", (), {})


def test_a_coefficient_at_its_largest_is_not_to_be_turned_up(tmp_path: Path) -> None:
    knob = Knob(0.5, 0.0, 1.0)
    advice = [
        of_other_models(
            SimpleNamespace(knobs=Values({COEFFICIENT: value}), description=SimpleNamespace(knobs={COEFFICIENT: knob}))  # type: ignore[arg-type]
        )[0]
        for value in (0.5, 1.0)
    ]
    assert advice[0].startswith(f"Turn {COEFFICIENT} up, which is 0.5")
    assert "at its largest" in advice[1]


def test_a_single_step_of_a_run_that_is_not_paused_says_that_it_pauses(tmp_path: Path) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 1)
    assert [live.obey("step"), live.obey("step"), live.obey("pause")] == [
        "paused; the next step trains one",
        "done",
        "done",
    ]
    live.obey("resume")
    live.close()


def test_a_layer_in_which_nothing_is_selected_is_not_balanced(tmp_path: Path) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 2)
    live.taps.switch_off({0: range(E)})
    train(live, model, sgd(model), 1)
    run = ended(live)
    assert [word_at(run, 0, step) == NOTHING for step in (2, 3)] == [False, True]


def test_a_tokenizer_that_gives_lists_is_named_as_what_is_wrong(tmp_path: Path) -> None:
    def tokenizer(texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": [[1, 2]] * len(texts)}

    with pytest.raises(ValueError, match=r"probe needs a tokenizer that gives tensors .*input_ids are list"):
        watch(Model(), "a", runs=tmp_path, probe=["a"], tokenizer=tokenizer)


def test_a_coefficient_that_the_config_keeps_from_acting_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for at, asked in enumerate((False, True)):
        model = Model()
        model.config = SimpleNamespace(router_aux_loss_coef=0.1, output_router_logits=asked)
        watch(model, f"run-{at}", runs=tmp_path).close()
    assert caplog.text.count("acts only in forwards with output_router_logits=True") == 1


# Compiled models


def test_a_compiled_layer_that_was_never_called_is_not_counted_with_one_expert() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    taps.compiled = True
    taps.tallies[1].add(torch.zeros(5, K, dtype=torch.int64), torch.ones(5, K), None)
    assert [(sums.taps, sums.places) for sums in taps.take()] == [([1], K)]


# Several ranks


def test_every_rank_adds_up_an_array_of_one_shape_whatever_its_batches() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    shapes = []

    def add_up(values: Tensor) -> Tensor:
        shapes.append(tuple(values.shape))
        return 2 * values

    balance = Balance(model, taps, None, 0.1, lambda value: None)
    ranks = SimpleNamespace(add_up=add_up)
    one = Sums([0, 1], [1, 1], torch.ones(2, E + 1, dtype=torch.int64), None, K)
    for sums in ([one], [one, one], []):
        added = balance._over_ranks(sums, ranks)  # type: ignore[arg-type]
        assert [(s.taps, s.counts_CE1.tolist()) for s in added] == [
            ([tap], [[2 * len(sums)] * E + [0]]) for tap in (0, 1) if sums
        ]
    assert shapes == [(2, E)] * 3


def meeting(monkeypatch: pytest.MonkeyPatch, taps: Any) -> tuple[WatchedRanks, Any, list[list[float]]]:
    """A rank that meets alone, its live handle, and what it sent first in each meeting."""
    sent: list[list[float]] = []
    monkeypatch.setattr(
        ranks_module.distributed, "all_reduce", lambda whole, group: sent.append(whole[:2].tolist()), raising=False
    )
    for name, given in (("get_world_size", 1), ("get_rank", 1), ("new_group", None)):
        monkeypatch.setattr(ranks_module.distributed, name, lambda *_, given=given, **__: given)
    ranks = WatchedRanks([E])
    failures: list[str] = []
    live = SimpleNamespace(
        problem="", paused=True, stopping=False, singles=0, number=7, taps=taps, began=0.0,
        recorder=SimpleNamespace(writer=None, layers={0: 0}),
    )  # fmt: skip
    live.fail = lambda error: (failures.append(str(error)), setattr(live, "problem", str(error)))
    live.say = lambda problem: None
    live.failures = failures
    return ranks, live, sent


def test_a_rank_that_cannot_gather_still_meets_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def take() -> Any:
        raise ValueError("planted")

    ranks, live, sent = meeting(monkeypatch, SimpleNamespace(take=take))
    ranks.meet(live)
    assert live.failures == ["planted"]
    assert sent == [[1.0, 0.0]]
    assert Shared([E])["head"].shape == (2,)


def test_the_last_meeting_does_not_wait_for_the_end_of_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, live, sent = meeting(monkeypatch, SimpleNamespace(take=list))
    monkeypatch.setattr(ranks, "_wait", lambda live: pytest.fail("it waits"))
    ranks.meet(live, last=True)
    assert len(sent) == 1


# What live.check puts back


def test_a_check_puts_back_what_a_forward_keeps_in_arrays_queues_and_tuples() -> None:
    model = Model()
    model.seen, model.last, model.pair = np.zeros(3), deque([1, 2], maxlen=4), (torch.zeros(2), [1])
    state = State(model)
    model.seen += 5
    model.last.append(3)
    model.pair[0].add_(1)
    model.pair[1].append(2)
    state.restore()
    assert model.seen.tolist() == [0, 0, 0]
    assert list(model.last) == [1, 2]
    assert (model.pair[0].tolist(), model.pair[1]) == ([0, 0], [1])
