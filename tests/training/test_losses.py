"""What the paper reports for the two balancing losses (Shazeer 2017, Table 6), in a small form on real text.

The sweep of docs/decisions.md has the whole table. Bounds are those of docs and page: below 0.4 balanced, above 1 collapsed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_core.nn import MoELayer, cv_squared, importance_loss, load_loss
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
    run = trained(tmp_path, w_importance, w_load, tokens=512, steps=150, eval_every=150)
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


def kinds_of_tokens(seed: int, weight: float) -> tuple[float, float]:
    """(mean squared error, CV(load)) over the last of 300 steps of a layer whose tokens are of eight kinds.

    Each kind needs a linear map of its own, from which a token's kind can be told; all tokens share a large offset, as
    on a residual stream, from which a gate without losses collapses.
    """
    torch.manual_seed(seed)
    kinds, d_model = 8, 8
    maps_CDD, centres_CD, offset_D = (
        torch.randn(kinds, d_model, d_model),
        torch.randn(kinds, d_model),
        6 * torch.randn(8),
    )
    layer = MoELayer(d_model, d_hidden=8, num_experts=kinds, k=2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    errors, uneven = [], []
    for _ in range(300):
        kind_T = torch.randint(kinds, (256,))
        x_TD = centres_CD[kind_T] + 0.5 * torch.randn(256, d_model)
        wanted_TD = torch.einsum("td,tde->te", x_TD, maps_CDD[kind_T]) / d_model**0.5
        y_TD, routing = layer(x_TD + offset_D)
        error = (y_TD - wanted_TD).square().mean()
        optimizer.zero_grad()
        (error + weight * (importance_loss(routing.importance_E) + load_loss(routing.load_E))).backward()
        optimizer.step()
        errors.append(error.item())
        uneven.append(cv_squared(routing.load_E).sqrt().item())
    return float(np.mean(errors[-50:])), float(np.mean(uneven[-50:]))


def test_a_balanced_gate_predicts_better_than_a_collapsed_one() -> None:
    """Where there is more to learn than the few experts of a collapsed gate can hold."""
    torch.set_num_threads(1)
    collapsed, balanced = (np.array([kinds_of_tokens(seed, weight) for seed in range(4)]) for weight in (0.0, 0.1))
    assert collapsed[:, 1].mean() > COLLAPSED
    assert balanced[:, 1].mean() < collapsed[:, 1].mean() / 2
    assert balanced[:, 0].mean() < 0.9 * collapsed[:, 0].mean()
