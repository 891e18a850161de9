"""The doctor's checks of the auxiliary loss: is it applied, does it reach the routers, is its scale right, which tokens count?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_core.watching.findings import CheckFinding, by_layer, not_checked
from moe_core.watching.subject import Batch, Subject, projection, relative_difference, weighted_sum

# Does the backward of each micro-batch as the user's trainer does: (model, batches).
Micro = Callable[[nn.Module, Sequence[Any]], object]


# The auxiliary loss


def auxiliary(s: Subject) -> Iterator[CheckFinding]:
    """Is the auxiliary loss applied, and does its gradient reach each router?"""
    if not s.coefficients:
        return
    set_to = max(value for _, _, value in s.coefficients)
    s.zero, before = s.gradient(coefficient=0.0), s.value
    s.turned, after = s.gradient(coefficient=s.TURNED), s.value
    s.applied = relative_difference(s.turned, s.zero) > 1e-3
    if set_to <= 0:
        return
    name = s.coefficients[0][1]
    did = f"turned {name} from 0 to {s.TURNED:g}"
    if not s.applied and abs(after - before) <= 1e-6 * abs(before):
        config = getattr(s.model, "config", None)
        off = getattr(config, "output_router_logits", None) is False
        yield CheckFinding(
            "aux-not-applied", "", did,
            f"the loss stayed {after:.6g} and no gradient changed, though the coefficient is set to {set_to:g}"
            + (" (output_router_logits is off)" if off else ""),
            "no auxiliary loss is applied, so nothing balances the load",
            "model.config.output_router_logits = True" if off else f"loss = loss + {set_to:g} * outputs.aux_loss",
        )  # fmt: skip
        return
    zero, turned = s.gradient(coefficient=0.0, direct=True), s.gradient(coefficient=s.TURNED, direct=True)
    change = {
        router: relative_difference(s.of_router(turned, router), s.of_router(zero, router))
        for router in s.slices
        if s.slices[router]
    }
    # With the reentrant kind of gradient checkpointing, transformers reads the logits in a forward without gradients.
    repeats = any(getattr(module, "gradient_checkpointing", False) for module in s.model.modules())
    seen = {
        router: f"the router's own gradient changed by {share:.1e} of its length, the loss from {before:.6g} to {after:.6g}"
        for router, share in change.items() if share <= 1e-3
    }  # fmt: skip
    yield from by_layer(seen, len(change), CheckFinding(
        "aux-gradient", "", did + ", with nothing flowing back through the routers' inputs", "",
        "the auxiliary loss does not train this router: somewhere its logits are detached, or what carries the gradient is dropped",
        'gradient_checkpointing_kwargs={"use_reentrant": False}' if repeats and len(seen) == len(change)
        else "router_logits.append(logits)  # no .detach(), .item() or no_grad() before the loss",
    ))  # fmt: skip
    of_modules = {value for attributes, _, value in s.coefficients if "_parameters" in attributes}
    of_configs = {value for attributes, _, value in s.coefficients if "_parameters" not in attributes}
    if of_configs and not of_modules <= of_configs:
        yield CheckFinding(
            "aux-not-applied", "", "compared every place that holds the coefficient",
            f"the model computes with {min(of_modules - of_configs):g}, its config says {max(of_configs):g}",
            "transformers copies it from the config when the model is built, so a later change of the config alone does nothing",
            f"model.{name} = model.config.{name}",
        )  # fmt: skip


# Micro-batches


def rows_of(batch: Batch) -> int:
    """How many rows a batch has: the first size of its first tensor, input_ids if it is there."""
    if isinstance(batch, Tensor):
        return batch.shape[0]
    tensors = [batch.get("input_ids"), *batch.values()]
    return next((one.shape[0] for one in tensors if isinstance(one, Tensor) and one.dim()), 0)


def split(batch: Batch, count: int) -> list[Any]:
    """The batch cut into micro-batches by its rows. What is not a tensor with a row for each goes to all."""
    if isinstance(batch, Tensor):
        return list(batch.tensor_split(count))
    rows = rows_of(batch)
    cut = {
        key: value.tensor_split(count) if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows
        else [value] * count
        for key, value in batch.items()
    }  # fmt: skip
    return [{key: parts[number] for key, parts in cut.items()} for number in range(count)]


def ways_to_weigh(batches: Sequence[Any]) -> list[list[float]]:
    """How trainers weigh micro-batches: all the same, by their share of the targets, or not at all where the loss is a sum."""
    count = len(batches)
    ways = [[1 / count] * count, [1.0] * count]
    if all(isinstance(one, Mapping) and isinstance(one.get("labels"), Tensor) for one in batches):
        targets = [int((one["labels"][..., 1:] != -100).sum()) for one in batches]
        ways.append([number / max(sum(targets), 1) for number in targets])
    return ways


class Cut(NamedTuple):
    """Gradients of a batch cut in `parts` micro-batches. task, auxiliary: as accumulated; each: the auxiliary gradients of the
    micro-batches by themselves, averaged in each of the ways to weigh them."""

    parts: int
    task: Tensor
    auxiliary: Tensor
    each: list[Tensor]


def cut(s: Subject, count: int, micro: Micro | None) -> Cut:
    """Measure a Cut. The task's gradient is the one with the coefficient at 0; the auxiliary gradient is what turning it up adds."""
    batches = split(s.batch, count)
    low, high = (0.0, s.TURNED) if s.applied else (None, None)
    one = s.zero if s.applied else s.plain
    task = [s.gradient(batch, low) for batch in batches]
    ways = ways_to_weigh(batches)
    weights = min(ways, key=lambda way: relative_difference(weighted_sum(task, way), one))

    def accumulate() -> None:
        if micro is not None:
            micro(s.model, batches)
            return
        for batch, weight in zip(batches, weights, strict=True):
            (s.loss(s.model, batch) * weight).backward()

    ran = s.gradient(coefficient=low, run=accumulate)
    if not s.applied:
        return Cut(count, ran, torch.zeros(0), [])
    alone = [s.gradient(batch, high) - zero for batch, zero in zip(batches, task, strict=True)]
    means = [weighted_sum(alone, way) for way in ways if abs(sum(way) - 1) < 1e-6]
    return Cut(count, ran, s.gradient(coefficient=high, run=accumulate) - ran, means)


def micro_batches(s: Subject, micro: Micro | None) -> Iterator[CheckFinding]:
    """Is the gradient the same for 1, 2 and 4 micro-batches of the same tokens?"""
    if rows_of(s.batch) < 2:
        yield not_checked(
            "micro-batches", f"the batch has {rows_of(s.batch)} row, and 2 are needed; give a larger batch"
        )
        return
    if s.is_random:
        yield not_checked(
            "micro-batches", "the model draws random numbers in training, so two gradients cannot be compared"
        )
        return
    cuts = [cut(s, count, micro) for count in (2, 4) if count <= rows_of(s.batch)]
    one = s.zero if s.applied else s.plain
    did = "took the gradient of the batch whole, and in " + " and ".join(str(c.parts) for c in cuts) + " micro-batches"
    if any(relative_difference(c.task, one) > s.tolerance for c in cuts):
        added = all(abs(projection(c.task, one) / c.parts - 1) < 0.1 for c in cuts)
        yield CheckFinding(
            "micro-batches", "", did,
            ("the task's gradient differs: " if s.applied else "the gradient differs: ")
            + "; ".join(
                f"{c.parts}: by {relative_difference(c.task, one):.0%}, {projection(c.task, one):.2f} times as large" for c in cuts
            ),
            "the losses of the micro-batches are added up and not averaged, so the step is too large by their number" if added
            else "the step depends on how the batch is cut: a mean of means where rows differ in length, or a capacity that drops "
            "tokens of each micro-batch",
            "(loss / number_of_micro_batches).backward()" if added else "loss = loss_sum / targets_in_all_micro_batches",
            "note" if micro is None else "bug",
        )  # fmt: skip
    if s.applied:
        yield from auxiliary_part(cuts, s.turned - s.zero, did, s.tolerance)


def auxiliary_part(cuts: Sequence[Cut], one: Tensor, did: str, tolerance: float) -> Iterator[CheckFinding]:
    """Is the auxiliary gradient that of the mean of the micro-batches' losses? And how far is that mean from the whole batch's?"""
    # The nearer of the means: by rows and by targets are both right; a wrong scale is far from both.
    scales = [min((projection(c.auxiliary, mean) for mean in c.each), key=lambda scale: abs(scale - 1)) for c in cuts]
    against = "the mean of the micro-batches alone"
    if all(abs(scale - 1) < 0.25 for scale in scales) and len(cuts) > 1:
        sizes = [projection(c.each[0], one) for c in cuts]
        if any(
            all(abs(size * c.parts**power - 1) < 0.25 for size, c in zip(sizes, cuts, strict=True)) for power in (1, -1)
        ):
            # A loss that is a sum over tokens where a mean is wanted.
            scales, against = sizes, "that of the whole batch"
    if any(abs(scale - 1) >= 0.25 for scale in scales):
        yield CheckFinding(
            "micro-batches", "", did,
            f"the auxiliary gradient against {against}: "
            + "; ".join(f"{c.parts}: {scale:.2f} times as large" for c, scale in zip(cuts, scales, strict=True)),
            "how strongly the load is balanced depends on how many micro-batches a step has",
            "(task_loss + coefficient * aux_loss / number_of_micro_batches).backward()" if against.startswith("the mean")
            else "aux_loss = aux_loss_sum / tokens  # a mean over tokens, as the task's loss is",
        )  # fmt: skip
    elif (off := relative_difference(cuts[-1].each[0], one)) > tolerance:
        yield CheckFinding(
            "micro-batches", "", did,
            f"the auxiliary gradient of {cuts[-1].parts} micro-batches differs by {off:.0%} from that of the whole batch; its scale is right",
            "this cannot be otherwise: the loss multiplies each expert's share of the tokens by its probability, and "
            "shares of few tokens are rougher. Small micro-batches balance each sequence rather than the batch",
            "use larger micro-batches, or take the shares over all micro-batches (and ranks) before the product",
            "note",
        )  # fmt: skip


# Padding


def padding(s: Subject, mask: Tensor | None) -> Iterator[CheckFinding]:
    """Do padding tokens count in the auxiliary loss?"""
    if not s.applied:
        return
    variants = padded(s, mask)
    if variants and s.is_random:
        yield not_checked("padding", "the model draws random numbers in training, so two gradients cannot be compared")
        return
    one = s.turned - s.zero
    for did, batch in variants.items():
        task = s.gradient(batch, 0.0)
        auxiliary = s.gradient(batch, s.TURNED) - task
        off, task_off = relative_difference(auxiliary, one), relative_difference(task, s.zero)
        # Rounding may send a token to another expert, and shares of few tokens then jump: 0.1 was measured.
        if off <= 3 * s.tolerance:
            continue
        reaches_tokens = task_off > s.tolerance
        yield CheckFinding(
            "padding", "", did,
            f"the auxiliary gradient changed by {off:.0%}, the task's by {task_off:.1%}",
            "padding changes what the tokens themselves compute, so its part in the auxiliary loss cannot be told"
            if reaches_tokens else "padding tokens count in the auxiliary loss: the experts that they choose seem busier than they are",
            "model(**batch, position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0))"
            if reaches_tokens else "load_balancing_loss_func(router_logits, num_experts, top_k, attention_mask)",
            "note" if reaches_tokens else "bug",
        )  # fmt: skip


def padded(s: Subject, mask: Tensor | None) -> dict[str, Batch]:
    """Batches that must give the same gradient, by what was done: padding put on either side, or the padding that `mask` leaves
    replaced by other tokens. Empty for a batch without an attention_mask and without `mask`."""
    batch = s.batch
    ids = batch if isinstance(batch, Tensor) else batch.get("input_ids")
    if not isinstance(ids, Tensor):
        return {}
    given = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    if isinstance(given, Tensor) and isinstance(batch, Mapping) and given.shape == ids.shape:
        return {f"put padding on the {side}": pad(s.model, batch, side == "left") for side in ("right", "left")}
    if mask is None or bool(mask.all()):
        return {}
    other = torch.where(mask.bool(), ids, ids.roll(1, dims=-1))
    return {
        "replaced the padding by other tokens": other if isinstance(batch, Tensor) else {**batch, "input_ids": other}
    }


def pad(model: nn.Module, batch: Mapping[str, Any], left: bool) -> dict[str, Any]:
    """The batch with padding of half its length added."""
    config = getattr(model, "config", None)
    shape, long = batch["input_ids"].shape, max(1, batch["input_ids"].shape[-1] // 2)
    fills = {"input_ids": getattr(config, "pad_token_id", None) or 0, "labels": -100}
    # The labels of a decoder that is fed by an encoder have a length of their own.
    keys = ["input_ids", "attention_mask"] if getattr(config, "is_encoder_decoder", False) else list(batch)
    longer = dict(batch)
    for key in keys:
        if isinstance(value := batch[key], Tensor) and value.shape == shape:
            more = value.new_full((*shape[:-1], long), fills.get(key, 0))
            if left and key == "labels":  # nothing predicts the first token, and padding must not either
                value = torch.cat([more[..., :1], value[..., 1:]], -1)
            longer[key] = torch.cat([more, value] if left else [value, more], -1)
    return longer
