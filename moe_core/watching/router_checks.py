"""The doctor's checks of what routers give and hold: logits, their precision, selection biases, counters."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from moe_core.watching.findings import CheckFinding, by_layer, not_checked
from moe_core.watching.readers import find_taps, parent_of
from moe_core.watching.routers import Router, choose, k_of, router_of
from moe_core.watching.subject import BIASES, Subject
from moe_core.watching.tally import counts_by_tap
from moe_core.watching.taps import Taps

# What counts


def counters(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor and number that a module holds beside its parameters."""
    held = {}
    for path, module in model.named_modules():
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            if isinstance(value, Tensor) and not value.requires_grad:
                held[f"{path}.{name}"] = value.detach().double().cpu().clone()
            elif isinstance(value, int | float):
                held[f"{path}.{name}"] = torch.tensor(float(value), dtype=torch.float64)
    return held


def recomputed_forwards(s: Subject) -> Iterator[CheckFinding]:
    """Is a forward that the backward repeats, as gradient checkpointing does, counted a second time?"""
    s.prepare()
    start = counters(s.model)
    forward, taps_of_forward = counted(s, backward=False)
    both, taps_of_both = counted(s, backward=True)
    for path, first in forward.items():
        before, after = start.get(path), both.get(path)
        if before is None or after is None or not before.shape == first.shape == after.shape:
            continue
        if torch.equal(before, first) or torch.allclose(first, after, rtol=1e-3, equal_nan=True):
            continue
        yield CheckFinding(
            "recomputed", path.rpartition(".")[0], "a forward, then the same forward and its backward",
            f"{path.rpartition('.')[2]} moved by {(first - before).abs().sum():.4g} in the forward, by "
            f"{(after - before).abs().sum():.4g} with the backward",
            "gradient checkpointing repeats the forward in the backward, and it is counted a second time",
            "if torch._C._current_graph_task_id() == -1:  # count only in the first forward",
        )  # fmt: skip
    wrong = [name for name, counts in taps_of_forward.items() if not torch.equal(counts, taps_of_both[name])]
    if wrong:
        yield not_checked(
            "recomputed",
            f"watch itself counts the experts of {wrong[0]} twice in this model, which is our fault: please report it",
        )


def counted(s: Subject, backward: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the model's counters hold, and what our taps counted, after one training forward, with or without its backward."""
    s.prepare()
    taps = Taps(s.model, find_taps(s.model)) if has_taps(s.model) else None
    try:
        loss = s.loss(s.model, s.batch)
        if backward:
            loss.backward()
    finally:
        if taps is not None:
            taps.close()
    counts = {} if taps is None else {taps.taps[tap].name: row for tap, row in counts_by_tap(taps.take()).items()}
    return counters(s.model), counts


def has_taps(model: nn.Module) -> bool:
    """Whether watch finds experts in a model. Routers are checked also where it finds none."""
    try:
        return bool(find_taps(model))
    except ValueError:
        return False


# What the routers give


def probabilities(s: Subject) -> Iterator[CheckFinding]:
    """Do routers give probabilities where logits are expected?"""
    seen = {}
    logits = s.logits()
    for name, logits_NE in logits.items():
        sums_N = logits_NE.float().sum(-1)
        # Above 0: weights that are 0 for the experts that were not chosen also sum to 1, and they are right.
        if logits_NE.shape[-1] > 1 and (logits_NE > 0).all() and ((sums_N - 1).abs() < 0.02).all():
            seen[name] = f"every row is above 0 and sums to 1 (from {sums_N.min():.3f} to {sums_N.max():.3f})"
    yield from by_layer(seen, len(logits), CheckFinding(
        "probabilities-for-logits", "", "read what the router gives as its logits", "",
        "a loss that takes the softmax of it takes it twice: nearly uniform, so it hardly balances",
        "return router_logits, not router_logits.softmax(-1); or update transformers to 5.6 or later",
    ))  # fmt: skip


def precision(s: Subject) -> Iterator[CheckFinding]:
    """Is the margin by which experts are chosen below the rounding of the router's logits?"""
    seen = {}
    modules = dict(s.model.named_modules())
    logits = {name: one for name, one in s.logits().items() if one.dtype in (torch.bfloat16, torch.float16)}
    for name, logits_NE in logits.items():
        k = k_of(modules[name], modules[parent_of(name)], getattr(s.model, "config", None))
        if not 0 < k < logits_NE.shape[-1]:
            continue
        flips_N = below_rounding(router_of(name, modules[name], 0, modules), logits_NE, k)
        if (share := float(flips_N.float().mean())) >= 0.01:
            seen[name] = (
                f"{share:.1%} of {len(flips_N)} tokens: their margin is below the rounding of {str(logits_NE.dtype)[6:]}"
            )
    yield from by_layer(seen, len(logits), CheckFinding(
        "precision", "", "compared the weakest chosen logit with the strongest that was not chosen", "",
        "for these tokens rounding decides on the expert: another kernel, batch or machine chooses otherwise",
        "compute the router in float32: F.linear(hidden.float(), self.weight.float())",
        "note",
    ))  # fmt: skip


def below_rounding(router: Router, logits_NE: Tensor, k: int) -> Tensor:
    """(N,) bool: whether the router would choose otherwise if the logits of the chosen experts were smaller by half of their last
    place and those of the others larger, which rounding cannot tell from what they are."""
    half_NE = torch.finfo(logits_NE.dtype).eps / 2 * logits_NE.float().abs()
    ids_NK = choose(router, logits_NE, k)
    chosen_NE = torch.zeros_like(logits_NE, dtype=torch.bool).scatter(1, ids_NK, True)
    others_NK = choose(router, logits_NE.float() + torch.where(chosen_NE, -half_NE, half_NE), k)
    return (ids_NK.sort().values != others_NK.sort().values).any(1)


# The selection bias


def selection_biases(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each selection bias by its path."""
    held = [*model.named_buffers(), *model.named_parameters()]
    return {name: value.detach().clone() for name, value in held if name.rpartition(".")[2] in BIASES}


def biases(s: Subject, step: Callable[[], object] | None) -> Iterator[CheckFinding]:
    """Does the selection bias move in training, and only there?"""
    s.prepare(training=False)
    before = selection_biases(s.model)
    if not before:
        return
    with torch.no_grad():
        s.loss(s.model, s.batch)
    after = selection_biases(s.model)
    seen = {
        path.rpartition(".")[0]: f"{path.rpartition('.')[2]} moved by up to {(after[path] - bias).abs().max():.3g}"
        for path, bias in before.items() if not torch.equal(after[path], bias)
    }  # fmt: skip
    yield from by_layer(seen, len(before), CheckFinding(
        "bias-moves", "", "a forward in evaluation mode", "",
        "validation and generation change the router, and its load is not that of training",
        "if self.training: ...  # around the update of the bias",
    ))  # fmt: skip
    s.gradient(run=lambda: (s.loss(s.model, s.batch).backward(), step and step()))
    after = selection_biases(s.model)
    still = {path: bias for path, bias in before.items() if torch.equal(after[path], bias) and bias.min() == bias.max()}
    if still:
        path, bias = next(iter(still.items()))
        yield CheckFinding(
            "bias-moves", "" if len(still) == len(before) else path.rpartition(".")[0],
            "a forward and backward in training" + (", and a step" if step else "; give optimizer= or step= to include your step"),
            f"{len(still)} of {len(before)} selection biases stayed {bias.flatten()[0]:g} for every expert (first: {path})",
            "the model selects by a bias that nothing updates, so it does not balance the load; nothing in transformers moves it",
            'live = watch(model, balance="loss-free")',
            "note",
        )  # fmt: skip
