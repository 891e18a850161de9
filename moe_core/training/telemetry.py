"""What is measured of a step: its statistics, kept on the device until a flush, and snapshots of a fixed probe batch.

Nothing here draws a random number, so that snapshots, which are taken by the clock, do not change the run.

Shapes: L layers, T tokens, E experts, K experts per token, N probe tokens, D model width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_core.nn.choices import churn, in_common, same_width, saturation
from moe_core.nn.gating import Routing
from moe_core.schema import DEAD_AFTER, STATS, Column, Config, layout, measured_in
from moe_core.training.data import Data
from moe_core.training.window import Window

LARGE = 1 << 26  # bytes of an array of a snapshot; the blob of several must stay below runs.codec.LARGEST
ROOM = 1 << 23  # bytes of rows that may wait to be taken
GRID = 64  # points along each side of the plane's region picture
OF_RANKS = tuple(stat.name for stat in STATS if stat.ranks)
# The parts of Held.values_V, in order.
FAST = (
    "loss",
    "task_loss",
    "grad_norm",
    *OF_RANKS,
    "noise_scale",
    "top1_gate",
    "dropped",
    "unrouted",
    "importance",
    "load",
    "counts",
)
SCORES = ("router_margin", "router_margin_p10", "confidence", "logit_spread", "bias_effect", "unreachable")
SLOW = ("task_gradient", "churn", "saturation", *SCORES)  # those of Held.slow
Snapshots = Callable[[], dict[str, dict[str, np.ndarray]]]


class Held(NamedTuple):
    """A step whose row is not made yet. values_V: the parts of FAST: loss, task loss, norm of the gradient and what ranks sent; for
    each layer the mean spread of the noise, the mean first gate, the share dropped and the share unrouted, (4 L); then importance,
    load and counts, (3 L E). slow: what few steps measure anew; steps between share the same tensors."""

    step: int
    seconds: float
    values_V: Tensor
    slow: tuple[Tensor, ...]


class Telemetry:
    """Rows of a run's stored statistics. columns: those of a run that is resumed; else schema.layout()'s.

    A step hands over one vector on the device. Rows are made of many steps at once, with one wait for the device.
    """

    def __init__(self, config: Config, device: torch.device, columns: Sequence[Column] | None = None):
        self.columns = list(columns or layout(config.layers, config.num_experts))
        self.names = measured_in(self.columns)
        self.shape_LE = L, E = config.layers, config.num_experts
        self.order_C = order_of(self.names, L, E)
        self.first = 1
        self.held: list[Held] = []
        width = self.columns[-1].start + self.columns[-1].width
        self.most = max(1, ROOM // (4 * width))  # steps that may be held; is_full says when there are as many
        self.rows: list[np.ndarray] = []  # made, and not taken yet
        self.left_out: list[tuple[int, str]] = []  # steps of these rows without an update, and what was not finite
        self.zero = torch.zeros((), device=device)
        self.unmeasured = torch.full((), math.nan, device=device)
        self.last_selected_LE = np.zeros((L, E), np.float32)
        self.none_L = torch.full((L,), math.nan, device=device)
        # Churn and saturation are first measured after churn_every steps, the task's gradient in the first step.
        self.churn_L = self.saturation_L = self.task_gradient_L = self.none_L
        self.scores: dict[str, Tensor] = {}  # what the scores said when they were last measured, by statistic

    @torch.no_grad()
    def record(
        self,
        step: int,
        loss: Tensor,
        task_loss: Tensor,
        grad_norm: Tensor,
        seconds: float,
        routings: list[Routing],
        task_gradient_L: Tensor | None = None,
        score: bool = True,
        between_ranks: Mapping[str, Tensor] = {},
    ):
        """Add the row of a step. Copies nothing off the device, and keeps nothing of the routings. task_gradient_L: None if the step
        did not measure it. score: whether to measure what the scores say; if not, their last measurement is repeated.
        between_ranks: what several ranks sent."""
        E = self.shape_LE[1]
        if task_gradient_L is not None:
            self.task_gradient_L = task_gradient_L
        if score or not self.scores:
            self.scores = scores_of(routings)
        one_each = [loss, task_loss, grad_norm]
        one_each += [between_ranks.get(name, self.unmeasured).to(loss.dtype) for name in OF_RANKS]
        one_each += [r.noise_std_TE.mean() for r in routings]
        one_each += [r.weights_TK[:, 0].mean() for r in routings]
        one_each += [self.zero if r.kept_E is None else dropped(r) for r in routings]
        one_each += [self.zero if r.kept_E is None else unrouted(r.experts_TK, E) for r in routings]
        of_experts = [r.importance_E for r in routings] + [r.load_E for r in routings] + [r.counts_E for r in routings]
        if not self.held and not self.rows:
            self.first, self.left_out = step, []
        scores = (self.scores.get(name, self.none_L) for name in SCORES)  # an earlier version's checkpoint has fewer
        slow = self.task_gradient_L, self.churn_L, self.saturation_L, *scores
        self.held.append(Held(step, seconds, torch.cat([torch.stack(one_each), *of_experts]), slow))

    @property
    def is_full(self) -> bool:
        """Whether the rows should be taken, however short a time ago that was: a commit has a largest size."""
        return len(self.held) >= self.most

    def make_rows(self) -> None:
        """Make the rows of the steps that are held, in one move from the device."""
        if not self.held:
            return
        held, self.held = self.held, []
        (L, E), n = self.shape_LE, len(held)
        # Most steps of a flush have the same slow tensors: each set of them is moved once.
        sets = {tuple(map(id, one.slow)): one.slow for one in held}
        parts = [*(one.values_V for one in held), *(x for slow in sets.values() for x in slow)]
        moved = torch.cat(parts).float().cpu().numpy()
        V, S = len(held[0].values_V), len(SLOW) * L
        table_nW = np.empty((n, V + S + 1 + L), np.float32)
        table_nW[:, :V] = moved[: n * V].reshape(n, V)
        places = {key: at for at, key in enumerate(sets)}
        slow_XS = moved[n * V :].reshape(-1, S)
        table_nW[:, V : V + S] = slow_XS[[places[tuple(map(id, one.slow))] for one in held]]
        table_nW[:, V + S] = [one.seconds for one in held]
        step_n11 = np.array([one.step for one in held], np.float32)[:, None, None]
        counts_nLE = table_nW[:, V - L * E : V].reshape(n, L, E)
        last_nLE = np.maximum.accumulate(np.where(counts_nLE > 0, step_n11, self.last_selected_LE), axis=0)
        self.last_selected_LE = last_nLE[-1]
        table_nW[:, V + S + 1 :] = (step_n11 - last_nLE >= DEAD_AFTER).sum(2)
        self.rows.append(table_nW[:, self.order_C])
        finite_n2 = np.isfinite(table_nW[:, [FAST.index("loss"), FAST.index("grad_norm")]])
        if not finite_n2.all():
            for one, (loss, gradient) in zip(held, finite_n2.tolist(), strict=True):
                if not (loss and gradient):
                    self.left_out.append((one.step, "gradient" if loss else "loss"))

    def state(self) -> dict[str, Tensor]:
        """What later rows depend on, for a checkpoint."""
        self.make_rows()
        return {
            "last_selected": torch.from_numpy(self.last_selected_LE),
            "churn": self.churn_L,
            "saturation": self.saturation_L,
            "task_gradient": self.task_gradient_L,
            **self.scores,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        device = self.churn_L.device
        self.last_selected_LE = state["last_selected"].cpu().numpy()
        self.churn_L, self.saturation_L = state["churn"].to(device), state["saturation"].to(device)
        # A checkpoint of an earlier version has none: not measured yet.
        self.task_gradient_L = state.get("task_gradient", self.task_gradient_L).to(device)
        self.scores = {name: state[name].to(device) for name in SCORES if name in state}

    def take(self) -> tuple[int, np.ndarray]:
        """(first step, rows (n, C) float32) since the last take. left_out then names those of these steps that changed no weight."""
        self.make_rows()
        rows, self.rows = self.rows, []
        return self.first, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def order_of(names: Sequence[str], layers: int, num_experts: int) -> np.ndarray:
    """(C,) for each column of a row, its place in the table of make_rows()."""
    one, each, of_experts = 1, layers, layers * num_experts
    widths = dict(
        zip(
            FAST,
            (one, one, one, *(one for _ in OF_RANKS), each, each, each, each, of_experts, of_experts, of_experts),
            strict=True,
        )
    )
    widths |= dict.fromkeys(SLOW, each) | {"seconds": one, "dead_experts": each}
    ends = dict(zip(widths, accumulate(widths.values()), strict=True))
    return np.concatenate([np.arange(ends[name] - widths[name], ends[name]) for name in names])


class Probe:
    """A fixed batch of tokens: how the gate routes it now, and how that differs from churn_every steps before."""

    def __init__(self, config: Config, data: Data, device: torch.device):
        self.config = config
        batch, shown = data.probe()
        self.inputs = batch.inputs.to(device)
        self.grid = _grid(shown["extent"]).to(device) if config.task == "plane" else None
        self.last: list[Tensor] | None = None  # each token's experts at the last comparison

    @torch.no_grad()
    def look(self, model: nn.Module, options: Mapping[str, Any], inputs: Tensor | None = None) -> list[Routing]:
        """How the gate routes the probe now, or other inputs: a Routing a layer. options: how to route, as models.routing_options()
        gives it."""
        was_training = model.training
        model.eval()
        routings: list[Routing] = model(self.inputs if inputs is None else inputs, **options)[1]
        model.train(was_training)
        return routings

    @torch.no_grad()
    def compare(self, routings: list[Routing], telemetry: Telemetry) -> Snapshots:
        """Set the telemetry's churn and saturation since the last comparison. What is returned gives the snapshot of kind
        "choices": each token's experts.

        To be called at fixed steps, so that both depend on the training and not on the clock.
        """
        E, chosen = self.config.num_experts, [r.experts_TK for r in routings]
        if self.last is not None:
            pairs = list(zip(chosen, self.last, strict=True))
            telemetry.churn_L = torch.stack([churn(now, before, E) for now, before in pairs])
            telemetry.saturation_L = torch.stack([saturation(now, before, E) for now, before in pairs])
        self.last = chosen
        return lambda: {"choices": {"experts": _small(same_width(chosen, [E] * len(chosen)), E)}}

    @torch.no_grad()
    def snapshot(
        self,
        model: nn.Module,
        options: Mapping[str, Any],
        full: bool,
        window: Window,
        routings: list[Routing] | None = None,
    ) -> Snapshots:
        """Look at the gate now. Snapshots are for people who watch, and so taken by the clock. What is returned may be called later,
        by another thread, and gives them by kind: "probe" always, "full" when asked for.

        routings: what look() has given of the model as it is now, if it was called already. Where tokens have different
        numbers of experts, places are empty: experts holds E there and gates 0.
        """
        routings = routings or self.look(model, options)
        regions = [] if self.grid is None else [r.experts_TK for r in self.look(model, options, self.grid)]
        w_gates = [layer.gate.w_gate.detach().clone() for layer in model.moe_layers] if full else []
        return partial(self.pack, routings, regions, w_gates, window.now() if full else None)

    @torch.no_grad()
    def pack(
        self, routings: list[Routing], regions: list[Tensor], w_gates: list[Tensor], window: Window | None
    ) -> dict[str, dict[str, np.ndarray]]:
        """The snapshots of a look, as the record has them. window: None for no "full" one."""
        E, chosen = self.config.num_experts, [r.experts_TK for r in routings]
        gates = same_width([r.weights_TK for r in routings], [0] * len(routings))
        kinds = {"probe": {"experts": _small(same_width(chosen, [E] * len(chosen)), E), "gates": _halves(gates)}}
        if regions:
            kinds["probe"]["regions"] = _small([experts_TK[:, 0].view(GRID, GRID) for experts_TK in regions], E)
        if window:
            kinds["full"] = self._full(routings, w_gates, window)
        return kinds

    def _full(self, routings: list[Routing], w_gates: list[Tensor], window: Window) -> dict[str, np.ndarray]:
        arrays = {
            "clean_gates": _halves([r.clean_logits_TE.float().softmax(-1) for r in routings]),
            "w_gate": _halves(w_gates),
        }
        if window.steps:  # not before the first step
            L, E = len(routings), window.num_experts
            if 4 * L * E * E <= LARGE:
                arrays["coactivation"] = window.coactivation().cpu().numpy()
            if window.dealt:
                arrays["rows_between_ranks"] = window.rows_between_ranks(window.dealt).cpu().numpy()
            for label, values in window.sizes.items():
                if 4 * L * values * E <= LARGE:
                    arrays[f"specialisation_{label}"] = window.specialisation(label).cpu().numpy()
        return {name: array for name, array in arrays.items() if array.nbytes <= LARGE}


def scores_of(routings: list[Routing]) -> dict[str, Tensor]:
    """What the scores say of each layer's choice, (L,) each, as schema.STATS defines them; NaN where there is none."""
    none = torch.full((), math.nan, device=routings[0].counts_E.device)
    margin_L, margin_p10_L = margins(routings)
    unreachable = [r.unreachable for r in routings]
    return {
        "router_margin": margin_L,
        "router_margin_p10": margin_p10_L,
        "confidence": torch.stack([confidence(r) for r in routings]),
        "logit_spread": torch.stack([spread(r.clean_logits_TE) for r in routings]),
        "bias_effect": torch.stack([bias_effect(r) for r in routings]),
        "unreachable": torch.stack([none if many is None else many for many in unreachable]),
    }


def spread(logits_TE: Tensor) -> Tensor:
    """Mean over tokens of the logits' standard deviation over the experts; experts that are off (minus infinity) are left
    out."""
    on_TE = logits_TE.isfinite()
    count_T1 = on_TE.sum(1, keepdim=True).clamp(min=1)
    logits_TE = logits_TE.where(on_TE, 0.0)
    away_TE = (logits_TE - logits_TE.sum(1, keepdim=True) / count_T1) * on_TE
    return (away_TE.square().sum(1, keepdim=True) / count_T1).sqrt().mean()


def margins(routings: list[Routing]) -> tuple[Tensor, Tensor]:
    """Mean and 10th percentile over tokens of each layer's router margin, (L,) each. (gating.router_margin)

    Of the scores that each token chose by, so with the noise and the bias. NaN where a token has no choice (k = E), and
    where tokens do not choose. The percentile lies between two tokens as numpy's does; torch.quantile takes ten times as long.
    """
    none_T = torch.full((1,), math.nan, device=routings[0].counts_E.device)
    margins = [r.margin_T for r in routings]
    margin_LT = torch.stack([none_T if margin_T is None else margin_T for margin_T in margins]).float()
    mean_L, place = margin_LT.mean(1), 0.1 * (margin_LT.shape[1] - 1)
    low_Ln = margin_LT.topk(math.ceil(place) + 1, dim=1, largest=False).values
    tenth_L = low_Ln[:, math.floor(place)].lerp(low_Ln[:, -1], place % 1)
    known_L = mean_L.isfinite()
    return mean_L.where(known_L, math.nan), tenth_L.where(known_L, math.nan)


def confidence(routing: Routing) -> Tensor:
    """Mean over tokens of the chosen experts' share of the scores over all experts, before any drop.

    The scores are the softmax of the clean logits, which noise does not raise by chance, or where a bias selects the
    sigmoid affinities without it. A token that no expert took is left out; NaN if there is no other.
    """
    chosen_TK, affinity_TE = routing.chosen_TK, routing.affinity_TE
    if affinity_TE is not None:
        return (affinity_TE.gather(1, chosen_TK).sum(1) / affinity_TE.sum(1)).mean()
    gates_TE = routing.clean_logits_TE.detach().softmax(1)
    if not routing.ragged:
        return gates_TE.gather(1, chosen_TK).sum(1).mean()
    taken_T = (chosen_TK < gates_TE.shape[1]).any(1)
    return F.pad(gates_TE, (0, 1)).gather(1, chosen_TK).sum() / taken_T.sum()


def bias_effect(routing: Routing) -> Tensor:
    """Mean over tokens of |A and B| / |A or B|, A the experts chosen with the bias and B those without: 1 if it changes
    nothing. NaN where no bias selects."""
    if routing.affinity_TE is None:
        return torch.full((), math.nan, device=routing.counts_E.device)
    chosen_TK, num_experts = routing.chosen_TK, routing.counts_E.shape[0]
    affinity_TE = routing.affinity_TE.masked_fill(routing.clean_logits_TE.isneginf(), -math.inf)
    both_T = in_common(chosen_TK, affinity_TE.topk(chosen_TK.shape[1], dim=1).indices, num_experts).sum(1)
    return (both_T / (2 * chosen_TK.shape[1] - both_T)).mean()


def dropped(routing: Routing) -> Tensor:
    """Share of the selections that were dropped since their expert was full."""
    if routing.kept_E is None:
        return torch.zeros((), device=routing.counts_E.device)
    selected = routing.counts_E.sum()
    return (selected - routing.kept_E.sum()) / selected.clamp(min=1)


def unrouted(experts_TK: Tensor, num_experts: int) -> Tensor:
    """Share of tokens all whose places are empty."""
    return (experts_TK == num_experts).all(1).float().mean()


def _grid(extent: np.ndarray) -> Tensor:
    """(GRID * GRID, 2) points, row by row from the lowest y, at the middle of each cell."""
    x0, x1, y0, y1 = (float(v) for v in extent)
    middle = (torch.arange(GRID) + 0.5) / GRID
    y_GG, x_GG = torch.meshgrid(y0 + (y1 - y0) * middle, x0 + (x1 - x0) * middle, indexing="ij")
    return torch.stack([x_GG.flatten(), y_GG.flatten()], 1)


def _small(layers: list[Tensor], num_experts: int) -> np.ndarray:
    """Experts, and num_experts for an empty place, in the smallest integers that hold both."""
    return torch.stack(layers).cpu().numpy().astype(np.uint8 if num_experts < 256 else np.uint16)


def _halves(layers: list[Tensor]) -> np.ndarray:
    return torch.stack([x.detach() for x in layers]).to(torch.float16).cpu().numpy()
