"""What is measured of a step: its statistics, kept on the device until a flush, and snapshots of a fixed probe batch.

Nothing here draws a random number, so that snapshots, which are taken by the clock, do not change the run.

Shapes: L layers, T tokens, E experts, K experts per token, N probe tokens, D model width, C values of a label.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_core.nn.choices import churn, in_common, same_width, saturation
from moe_core.nn.gating import Routing
from moe_core.schema import DEAD_AFTER, WINDOW, Column, Config, layout, measured_in
from moe_core.training.data import Data

LARGE = 1 << 26  # bytes of an array of a snapshot; the blob of several must stay below runs.codec.LARGEST
GRID = 64  # points along each side of the plane's region picture
SCORES = ("router_margin", "router_margin_p10", "confidence", "logit_spread", "bias_effect", "unreachable")
Snapshots = Callable[[], dict[str, dict[str, np.ndarray]]]


class Telemetry:
    """Rows of a run's stored statistics. columns: those of a run that is resumed; else schema.layout()'s."""

    def __init__(self, config: Config, device: torch.device, columns: Sequence[Column] | None = None):
        self.columns = list(columns or layout(config.layers, config.num_experts))
        self.names = measured_in(self.columns)
        self.rows: list[Tensor] = []
        self.first = 1
        L, E = config.layers, config.num_experts
        self.last_selected_LE = torch.zeros(L, E, device=device)
        # Not measured before churn_every steps have passed.
        self.churn_L = torch.full((L,), torch.nan, device=device)
        self.saturation_L = torch.full((L,), torch.nan, device=device)
        self.task_gradient_L = torch.full((L,), math.nan, device=device)  # not measured yet
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
    ):
        """Add the row of a step. Copies nothing off the device. task_gradient_L: None where the step did not measure it. score:
        measure what the scores say too; else what they said last is held."""
        E, zero = routings[0].counts_E.shape[0], torch.zeros((), device=loss.device)
        counts_LE = torch.stack([r.counts_E for r in routings]).float()
        self.last_selected_LE = torch.where(counts_LE > 0, float(step), self.last_selected_LE)
        if task_gradient_L is not None:
            self.task_gradient_L = task_gradient_L
        if score or not self.scores:
            self.scores = scores_of(routings)
        values = self.scores | {
            "loss": loss,
            "task_loss": task_loss,
            "grad_norm": grad_norm,
            "seconds": torch.full((), seconds, device=loss.device),  # a copy from the host would wait for the device
            "importance": torch.stack([r.importance_E for r in routings]),
            "load": torch.stack([r.load_E for r in routings]),
            "counts": counts_LE,
            "noise_scale": torch.stack([r.noise_std_TE.mean() for r in routings]),
            "task_gradient": self.task_gradient_L,
            "top1_gate": torch.stack([r.weights_TK[:, 0].mean() for r in routings]),
            "dropped": torch.stack([dropped(r) for r in routings]),
            "unrouted": torch.stack([unrouted(r.experts_TK, E) if r.kept_E is not None else zero for r in routings]),
            "dead_experts": (step - self.last_selected_LE >= DEAD_AFTER).sum(1),
            "churn": self.churn_L,
            "saturation": self.saturation_L,
        }
        row_C = torch.cat([values[name].detach().float().flatten() for name in self.names])
        if not self.rows:
            self.first = step
        self.rows.append(row_C)

    def state(self) -> dict[str, Tensor]:
        """What later rows depend on, for a checkpoint."""
        return {
            "last_selected": self.last_selected_LE,
            "churn": self.churn_L,
            "saturation": self.saturation_L,
            "task_gradient": self.task_gradient_L,
            **self.scores,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        device = self.churn_L.device
        self.last_selected_LE = state["last_selected"].to(device)
        self.churn_L, self.saturation_L = state["churn"].to(device), state["saturation"].to(device)
        # A checkpoint of an earlier version has none: not measured yet.
        self.task_gradient_L = state.get("task_gradient", self.task_gradient_L).to(device)
        self.scores = {name: state[name].to(device) for name in SCORES if name in state}

    def take(self) -> tuple[int, np.ndarray]:
        """(first step, rows (n, C) float32) since the last take, in one move from the device."""
        rows_nC = torch.stack(self.rows).cpu().numpy() if self.rows else np.empty((0, 0), np.float32)
        self.rows = []
        return self.first, rows_nC


class Window:
    """The selections of the last WINDOW steps, from which co-activation and specialisation are counted exactly."""

    def __init__(self, config: Config, sizes: dict[str, int]):
        self.num_experts, self.sizes = config.num_experts, sizes
        self.steps: deque[tuple[list[Tensor], dict[str, Tensor]]] = deque(maxlen=WINDOW)

    def add(self, routings: list[Routing], labels: dict[str, Tensor]) -> None:
        """uint8 holds 255 experts, an empty place, and 256 values of a label: 4 KB a layer and step at the default sizes."""
        kind = torch.uint8 if self.num_experts < 256 else torch.int16
        chosen = [r.experts_TK.to(kind) for r in routings]
        self.steps.append((chosen, {name: x.to(torch.uint8) for name, x in labels.items()}))

    def now(self) -> "Window":
        """As it is now, for another thread: what is added to this window later is not in it."""
        window = copy.copy(self)
        window.steps = self.steps.copy()
        return window

    def state(self) -> list[list[Tensor]]:
        """The selections, for a checkpoint; the labels follow from the data."""
        return [chosen for chosen, _ in self.steps]

    def restore(self, state: list[list[Tensor]], step: int, data: Data, device: torch.device) -> None:
        """Set the window to its state after a step."""
        self.steps.clear()
        for at, chosen in enumerate(state, step - len(state) + 1):
            labels = {name: x.to(device, torch.uint8) for name, x in data.batch(at).labels.items()}
            self.steps.append(([x.to(device) for x in chosen], labels))

    def coactivation(self) -> Tensor:
        """(L, E, E): of the tokens of expert i, the share that also goes to j. Rows of an unused expert are 0."""
        layers = []
        for layer in range(len(self.steps[0][0])):
            both_EE = sum(together(chosen[layer].long(), self.num_experts) for chosen, _ in self.steps)
            layers.append(both_EE / both_EE.diagonal()[:, None].clamp(min=1))
        return torch.stack(layers)

    def specialisation(self, label: str) -> Tensor:
        """(L, C, E): of the selections for tokens with value c of the label, the share that went to each expert."""
        E, C = self.num_experts, self.sizes[label]
        layers = []
        for layer in range(len(self.steps[0][0])):
            pairs = [
                (labels[label].long()[:, None] * (E + 1) + chosen[layer].long()).flatten()
                for chosen, labels in self.steps
            ]
            counts_CE = torch.bincount(torch.cat(pairs), minlength=C * (E + 1)).view(C, E + 1)[:, :E].float()
            layers.append(counts_CE / counts_CE.sum(1, keepdim=True).clamp(min=1))
        return torch.stack(layers)


class Probe:
    """A fixed batch of tokens: how the gate routes it now, and how that differs from churn_every steps before."""

    def __init__(self, config: Config, data: Data, device: torch.device):
        self.config = config
        batch, shown = data.probe()
        self.inputs = batch.inputs.to(device)
        self.grid = _grid(shown["extent"]).to(device) if config.task == "plane" else None
        self.last: list[Tensor] | None = None  # each token's experts at the last comparison

    @torch.no_grad()
    def compare(self, model: nn.Module, options: Mapping[str, Any], telemetry: Telemetry) -> dict[str, np.ndarray]:
        """A snapshot of kind "choices": each token's experts. Sets the telemetry's churn and saturation since the last.

        To be called at fixed steps, so that both depend on the training and not on the clock. options: as in snapshot().
        """
        E, was_training = self.config.num_experts, model.training
        model.eval()
        chosen = [r.experts_TK for r in model(self.inputs, **options)[1]]
        model.train(was_training)
        if self.last is not None:
            pairs = list(zip(chosen, self.last, strict=True))
            telemetry.churn_L = torch.stack([churn(now, before, E) for now, before in pairs])
            telemetry.saturation_L = torch.stack([saturation(now, before, E) for now, before in pairs])
        self.last = chosen
        return {"experts": _small(same_width(chosen, [E] * len(chosen)), E)}

    @torch.no_grad()
    def snapshot(self, model: nn.Module, options: Mapping[str, Any], full: bool, window: Window) -> Snapshots:
        """Look at the gate now. They are for people who watch, and so taken by the clock. What is returned may be called later, by
        another thread, and gives the snapshots by kind: "probe" always, "full" when asked for.

        options: how to route, as models.routing_options() gives it. Where tokens have different numbers of experts, places
        are empty: experts holds E there and gates 0.
        """
        was_training = model.training
        model.eval()
        routings = model(self.inputs, **options)[1]
        regions = [] if self.grid is None else [r.experts_TK for r in model(self.grid, **options)[1]]
        model.train(was_training)
        w_gates = [layer.gate.w_gate.detach().clone() for layer in model.moe_layers] if full else []
        return partial(self.pack, routings, regions, w_gates, window.now() if full else None)

    @torch.no_grad()
    def pack(
        self, routings: list[Routing], regions: list[Tensor], w_gates: list[Tensor], window: "Window | None"
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


def together(experts_TK: Tensor, num_experts: int) -> Tensor:
    """(E, E) tokens that go to both i and j, in float; of i and i, all that go to i. An empty place is left out."""
    (tokens, k), E = experts_TK.shape, num_experts
    if k * k < E:  # pairs are fewer than the cells of a product of masks
        pairs_TKK = experts_TK[:, :, None] * (E + 1) + experts_TK[:, None, :]
        return pairs_TKK.flatten().bincount(minlength=(E + 1) ** 2).view(E + 1, E + 1)[:E, :E].float()
    mask_TE = torch.zeros(tokens, E + 1, device=experts_TK.device).scatter_(1, experts_TK, 1.0)[:, :E]
    return mask_TE.T @ mask_TE


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
    margin_LT = torch.stack([none_T if r.margin_T is None else r.margin_T for r in routings]).float()
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
