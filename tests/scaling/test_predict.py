"""The prediction at its limits, where it is known."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.runs import Batch, create_run, hold_lock, open_run, resume_run
from moe_core.runs.estimate import SECONDS
from moe_core.scaling.measured import LEAST, OneDevice, measured_by_hand, measured_run
from moe_core.scaling.predict import MOST, Network, Plan, Prediction, dealt, predict, shared, step_seconds, work
from moe_core.schema import Config, Knobs, columns_of

CONFIG, NETWORK = Config.for_task("text"), Network(1e9, 1e-5)
PERFECT = Network(1e30, 0.0)
ONE = measured_by_hand(CONFIG, Knobs(), 0.03)
EVEN = ONE._replace(rows_SLE=np.full((1, 2, 16), 128.0))


def told(one: OneDevice = EVEN, devices: int = 8, network: Network = NETWORK, **plan: int | bool | None) -> Prediction:
    expert = plan.pop("expert", None) or (devices if plan.get("grow") else shared(devices, one.config.num_experts))
    return predict(one, Plan(devices, expert, **plan), network)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [{}, {"strong": True}, {"grow": True}, {"whole": False}, {"cores": 1}])
def test_one_device_is_the_run(plan: dict[str, bool]) -> None:
    found = told(ONE, 1, **plan)
    assert found.seconds == pytest.approx(0.03)
    assert (found.communication, found.sent_bytes, found.max_over_mean_devices) == (pytest.approx(0), 0, 1)
    assert (found.efficiency, found.experts, found.tokens, found.rows_per_expert) == (pytest.approx(1), 16, 1024, 128)


def test_a_perfect_network_leaves_what_is_computed() -> None:
    """Of even devices that decide for their own tokens all work but the parameters' and experts' own is as on one."""
    found = told(network=PERFECT, whole=False)
    assert found.communication == pytest.approx(0)
    assert 0.9 * 0.03 < found.seconds < 0.03
    assert told(network=PERFECT, whole=False, grow=True).seconds > found.seconds  # more experts are scored
    deciding = told(network=PERFECT).seconds - found.seconds
    L, T, E = 2, 1024, 16
    scale = 0.03 / sum(work(EVEN, Plan(1, 1), CONFIG) * np.array([1, 2 * 2048]))
    assert deciding == pytest.approx(scale * 7 * (SECONDS[3] * L * T * E + SECONDS[7] * L * T))


def test_where_nothing_is_computed_a_step_is_its_messages_and_bytes() -> None:
    idle = EVEN._replace(seconds=0.0)
    waits, sent = told(idle, network=Network(1e30, 1e-3)), told(idle, network=Network(1e6, 0.0))
    assert waits.communication == sent.communication == 1
    # 8 devices in a group: rows, decisions of two tensors, numbers of rows; gradients, norm, loss, orders.
    assert waits.seconds == pytest.approx(1e-3 * (2 * (4 * 7 + 2 * 7 + 7) + 14 + 14 + 14 + 2 * 3))
    assert sent.seconds == pytest.approx(sent.sent_bytes / 8 / 1e6)


def test_the_most_loaded_device_keeps_the_others_waiting() -> None:
    """All rows to the first two of 16 experts: on 8 devices one has all, and receives all that is sent."""
    hot = EVEN._replace(rows_SLE=np.array([[[1024.0, 1024] + [0] * 14] * 2]))
    even, uneven = told(network=PERFECT), told(hot, network=PERFECT)
    assert (even.max_over_mean_devices, uneven.max_over_mean_devices) == (1, 8)
    assert uneven.max_over_mean_experts == 8
    scale = 0.03 / sum(work(EVEN, Plan(1, 1), CONFIG) * np.array([1, 2 * 2048]))
    row = SECONDS[2] * 2 * 64 * 32 * scale
    assert uneven.seconds - even.seconds == pytest.approx(row * 2 * 2048 * 7)
    assert uneven.communication > 0  # the others wait, though nothing takes time to send
    slow = Network(1e6, 0.0)
    rows = 4 * 4 * 64 * 2 * 2048 * 7 / 8 / 1e6
    sends = [told(one._replace(seconds=0.0), network=slow).seconds for one in (EVEN, hot)]
    assert sends[1] - sends[0] == pytest.approx(7 * rows)
    assert told(hot).sent_bytes == told().sent_bytes


def test_the_slowest_of_each_layer_counts() -> None:
    """Another device may be the slowest in each layer, and a layer may have none."""
    first_E, last_E, even_E = (np.zeros(16) for _ in range(3))
    first_E[0] = last_E[15] = 2048
    even_E[:] = 128

    def seconds(*layers: Any) -> float:
        return told(EVEN._replace(rows_SLE=np.stack(layers)[None]), 16, PERFECT).seconds

    assert seconds(first_E, last_E) == pytest.approx(seconds(first_E, first_E))
    assert seconds(first_E, even_E) == pytest.approx((seconds(first_E, first_E) + seconds(even_E, even_E)) / 2)


def test_devices_that_share_cores_share_their_time() -> None:
    alone, two, one = (told(network=PERFECT, cores=cores).seconds for cores in (None, 2, 1))
    assert (two, one) == (pytest.approx(4 * alone), pytest.approx(8 * alone))
    assert told(network=PERFECT, cores=99).seconds == alone
    hot = EVEN._replace(rows_SLE=np.array([[[2048.0] + [0] * 15] * 2]))
    plan, config = Plan(2, 2, cores=1), CONFIG
    rows_GLM = np.array([[[4096.0, 0.0]] * 2])
    seconds, busy = step_seconds(hot, plan, PERFECT, config, rows_GLM)
    assert seconds == pytest.approx(busy)  # the core is never idle


def test_weak_scaling_fixes_the_devices_batch_and_strong_that_of_all() -> None:
    weak, strong = told(), told(strong=True)
    assert (weak.tokens, weak.rows_per_expert) == (8192, 8 * 128)
    assert (strong.tokens, strong.rows_per_expert) == (1024, 128)
    assert dealt(EVEN, Plan(8, 8, strong=True)).tokens == 128
    assert strong.seconds < 0.03 < weak.seconds
    # A gate keeps the scores of all tokens that it decides for.
    assert (weak.score_bytes, strong.score_bytes) == (34 * 2 * 8192 * 16, 34 * 2 * 1024 * 16)
    assert told(whole=False).score_bytes == 34 * 2 * 1024 * 16
    # Of a large batch all work is tokens'.
    large = measured_by_hand(replace(CONFIG, tokens=65536), Knobs(), 2.0)
    assert 0.98 < told(large, network=PERFECT, strong=True, whole=False).efficiency < 1


def test_groups_have_each_their_experts_and_their_part_of_the_rows() -> None:
    found = told(devices=32)
    assert (found.expert_parallel, found.experts, found.rows_per_expert) == (16, 16, 2048)
    assert told(devices=8, expert=4, strong=True).rows_per_expert == 64
    assert told(devices=32, expert=4).rows_per_expert == 512
    assert told(devices=32, expert=4).weight_bytes > found.weight_bytes


def test_experts_that_grow_keep_rows_and_experts_of_a_device() -> None:
    found = told(ONE, 64, grow=True)
    assert (found.experts, found.rows_per_expert, found.expert_parallel) == (1024, 128, 64)
    assert found.max_over_mean_experts > told(ONE, 64).max_over_mean_experts
    of_experts = 16 * 2 * 16 * 2 * 64 * 32
    assert of_experts < found.weight_bytes < told(ONE, 128, grow=True).weight_bytes


@pytest.mark.parametrize("config", [{"num_experts": 1}, {"num_experts": 16}, {"layers": 1}, {"precision": "bfloat16"}])
def test_one_choice_and_one_expert_are_as_any(config: dict[str, int]) -> None:
    one = measured_by_hand(replace(CONFIG, **config), Knobs(k=1), 0.02)
    assert told(one, 1).seconds == pytest.approx(0.02)
    found = told(one, 4)
    assert np.isfinite(found).all()
    if one.config.num_experts == 1:
        assert (found.expert_parallel, found.max_over_mean_experts, found.max_over_mean_devices) == (1, 1, 1)


@pytest.mark.parametrize("plan", [{}, {"strong": True}, {"grow": True}, {"whole": False}])
def test_more_devices_send_more_and_are_used_less(plan: dict[str, bool]) -> None:
    rows = [told(ONE, 2**n, **plan) for n in (range(4) if plan.get("strong") else range(0, 13, 2))]
    for fewer, more in pairwise(rows):
        assert more.sent_bytes > fewer.sent_bytes
        assert more.efficiency < fewer.efficiency * 1.05  # the parameters are dealt too
    assert rows[-1].efficiency < rows[0].efficiency
    slow = predict(ONE, Plan(8, 8), Network(1e8, 1e-5)).seconds
    late = predict(ONE, Plan(8, 8), Network(1e9, 1e-4)).seconds
    assert min(slow, late) > told(ONE).seconds


def test_what_is_drawn_is_drawn_again() -> None:
    assert told(ONE) == told(ONE)
    assert told(ONE).max_over_mean_devices != predict(ONE, Plan(8, 8), NETWORK, seed=1).max_over_mean_devices


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(0, 1), "--devices must be between 1 and 65,536, got 0"),
        (Plan(2 * MOST, 1), "got 131,072"),
        (Plan(8, 3), "--expert-parallel must divide the number of devices, got 3 for 8"),
        (Plan(8, 0), "got 0 for 8"),
        (Plan(96, 32), "--expert-parallel must divide the 16 experts, got 32; change it, or add --grow-experts"),
        (Plan(16, 16, strong=True), "a batch of 8 sequences cannot be dealt over 16 devices"),
        (Plan(8, 8, cores=0), "--cores must be at least 1"),
    ],
)
def test_what_cannot_be_dealt_is_refused_in_one_line(plan: Plan, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        predict(EVEN, plan, NETWORK)
    assert "\n" not in str(caught.value)


def test_more_experts_than_fit_into_memory_are_refused() -> None:
    many = measured_by_hand(replace(CONFIG, num_experts=1024), Knobs(), 1.0)
    for plan in (Plan(MOST, 1), Plan(MOST, MOST, grow=True)):
        with pytest.raises(ValueError, match="would have 134,217,728 experts in all layers and groups, more than"):
            predict(many, plan, NETWORK)


# What a run says


def record(folder: Path, steps: int = 60, knobs: Knobs | None = None, **facts: object) -> OneDevice:
    """A run whose steps take 1 s at first and then 0.25 s, all choices going to the first two of four experts."""
    config = Config.for_task("plane", num_experts=4, tokens=64)
    columns = columns_of([4])
    rows = np.ones((steps, columns[-1].start + columns[-1].width), np.float32)
    at = {column.stat: slice(column.start, column.start + column.width) for column in columns}
    rows[:, at["seconds"]], rows[: steps // 2, at["seconds"]] = 0.25, 1.0
    rows[:, at["counts"]] = [64, 64, 0, 0]
    writer = create_run(folder, config, knobs or Knobs(), facts={"device": "cpu"} | facts)
    writer.commit(Batch(1, rows, state="training"))
    writer.finish("finished")
    run = open_run(folder)
    try:
        return measured_run(run)
    finally:
        run.close()


def test_a_run_says_its_time_and_its_choices(tmp_path: Path) -> None:
    found = record(tmp_path / "a", 400)
    assert (found.seconds, found.recorded, found.device) == (0.25, 200, "cpu")
    assert (found.rows_SLE == np.array([64, 64, 0, 0])).all()
    assert found.shape == (2, 2)
    assert told(found, 4).max_over_mean_devices == 2
    assert not found.as_rank
    one = record(tmp_path / "b", 400, ranks={"data": 1, "expert": 1})
    assert one.as_rank
    assert one.about.endswith("on one device (cpu), as one rank")


def test_rows_that_a_capacity_drops_reach_no_device(tmp_path: Path) -> None:
    found = record(tmp_path / "a", knobs=Knobs(capacity_factor=1.5))
    assert (found.rows_SLE == np.array([48, 48, 0, 0])).all()
    assert (record(tmp_path / "b", knobs=Knobs(capacity_factor=1.5, strategy="expert-choice")).rows_SLE[:, 0, 0] == 64).all()  # fmt: skip


def test_a_run_that_says_nothing_of_one_device_is_refused(tmp_path: Path) -> None:
    for name, match, given in (
        (
            "ranks",
            "was trained by 2 ranks; name one that a single process or rank trained",
            {"ranks": {"data": 1, "expert": 2}},
        ),
        ("limited", "is held to 2 steps/s", {"knobs": Knobs(speed_limit=2.0)}),
        ("short", f"must have {LEAST} steps", {"steps": LEAST + 4}),
    ):
        with pytest.raises(ValueError, match=match):
            record(tmp_path / name, **given)  # type: ignore[arg-type]


def test_steps_before_a_turn_that_matters_do_not_count(tmp_path: Path) -> None:
    """k is turned in step 31, a loss weight in step 46."""
    columns = columns_of([4])
    rows = np.ones((60, columns[-1].start + columns[-1].width), np.float32)
    writer = create_run(
        tmp_path / "a", Config.for_task("plane", num_experts=4, tokens=64), Knobs(), facts={"device": "cpu"}
    )
    run = open_run(tmp_path / "a")
    for first, last, turned in ((1, 30, {"k": 1}), (31, 45, {"w_load": 0.5}), (46, 60, {"lr": 0.01})):
        waiting = [(change.id, first) for change in run.knob_changes() if change.step is None]
        writer.commit(Batch(first, rows[first - 1 : last], applied=waiting))
        run.turn("person", turned)
    found = measured_run(run)
    assert (found.recorded, found.knobs.k, found.knobs.w_load) == (60 - 31, 1, 0.5)
    run.close()


@pytest.mark.parametrize(("stat", "value"), [("seconds", float("nan")), ("seconds", -1.0), ("counts", 3e38), ("counts", -1.0), ("counts", float("nan"))])  # fmt: skip
def test_a_run_that_says_what_cannot_be_is_refused(stat: str, value: float, tmp_path: Path) -> None:
    columns = columns_of([4])
    rows = np.ones((60, columns[-1].start + columns[-1].width), np.float32)
    at = next(column.start for column in columns if column.stat == stat)
    rows[20:, at] = value
    writer = create_run(
        tmp_path / "a", Config.for_task("plane", num_experts=4, tokens=64), Knobs(), facts={"device": "cpu"}
    )
    writer.commit(Batch(1, rows, state="training"))
    writer.finish("finished")
    with pytest.raises(ValueError, match="what cannot be"):
        measured_run(open_run(tmp_path / "a"))


def test_of_a_run_that_went_on_on_ranks_the_steps_of_one_count(tmp_path: Path) -> None:
    """A record says at each resume how many ranks train from there on."""
    config = Config.for_task("plane", num_experts=4, tokens=64)
    rows = np.ones((90, columns_of([4])[-1].start + columns_of([4])[-1].width), np.float32)
    writer = create_run(tmp_path / "a", config, Knobs(), facts={"device": "cpu", "ranks": {"data": 1, "expert": 2}})
    writer.commit(Batch(1, rows[:40], state="training"))
    writer.finish("stopped")
    run = open_run(tmp_path / "a")
    with pytest.raises(ValueError, match="trained by 2 ranks"):
        measured_run(run)
    writer = resume_run(tmp_path / "a", hold_lock(tmp_path / "a"), "person", 0)
    writer.commit(Batch(41, rows[40:], state="training"))
    found = measured_run(run)
    assert (found.recorded, found.as_rank) == (50, False)
    writer.finish("stopped")
    run.close()
