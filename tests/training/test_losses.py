"""What the paper reports for the two balancing losses (Shazeer 2017, Table 6), in a small form on real text.

The sweep of docs/decisions.md has the whole table. Bounds are those of docs and page: below 0.4 balanced, above 1 collapsed.
"""

import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from moe_core.runs import Run, open_run
from moe_core.schema import BALANCED, COLLAPSED, Config, Knobs
from moe_core.training.session import train

Changes = Sequence[tuple[int, str, float | str]]


def trained(
    folder: Path, w_importance: float, w_load: float, task: str = "text", script: Changes = (), **given: object
) -> Run:
    config = Config.for_task(task, **{"layers": 1, "threads": 1} | given)
    path, state = train(config, Knobs(w_importance=w_importance, w_load=w_load), folder, script=script)
    assert state == "finished"
    return open_run(path)


def cv_load(run: Run) -> float:
    last = run.steps()[1]
    return float(np.mean(run.history("cv_load", first=last - 49)[1]))


@pytest.mark.parametrize(
    ("w_importance", "w_load"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.1, 0.1), (0.01, 0.01), (1.0, 1.0)]
)
def test_without_losses_the_gate_collapses_and_with_any_of_them_it_is_balanced(
    w_importance: float, w_load: float, tmp_path: Path
) -> None:
    run = trained(tmp_path, w_importance, w_load, tokens=512, steps=250, eval_every=250)
    if w_importance == w_load == 0:
        assert cv_load(run) > COLLAPSED
    else:
        assert cv_load(run) < BALANCED


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", ["digits", "plane"])
def test_the_other_two_cards_collapse_and_recover_as_their_page_says(task: str, seed: int, tmp_path: Path) -> None:
    turn = [(150, "w_importance", 0.1), (150, "w_load", 0.1)]
    run = trained(tmp_path, 0.0, 0.0, task, turn, seed=seed, steps=250, eval_every=250)
    assert np.mean(run.history("cv_load", first=100, last=149)[1]) > COLLAPSED
    assert cv_load(run) < BALANCED


def test_a_balanced_gate_predicts_better_than_a_collapsed_one(tmp_path: Path) -> None:
    """On one domain, whose share of the steps is what the three of the default task have after three times as many."""
    prose = tmp_path / "prose"
    prose.write_text("\n".join(pydoc_data.topics.topics.values()))
    given = {"text": (str(prose),), "d_hidden": 64, "steps": 900, "eval_every": 300}
    collapsed, balanced = (trained(tmp_path / f"{w}", w, w, **given) for w in (0.0, 0.1))
    assert cv_load(collapsed) > COLLAPSED
    assert cv_load(balanced) < BALANCED
    perplexities = [run.evals()[-1].metrics["perplexity"] for run in (collapsed, balanced)]
    assert perplexities[1] < 0.99 * perplexities[0]
