"""Do the diagnosis's remedies help, and is it silent where nothing is wrong? On the real tasks, at their defaults.

`OMP_NUM_THREADS=1 python benchmarks/remedies.py [--json]`, about half an hour. Four tables:

A gate is trained without help until CV(load) is above 1 and the diagnosis says so; then each remedy that it offers, of
every layer and rule, is turned, each from the same weights, data and noise. A remedy works if CV(load), mean of ten
steps, falls below 0.4 in every layer within 500 steps. Remedies marked `not offered` are measured to see what is left out.

A run is brought to another rule's finding; then its remedy is turned, and, from the same weights, data and noise, nothing
is. A remedy works if 500 steps later the number that it is to lower is lower than without it; from weights of 1, which kept the
gate flat, 1,500 steps later.

A run of 600 steps whose load is even; then things are turned that might make it even without noise too, each from the same
weights, data and noise. What is offered works if 500 steps later the selections of the held-out split are less uneven than when
nothing was turned.

Each task is trained for 1,000 steps with the default knobs: every finding about it is a false alarm.
"""

import argparse
import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.diagnosis import CALM, Finding, diagnose
from moe_core.nn.models import routing_options
from moe_core.recording.recent import Recent
from moe_core.runs import Batch
from moe_core.runs.statistics import held_out_balance
from moe_core.schema import BALANCED, COLLAPSED, TASKS, Config, Knobs, describe, value_text
from moe_core.training.again import Nowhere
from moe_core.training.data import Data, load
from moe_core.training.evaluation import evaluate, held_out_loss
from moe_core.training.loop import Trainer

COLLAPSE_WITHIN, HELP_WITHIN, MEAN_OF = 700, 500, 10  # steps
NONE = {"w_importance": 0.0, "w_load": 0.0}
# How a gate is brought to collapse, and the remedies that are measured from there beside those offered.
STATES: dict[str, tuple[dict[str, Any], list[dict[str, float]]]] = {
    "weights 0": (NONE, [{"w_load": 0.1}, {"w_importance": 0.1}, {"w_importance": 0.01, "w_load": 0.01}, {"noise": 4.0}]),
    "weights 0, noise 4": (NONE | {"noise": 4.0}, [{"noise": 1.0}]),
    "weights 0, noise 0.1": (NONE | {"noise": 0.1}, [{"w_importance": 0.1, "w_load": 0.1}]),
    "weights 0, noise 0": (NONE | {"noise": 0.0}, [{"w_importance": 0.1, "w_load": 0.1}]),
    "w_load 0.1, noise 0": ({"w_importance": 0.0, "noise": 0.0}, [{"noise": 1.0}]),
    "w_load 0.01, noise 0": ({"w_importance": 0.0, "w_load": 0.01, "noise": 0.0}, [{"noise": 1.0}]),
    "weights 0, k 4": (NONE | {"k": 4}, []),
}  # fmt: skip


class State(NamedTuple):
    """How a run is brought to a rule's finding: the knobs at the start, and what is turned at TURNED_AT. aim: the number that
    its remedy is to lower within `within` steps; others: the remedies measured from there beside those offered."""

    knobs: dict[str, Any]
    turned: dict[str, Any]
    rule: str
    aim: str
    others: list[dict[str, float]]
    within: int = HELP_WITHIN


OTHERS = {
    "noise 4 from step 600": State({}, {"noise": 4.0}, "noise_drowns", "held_out", [{"noise": 0.5}]),
    "weights 1": State(
        {"w_importance": 1.0, "w_load": 1.0}, {}, "large_coefficient", "held_out",
        [{"w_importance": 0.01, "w_load": 0.01}], within=1500,
    ),
    "k 1": State({"k": 1}, {}, "no_gradient", "held_out", [{"k": 2}]),
    "k 1, loss-free": State({"k": 1, "strategy": "loss-free"}, {}, "no_gradient", "held_out", [{"k": 2}]),
    "capacity factor 1": State({"capacity_factor": 1.0}, {}, "dropped_tokens", "dropped", []),
    "capacity factor 0.5": State({"capacity_factor": 0.5}, {}, "dropped_tokens", "dropped", [{"capacity_factor": 1.0}]),
}  # fmt: skip
# Runs that are even in training: the task and its knobs. And what may help where they are so by their noise only.
EVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "even: text": ("text", {}),
    "even: digits": ("digits", {}),
    "even: plane": ("plane", {}),
    "even: text, weights 0.1": ("text", {"w_importance": 0.1, "w_load": 0.1}),
    "even: digits, weights 0.1": ("digits", {"w_importance": 0.1, "w_load": 0.1}),
    "even: plane, weights 0.1": ("plane", {"w_importance": 0.1, "w_load": 0.1}),
}
CALMER: list[dict[str, float]] = [
    {"noise": CALM}, {"noise": 0.5}, {"noise": 0.0}, {"w_importance": 0.3}, {"w_load": 0.3},
    {"w_importance": 1.0, "w_load": 1.0},
]  # fmt: skip
TURNED_AT, FOUND_WITHIN = 600, 1200  # steps
HEALTHY_FOR = 1000  # steps
QUICK = ("weights 0", "capacity factor 0.5", "plane")
SMALL = {"layers": 1, "tokens": 256, "context": 64, "d_model": 32, "d_hidden": 32}


class Row(NamedTuple):
    """One remedy from one state. after: steps until it had helped, or None; end: CV(load) of the least even layer at the end."""

    state: str
    rule: str
    remedy: dict[str, float | str]
    after: int | None
    end: float


class Patient:
    """A trainer that is stepped by hand, with its measurements, and that can be set back to an earlier state."""

    def __init__(self, config: Config, knobs: Knobs, data: Data):
        self.trainer = Trainer(config, knobs, data, torch.device("cpu"), Nowhere(Path()), lambda event: None)
        self.trainer.looks.next = math.inf
        self.watch, self.layers = Recent(describe(config, knobs), knobs), range(config.layers)
        self.watch.next_diagnosis = math.inf

    def step(self) -> None:
        self.trainer.train_step(0.0)
        self.watch.add(Batch(*self.trainer.telemetry.take()))

    def uneven(self, steps: int) -> float:
        """CV(load) of the least even layer, mean over the last steps."""
        return max(float(self.watch.history("cv_load", layer)[1][-steps:].mean()) for layer in self.layers)

    def turn(self, knobs: dict[str, float | str]) -> None:
        self.trainer.knobs = replace(self.trainer.knobs, **knobs)
        self.watch.note_turns(self.trainer.step + 1, self.trainer.knobs)

    def keep(self) -> Any:
        trainer = self.trainer
        weights = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()))
        return weights, torch.get_rng_state(), trainer.step, trainer.knobs, copy.copy(self.watch)

    def back(self, kept: Any) -> None:
        trainer = self.trainer
        (model, optimizer), random, trainer.step, trainer.knobs, watch = kept
        self.watch = copy.copy(watch)
        self.watch.changes = list(watch.changes)
        trainer.model.load_state_dict(model)
        trainer.optimizer.load_state_dict(copy.deepcopy(optimizer))
        torch.set_rng_state(random)


def collapse(config: Config, knobs: Knobs, data: Data) -> Patient | None:
    """A gate that the diagnosis calls collapsed, CV(load) above 1; None if it never does."""
    patient = Patient(config, knobs, data)
    while patient.trainer.step < COLLAPSE_WITHIN:
        patient.step()
        if patient.trainer.step % 50 or patient.uneven(MEAN_OF) <= COLLAPSED:
            continue
        if any(f.rule == "collapse" for f in findings(patient)):
            return patient
    return None


def offers(patient: Patient) -> dict[str, dict[str, float | str]]:
    """What the diagnosis offers, by rule."""
    return {f.rule: f.remedy for f in findings(patient) if f.remedy}


def try_remedy(patient: Patient, remedy: dict[str, float | str], within: int = HELP_WITHIN) -> tuple[int | None, float]:
    """(steps until it had helped, CV(load) at the end)."""
    patient.turn(remedy)
    after = None
    for step in range(1, within + 1):
        patient.step()
        if after is None and step >= MEAN_OF and patient.uneven(MEAN_OF) < BALANCED:
            after = step
    return after, patient.uneven(5 * MEAN_OF)


class Outcome(NamedTuple):
    """A run's numbers some steps later. task_loss, noise (over the logits' spread, the higher of the layers) and
    dropped are means of 100 steps; held_out is without noise, in nats."""

    task_loss: float
    held_out: float
    cv_load: float
    noise: float
    dropped: float


def outcome(patient: Patient, remedy: dict[str, float | str], within: int = HELP_WITHIN) -> Outcome:
    """Turn a remedy ({}: nothing) and train on."""
    patient.turn(remedy)
    for _ in range(within):
        patient.step()
    last = lambda stat, layer: patient.watch.history(stat, layer)[1][-100:].astype(np.float64)
    worst = lambda of: max(float(of(layer)) for layer in patient.layers)
    trainer = patient.trainer
    held_out = held_out_loss(trainer.model, trainer.held_out, routing_options(trainer.config, trainer.knobs))["loss"]
    return Outcome(
        float(last("task_loss", 0).mean()),
        held_out,
        patient.uneven(100),
        worst(lambda layer: (last("noise_scale", layer) / last("logit_spread", layer)).mean()),
        worst(lambda layer: last("dropped", layer).mean()),
    )


def run_to_finding(config: Config, data: Data, state: str) -> Patient | None:
    """A run trained until the diagnosis has the finding of a state's rule; None if it never does."""
    way = OTHERS[state]
    patient = Patient(config, Knobs(**way.knobs), data)
    while patient.trainer.step < FOUND_WITHIN:
        if patient.trainer.step == TURNED_AT:
            patient.turn(way.turned)
        patient.step()
        if patient.trainer.step % 20 == 0 and way.rule in {f.rule for f in findings(patient)}:
            return patient
    return None


def findings(patient: Patient) -> list[Finding]:
    return [finding for layer in patient.layers for finding in diagnose(patient.watch, layer)]


class Compared(NamedTuple):
    """A remedy, or nothing ({}), from one state. better: its aim is lower than with nothing; None for nothing itself."""

    state: str
    rule: str
    remedy: dict[str, float | str]
    outcome: Outcome
    better: bool | None


def compare(config: Config, data: Data, state: str, tell: Any, most: int) -> list[Compared]:
    """most: the most steps to train, if the state asks for more."""
    _, _, rule, aim, others, within = OTHERS[state]
    patient = run_to_finding(config, data, state)
    if patient is None:
        tell(f"| {state} | {rule} is not found | | | | | | |")
        return []
    kept, rows = patient.keep(), list[Compared]()
    remedies = {str(f.remedy): f.remedy for f in findings(patient) if f.rule == rule and f.remedy}
    for name, remedy in [
        ("nothing", {}),
        *((rule, o) for o in remedies.values()),
        *(("not offered", o) for o in others),
    ]:
        patient.back(kept)
        now = outcome(patient, remedy, min(within, most))
        better = getattr(now, aim) < getattr(rows[0].outcome, aim) if rows else None
        rows.append(Compared(state, name, remedy, now, better))
        numbers = f"{now.task_loss:.3f} | {now.held_out:.3f} | {now.cv_load:.2f} | {now.noise:.1f} | {now.dropped:.3f}"
        tell(f"| {state} | {name} | {in_words(remedy) or '–'} | {numbers} |")
    return rows


class Calmed(NamedTuple):
    """The outcome of a turn from one state: CV(load) in training (mean of 50 steps), CV of the held-out selections, both of the
    least even layer, and the held-out loss in nats. better: the second is lower than when nothing was turned."""

    state: str
    turned: dict[str, float]
    cv_load: float
    cv_held_out: float
    held_out: float
    better: bool | None


def calm(state: str, seed: int, tell: Any, steps: int = TURNED_AT, within: int = HELP_WITHIN) -> list[Calmed]:
    task, knobs = EVEN[state]
    config = Config.for_task(task, threads=1, eval_every=10**9, seed=seed)
    patient, rows = Patient(config, Knobs(**knobs), load(config)), list[Calmed]()
    for _ in range(steps):
        patient.step()
    kept = patient.keep()
    for turned in [{}, *CALMER]:
        patient.back(kept)
        patient.turn(turned)
        for _ in range(within):
            patient.step()
        trainer = patient.trainer
        evaluation = evaluate(trainer.model, trainer.held_out, routing_options(trainer.config, trainer.knobs))
        cv = float(held_out_balance(evaluation.counts_LE.numpy())["cv_held_out"].max())
        better = cv < rows[0].cv_held_out if rows else None
        rows.append(Calmed(state, turned, patient.uneven(5 * MEAN_OF), cv, evaluation.metrics["loss"], better))
        numbers = f"{rows[-1].cv_load:.2f} | {cv:.2f} | {evaluation.metrics['loss']:.3f}"
        tell(f"| {state} | {seed} | {in_words(turned) or 'nothing'} | {numbers} |")
    return rows


def alarms(task: str, seed: int, tell: Any, steps: int = HEALTHY_FOR) -> list[Finding]:
    """The findings about a healthy run, each rule once a layer: false alarms."""
    config = Config.for_task(task, threads=1, eval_every=10**9, seed=seed)
    patient, alarms_by_rule = Patient(config, Knobs(), load(config)), dict[tuple[str, int], Finding]()
    for step in range(1, steps + 1):
        patient.step()
        if step % 10 == 0:
            alarms_by_rule |= {(f.rule, f.layer): f for f in findings(patient)}
    tell(
        f"| {task} | {seed} | {'; '.join(f'layer {f.layer + 1}: {f.what}' for f in alarms_by_rule.values()) or 'nothing'} |"
    )
    return list(alarms_by_rule.values())


def in_words(remedy: dict[str, float | str]) -> str:
    return ", ".join(f"{name} {value_text(value)}" for name, value in remedy.items())


def measure(config: Config, data: Data, state: str, tell: Any, within: int) -> list[Row]:
    knobs, others = STATES[state]
    patient = collapse(config, Knobs(**knobs), data)
    if patient is None:
        tell(f"| {state} | does not collapse | | | |")
        return []
    kept, rows, done = patient.keep(), [], {}
    for rule, remedy in [*offers(patient).items(), *(("not offered", other) for other in others)]:
        words = in_words(remedy)
        if words not in done:
            patient.back(kept)
            done[words] = try_remedy(patient, remedy, within)
        rows.append(Row(state, rule, remedy, *done[words]))
        tell(f"| {state} | {rule} | {words} | {rows[-1].after or '–'} | {rows[-1].end:.2f} |")
    return rows


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    states = (*STATES, *OTHERS, *EVEN, *TASKS)
    parser.add_argument("--state", nargs="+", choices=states, default=states, metavar="STATE", help=", ".join(states))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="a state of each table, a small model, to see that it works"
    )
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    config = Config.for_task("text", threads=1, eval_every=10**9, seed=given.seed)
    within, most, healthy = HELP_WITHIN, 10**9, HEALTHY_FOR
    if given.quick:
        config, given.state = replace(config, **SMALL), QUICK
        within, most, healthy = 60, 120, 60  # a state's numbers are means of a hundred steps
    data = load(config)
    tell = lambda line: print(line, file=sys.stderr if given.json else sys.stdout, flush=True)
    asked = lambda names: [name for name in names if name in given.state]
    if evened := asked(STATES):
        tell("| collapsed with | rule | remedy | below 0.4 after, steps | CV(load) after 500 |\n|---|---|---|---|---|")
        evened = [row for state in evened for row in measure(config, data, state, tell, within)]
    if compared := asked(OTHERS):
        tell(
            "\n| state | rule | turned | task loss | held-out | CV(load) | noise / spread | dropped |\n|---|---|---|---|---|---|---|---|"
        )
        compared = [row for state in compared for row in compare(config, data, state, tell, most)]
    if calmed := asked(EVEN):
        tell("\n| state | seed | turned | CV(load) | CV held-out | held-out loss |\n|---|---|---|---|---|---|")
        calmed = [row for state in calmed for row in calm(state, given.seed, tell)]
    if alarms_by_rule := asked(TASKS):
        tell("\n| task | seed | what is said |\n|---|---|---|")
        alarms_by_rule = [finding for task in alarms_by_rule for finding in alarms(task, given.seed, tell, healthy)]
    if given.json:
        print(json.dumps([row._asdict() for row in (*evened, *compared, *calmed, *alarms_by_rule)]))
    useless = [row for row in evened if row.rule != "not offered" and row.after is None]
    useless += [row for row in compared if row.rule != "not offered" and row.better is False]
    useless += [row for row in calmed if row.turned == {"noise": CALM} and not row.better]
    return 1 if useless or alarms_by_rule else 0


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    sys.exit(main(sys.argv[1:]))
