"""Does what the diagnosis offers help? From each collapsed gate, each remedy, on the real text task.

`OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/remedies.py [--json]`, about ten minutes. A gate is trained without help
until CV(load) is above 1 and the diagnosis says so; then each remedy that it offers, of every layer and rule, is turned,
each from the same weights, data and noise. A remedy works if CV(load), mean of ten steps, falls below 0.4 in every
layer within 500 steps. Remedies marked `not offered` are measured to see what is left out.
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

from moe_core.diagnosis import diagnose
from moe_core.runs import Batch, Pending
from moe_core.schema import BALANCED, COLLAPSED, Config, Knobs
from moe_core.training.data import Data, load
from moe_core.training.loop import Trainer
from moe_core.training.watch import Watch

COLLAPSE_WITHIN, HELP_WITHIN, MEAN_OF = 700, 500, 10  # steps
NONE = {"w_importance": 0.0, "w_load": 0.0}
# How a gate is brought to collapse, and what is measured from there beside what is offered.
STATES: dict[str, tuple[dict[str, Any], list[dict[str, float]]]] = {
    "weights 0": (NONE, [{"w_load": 0.1}, {"w_importance": 0.1}, {"w_importance": 0.01, "w_load": 0.01}, {"noise": 4.0}]),
    "weights 0, noise 4": (NONE | {"noise": 4.0}, [{"noise": 1.0}]),
    "weights 0, noise 0.1": (NONE | {"noise": 0.1}, [{"w_importance": 0.1, "w_load": 0.1}]),
    "weights 0, noise 0": (NONE | {"noise": 0.0}, [{"w_importance": 0.1, "w_load": 0.1}]),
    "w_load 0.1, noise 0": ({"w_importance": 0.0, "noise": 0.0}, [{"noise": 1.0}]),
    "w_load 0.01, noise 0": ({"w_importance": 0.0, "w_load": 0.01, "noise": 0.0}, [{"noise": 1.0}]),
    "weights 0, k 4": (NONE | {"k": 4}, []),
}  # fmt: skip


class Row(NamedTuple):
    """One remedy from one state. after: steps until it had helped, or None; end: CV(load) of the least even layer at the end."""

    state: str
    rule: str
    remedy: dict[str, float | str]
    after: int | None
    end: float


class Nowhere:
    """The writer of a training that is not recorded."""

    knob_seen = command_seen = 0

    def pending(self) -> Pending:
        return Pending([], [])

    def commit(self, batch: Any) -> None:
        pass

    def beat(self, step: int) -> None:
        pass


class Patient:
    """A trainer that is stepped by hand, with what it measured, and that can be brought back to where it stood."""

    def __init__(self, config: Config, knobs: Knobs, data: Data):
        self.trainer = Trainer(config, knobs, data, torch.device("cpu"), Nowhere(), Path(), lambda event: None)
        self.trainer.next_look = math.inf
        self.watch, self.layers = Watch(config, knobs), range(config.layers)
        self.watch.next_look = math.inf

    def step(self) -> None:
        self.trainer.train_step(0.0)
        self.watch.see(Batch(*self.trainer.telemetry.take()))

    def uneven(self, steps: int) -> float:
        """CV(load) of the least even layer, mean over the last steps."""
        return max(float(self.watch.history("cv_load", layer)[1][-steps:].mean()) for layer in self.layers)

    def turn(self, knobs: dict[str, float | str]) -> None:
        self.trainer.knobs = replace(self.trainer.knobs, **knobs)
        self.watch.turned(self.trainer.step + 1, self.trainer.knobs)

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


def collapsed(config: Config, knobs: Knobs, data: Data) -> Patient | None:
    """A gate that the diagnosis calls collapsed, CV(load) above 1; None if it does not come to that."""
    patient = Patient(config, knobs, data)
    while patient.trainer.step < COLLAPSE_WITHIN:
        patient.step()
        if patient.trainer.step % 50 or patient.uneven(MEAN_OF) <= COLLAPSED:
            continue
        if any(f.rule == "collapse" for layer in patient.layers for f in diagnose(patient.watch, layer)):
            return patient
    return None


def offered(patient: Patient) -> dict[str, dict[str, float | str]]:
    """What the diagnosis offers, by rule."""
    return {f.rule: f.remedy for layer in patient.layers for f in diagnose(patient.watch, layer) if f.remedy}


def tried(patient: Patient, remedy: dict[str, float | str], within: int = HELP_WITHIN) -> tuple[int | None, float]:
    """(steps until it had helped, CV(load) at the end)."""
    patient.turn(remedy)
    after = None
    for step in range(1, within + 1):
        patient.step()
        if after is None and step >= MEAN_OF and patient.uneven(MEAN_OF) < BALANCED:
            after = step
    return after, patient.uneven(5 * MEAN_OF)


def measure(config: Config, data: Data, state: str, tell: Any) -> list[Row]:
    knobs, others = STATES[state]
    patient = collapsed(config, Knobs(**knobs), data)
    if patient is None:
        tell(f"| {state} | does not collapse | | | |")
        return []
    kept, rows, done = patient.keep(), [], {}
    for rule, remedy in [*offered(patient).items(), *(("not offered", other) for other in others)]:
        words = ", ".join(f"{name} {value:g}" for name, value in remedy.items())
        if words not in done:
            patient.back(kept)
            done[words] = tried(patient, remedy)
        rows.append(Row(state, rule, remedy, *done[words]))
        tell(f"| {state} | {rule} | {words} | {rows[-1].after or '–'} | {rows[-1].end:.2f} |")
    return rows


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--state", nargs="+", choices=tuple(STATES), default=tuple(STATES), metavar="STATE")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    config = Config.for_task("text", threads=1, eval_every=10**9)
    data = load(config)
    tell = lambda line: print(line, file=sys.stderr if given.json else sys.stdout, flush=True)
    tell("| collapsed with | rule | remedy | below 0.4 after, steps | CV(load) after 500 |\n|---|---|---|---|---|")
    rows = [row for state in given.state for row in measure(config, data, state, tell)]
    if given.json:
        print(json.dumps([row._asdict() for row in rows]))
    failed = [row for row in rows if row.rule != "not offered" and row.after is None]
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    sys.exit(main(sys.argv[1:]))
