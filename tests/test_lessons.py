"""The lessons: short, valid, in order; each check says yes and no from the numbers of a run, and never before it has seen enough."""

import csv
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest

from moe_core.dashboard.starting import Unstarted
from moe_core.figures.catalog import offered
from moe_core.lessons import LESSONS, flashcards
from moe_core.lessons.checks import LAST
from moe_core.runs import OnDevices, nothing_on_devices
from moe_core.schema import Config, Knobs, check, check_knob, describe

EVEN, ONE_HAS_ALL = np.full(8, 16.0), np.array([128.0, 128, 0, 0, 0, 0, 0, 0])


class Source:
    """A run of `steps` steps in which every statistic has one value throughout, or what `first` says in step 1."""

    def __init__(
        self,
        steps: int = 300,
        first: dict | None = None,
        knobs: Knobs | None = None,
        turned: int | None = None,
        **stats: object,
    ):
        self.description = describe(Config(num_experts=8, tokens=64, layers=1, task_gradient_every=25), Knobs())
        self.knobs, self.started_knobs = knobs or Knobs(), Knobs()
        self.last, self.stats, self.first = steps, stats, first or {}
        self.changes = [SimpleNamespace(step=turned)] if turned else []
        self.devices = nothing_on_devices(1)

    def steps(self) -> tuple[int, int]:
        return (1 if self.last else 0), self.last

    def on_devices(self) -> OnDevices:
        return self.devices

    def knob_changes(self) -> list:
        return self.changes

    def history(self, stat: str, layer: int = 0, first: int = 1, last: int | None = None):
        last = self.last if last is None else min(last, self.last)
        steps = np.arange(first, last + 1)
        value = np.asarray(
            self.first.get(stat, self.stats[stat]) if first == 1 and last == 1 else self.stats[stat], float
        )
        return steps, np.broadcast_to(value, (len(steps), *value.shape))


def check_of(lesson: int, stage: int):
    return LESSONS[lesson - 1].stages[stage - 1].check


ZERO, NONE = Knobs(w_importance=0.0, w_load=0.0), {"w_importance": 0.0, "w_load": 0.0}
# lesson, stage, a source that passes, a source that does not, and words that the passing verdict must hold
CASES = [
    (1, 1, Source(counts=EVEN), Source(counts=np.full(8, 64.0)), "2 of 8 experts: 25 %"),
    (1, 2, Source(counts=2 * EVEN), Source(counts=EVEN), "goes to 4 experts"),
    (2, 1, Source(first={"top1_gate": 0.125}, top1_gate=0.5), Source(top1_gate=0.13), "is 0.50; undecided would be 0.125"),
    (3, 2, Source(counts=EVEN), Source(counts=4 * EVEN), "2 gates of each token"),
    (3, 3, Source(task_gradient=0.0, grad_norm=2.0), Source(task_gradient=0.05, grad_norm=2.0), "on the gate is 0. The whole gradient is 2."),
    (4, 1, Source(first={"cv_load": 0.05}, noise_scale=1.4, cv_load=0.7), Source(first={"cv_load": 0.05}, noise_scale=1.4, cv_load=0.3), "was 0.05 at step 1 and is 0.70"),
    (4, 2, Source(noise_scale=0.0, cv_load=1.4), Source(noise_scale=0.7, cv_load=1.4), "is 1.40"),
    (5, 1, Source(counts=EVEN / 2, knobs=Knobs(k=1)), Source(counts=EVEN), "k·T/E = 8 of 64 tokens. Over the last 20 steps the mean was 8, the least 8 and the most 8."),
    (5, 3, Source(counts=4 * EVEN), Source(counts=EVEN), "sees 64 tokens"),
    (6, 1, Source(cv_load=1.9, counts=ONE_HAS_ALL), Source(cv_load=0.9, counts=EVEN), "collapsed onto 2 of 8"),
    (6, 2, Source(cv_importance=0.2, knobs=Knobs(w_importance=1.0, w_load=0.0)), Source(cv_importance=0.2), "is 0.20 with w_importance 1"),
    (7, 2, Source(cv_load=0.2, knobs=Knobs(w_importance=0.0, w_load=0.1)), Source(cv_load=0.5, knobs=Knobs(w_importance=0.0, w_load=0.1)), "with w_load 0.1"),
    (7, 3, Source(noise_scale=0.0, load=EVEN, counts=EVEN), Source(noise_scale=0.7, load=EVEN, counts=EVEN), "hard count"),
    (8, 2, Source(cv_counts=0.2, effective_experts=7.8, loss=2.0, task_loss=2.0), Source(cv_counts=0.2, effective_experts=7.8, loss=2.1, task_loss=2.0), "7.8 of 8"),
    (8, 3, Source(cv_counts=1.2, knobs=Knobs(strategy="none")), Source(cv_counts=0.3), "over 20 steps, it is 1.20"),
    (8, 4, Source(cv_counts=0.3, knobs=Knobs(strategy="quantile")), Source(cv_counts=1.2), "over 20 steps, it is 0.30"),
]  # fmt: skip


@pytest.mark.parametrize(("lesson", "stage", "passing", "failing", "words"), CASES)
def test_a_check_tells_whether_it_happened(
    lesson: int, stage: int, passing: Source, failing: Source, words: str
) -> None:
    verdict = check_of(lesson, stage)(passing, 0)
    assert verdict.happened, verdict.text
    assert words in verdict.text
    assert not check_of(lesson, stage)(failing, 0).happened


@pytest.mark.parametrize(("lesson", "stage", "passing", "failing", "words"), CASES)
def test_no_check_passes_before_it_has_seen_enough(
    lesson: int, stage: int, passing: Source, failing: Source, words: str
) -> None:
    early = Source(LAST - 1, passing.first, passing.knobs, **passing.stats)
    just_turned = Source(300, passing.first, passing.knobs, 295, **passing.stats)
    none = Source(0, passing.first, passing.knobs, **passing.stats)
    for source in (early, just_turned, none):
        verdict = check_of(lesson, stage)(source, 0)
        assert not verdict.happened
        assert "steps seen" in verdict.text


def test_every_check_of_every_stage_has_a_case() -> None:
    tried = {check_of(lesson, stage) for lesson, stage, *_ in CASES} | {check_of(5, 2)}
    assert {stage.check for lesson in LESSONS for stage in lesson.stages} == tried


def on_devices(devices: tuple[int, ...], means: tuple[float, ...], speeds: tuple[float, ...]) -> OnDevices:
    """A measurement of one layer; from one batch an expert got 16 rows in the mean."""
    all_ = [[[mean / 2, mean, 2 * mean]] for mean in means]
    return nothing_on_devices(1)._replace(
        devices_m=np.array(devices), own_mL3=np.array([[[8.0, 16, 32]]] * len(devices)), all_mL3=np.array(all_),
        per_second_mL=np.array(speeds)[:, None], k_L=np.array([2]), tokens=512, wanted=(1, 2, 4)[: max(2, len(devices))],
    )  # fmt: skip


def test_what_devices_share_is_checked_by_what_was_measured() -> None:
    source = Source(counts=EVEN)
    assert check_of(5, 2)(source, 0) == (False, "Nothing is measured yet; press the button again.")
    source.devices = on_devices((1, 2, 4), (16, 32, 64), (1e5, 1.5e5, 1.75e5))
    assert check_of(5, 2)(source, 0) == (
        True,
        "From one batch an expert got 16 tokens a step, and from the batches of 4 devices 64 (at least 32, at most 128). "
        "So fed, the experts of one device worked through 1.8 times as many tokens a second.",
    )
    own = LESSONS[4].answer_on(source, 0)
    assert own.endswith("Measured with k = 2: 16 tokens on 1 device, 32 tokens on 2 devices, 64 tokens on 4 devices.")


def test_more_experts_a_token_are_said_with_what_was_measured_of_them_only() -> None:
    source = Source(counts=4 * EVEN)
    one_device = "An expert now sees 64 tokens a step; it was 16."
    for k, more in ((2, " From the batches of 4 devices it got 256."), (8, "")):
        source.devices = on_devices((1, 2, 4), (64, 128, 256), (1e5, 1e5, 1e5))._replace(k_L=np.array([k]))
        assert check_of(5, 3)(source, 0) == (True, one_device + more)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (on_devices((1, 2, 4), (16, 32, 33), (1e5, 1e5, 1e5)), "from the batches of 4 devices 33"),  # rows are lost
        (on_devices((1, 2), (16, 32), (1e5, 1e5)), "from the batches of 2 devices 32"),
        (on_devices((1, 2, 4), (16, 32, 64), (1e5, np.nan, np.nan))._replace(running=True, progress=(0.9, "Timing it")), "Timing it."),
        (on_devices((1, 2, 4), (16, 32, 64), (1e5, 1e5, 1e5))._replace(running=True, progress=(0.1, "2 of 3")), "2 of 3."),  # the one before is shown
        (on_devices((1, 2, 4), (16, 32, 64), (1e5, np.nan, np.nan))._replace(problem="moe: rank 2 failed"), "Rank 2 failed; press the button again."),
    ],
)  # fmt: skip
def test_less_than_all_of_it_does_not_pass(found: OnDevices, words: str) -> None:
    source = Source(counts=EVEN)
    source.devices = found
    verdict = check_of(5, 2)(source, 0)
    assert not verdict.happened
    assert words in verdict.text


def test_the_lessons_are_those_of_the_paper_in_its_order() -> None:
    assert [lesson.title for lesson in LESSONS] == [
        "The layer", "Softmax gating", "Keep the top k", "Noise", "The shrinking batch", "Importance loss", "Load loss", "What came after",
    ]  # fmt: skip


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.title)
def test_a_lesson_is_short_and_sets_what_exists(lesson) -> None:
    assert len(lesson.idea.split()) <= 90
    assert lesson.formula.count("{") == lesson.formula.count("}")
    first, *later = lesson.stages
    assert first.task
    assert not any(stage.task for stage in later)
    config = Config.for_task(first.task, **first.config)
    check(config, Knobs(**first.knobs))
    assert all(stage.knobs or stage.measures for stage in later)
    for stage in later:
        for name, value in stage.knobs.items():
            assert check_knob(config, name, value) == value
    for name in lesson.figures:
        source = Unstarted("a", config, Knobs(**first.knobs))
        assert offered(source, name), f"{name} is not drawn for {first.task}"
    turned = {name for stage in lesson.stages[1:] for name in stage.knobs}
    assert turned <= set(lesson.shown), "a knob that the lesson turns is not shown"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.title)
def test_an_answer_has_the_runs_own_numbers(lesson) -> None:
    stats = {
        "counts": EVEN,
        "top1_gate": 0.61,
        "noise_scale": 0.69,
        "cv_load": 0.43,
        "cv_importance": 0.52,
        "loss": 2.0,
        "task_loss": 1.9,
        "task_gradient": 0.034,
    }
    said = lesson.answer_on(Source(**stats), 0)
    assert said.startswith("In your run")
    assert re.search(r"\d", said) or "loss" in said
    assert "nan" not in said


def test_why_k_is_above_1_is_told_with_what_the_gradient_was_before() -> None:
    """The run of lesson 3: with two kept the gate is taught, with one it is not."""
    stats = {"counts": EVEN / 2, "top1_gate": 1.0, "grad_norm": 2.0}
    fell = Source(300, knobs=Knobs(k=1), turned=250, task_gradient=0.0, **stats)
    history = fell.history
    fell.history = lambda stat, layer=0, first=1, last=None: (  # type: ignore[method-assign]
        (np.array([first]), np.array([0.034]))
        if stat == "task_gradient" and last == 249
        else history(stat, layer, first, last)
    )
    verdict = check_of(3, 3)(fell, 0)
    assert verdict.happened
    assert (
        verdict.text
        == "The task's gradient on the gate is 0; before the last turn it was 0.034. The whole gradient is 2."
    )
    assert LESSONS[2].answer_on(fell, 0) == (
        "In your run the only gate weighs 1.00, and the task's gradient on the gate's weights is 0."
    )


def test_a_run_that_did_not_measure_it_fails_the_check_and_no_page() -> None:
    class Earlier(Source):
        def history(self, stat: str, layer: int = 0, first: int = 1, last: int | None = None):
            if stat == "task_gradient":
                raise ValueError("this run has no statistic 'task_gradient'")
            return super().history(stat, layer, first, last)

    earlier = Earlier(counts=EVEN, top1_gate=0.6, grad_norm=2.0)
    assert check_of(3, 3)(earlier, 0) == (False, "This run did not measure the task's gradient.")
    assert LESSONS[2].answer_on(earlier, 0) == "In your run the first of 2 gates weighs 0.60."


def test_flashcards_are_a_row_a_lesson() -> None:
    rows = list(csv.reader(io.StringIO(flashcards())))
    assert [row[0] for row in rows] == [lesson.question for lesson in LESSONS]
    assert all(len(row) == 3 and row[1] for row in rows)
