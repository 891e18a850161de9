"""A fixed batch of tokens that the model is shown every so many steps: where each goes now, and how that moves as it learns.

Being shown it changes nothing: the modules' modes and the random numbers are as they were, no gradient is taken, and nothing is
counted.

Shapes: N tokens that count, K places of a token, E experts of a layer.
"""

import contextlib
import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_core.nn.checks import check_size
from moe_core.nn.choices import churn, same_width, saturation
from moe_core.schema import first_line
from moe_core.watching.pieces import strings_of
from moe_core.watching.taps import Taps, device_of, flat

EVERY = 50  # steps between two looks
MOST = 2048  # tokens that count
LENGTH = 128  # tokens of a text; the rest is cut off
MOVEMENT = ("churn", "saturation")  # the statistics that are measured on the probe

log = logging.getLogger("moescope")


class Choice(NamedTuple):
    """Where a layer sends the probe's tokens. experts_NK: in order of weight, E for an empty place; gates_NK: their weights."""

    experts_NK: Tensor
    gates_NK: Tensor


class Look(NamedTuple):
    """What the model does with the probe at one step. choices: by the tap's number; compared: whether the next look is compared
    with this one; moved: churn and saturation since the look `every` steps before, by the tap's number, empty without one."""

    choices: dict[int, Choice]
    compared: bool
    moved: dict[int, tuple[Tensor, Tensor]]


class Probe:
    """Shows a model its probe. given, tokenizer: as watch() takes them. ValueError for what is not a batch.

    tokens: as the record keeps them: of each token its index into `strings`, and its row.
    """

    def __init__(self, model: nn.Module, taps: Taps, given: Any, tokenizer: Any = None, every: int = EVERY) -> None:
        self.model, self.taps, self.every = model, taps, check_size("probe_every", every)
        self.inputs = inputs_of(given, tokenizer)
        ids, self.kept_N = self.inputs["input_ids"], counted(self.inputs, tokenizer)
        N = int(self.kept_N.sum())
        if not 1 <= N <= MOST:
            raise ValueError(
                f"probe must have from 1 to {MOST:,} tokens, padding and special tokens aside, got {N:,}; give fewer or shorter texts"
            )
        named, token_N = np.unique(ids.flatten()[self.kept_N].cpu().numpy(), return_inverse=True)
        self.strings = strings_of(named.tolist(), tokenizer)
        row_N = torch.arange(len(ids)).repeat_interleave(ids.shape[1])[self.kept_N].numpy()
        self.tokens: dict[str, NDArray[Any]] = {
            "tokens": token_N.reshape(-1).astype(np.int32),
            "sequence": row_N.astype(np.uint16),
        }
        self.last: dict[int, Choice] = {}  # at the last multiple of every
        self.failed = False

    def look(self, step: int) -> Look | None:
        """What the model does with the probe at this step; None at a step without a look, and once a look has failed.

        There is a look at the first step, so that there is something to see, and at each multiple of `every`.
        """
        if self.failed or (step > 1 and step % self.every):
            return None
        try:
            choices = self._choices()
        except Exception as error:
            self.failed = True
            log.warning(
                "the probe could not be shown to %s at step %d: %s. Watching goes on without it.",
                type(self.model).__name__, step, first_line(error),
            )  # fmt: skip
            return None
        if step % self.every:
            return Look(choices, False, {})
        before, self.last = self.last, choices
        moved = {tap: self._moved(tap, choices[tap], before[tap]) for tap in choices.keys() & before.keys()}
        return Look(choices, True, moved)

    def _moved(self, tap: int, now: Choice, before: Choice) -> tuple[Tensor, Tensor]:
        pair, E = (now.experts_NK.long(), before.experts_NK.long()), self.taps.taps[tap].experts
        return churn(*pair, E), saturation(*pair, E)

    @torch.no_grad()
    def _choices(self) -> dict[int, Choice]:
        modes = [(module, module.training) for module in self.model.modules()]
        devices = {p.device for p in self.model.parameters() if p.device.type == "cuda"}
        args, kwargs = self._arguments()
        with torch.random.fork_rng(sorted(devices, key=str)), uncompiled():
            try:
                for module, _ in modes:
                    module.training = False  # not by eval(), which some models use to change their parameters
                with self.taps.show() as heard:
                    self.model(*args, **kwargs)
                if not heard:
                    raise ValueError("none of its layers was called")
            finally:
                for module, mode in modes:
                    module.training = mode
                reshard([module for module, _ in modes])
        return {tap: self._choice(tap, calls) for tap, calls in heard.items()}

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the model is called: by name where its forward takes input_ids, else with the ids alone."""
        names, device = names_of(self.model), device_of(self.model)
        inputs = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.inputs.items()}
        if "input_ids" not in names:
            return (inputs["input_ids"],), {}
        return (), inputs | ({"use_cache": False} if "use_cache" in names else {})

    def _choice(self, tap: int, calls: Sequence[tuple[Tensor, Tensor | None]]) -> Choice:
        """Of what a layer was called with, the tokens that count."""
        E, N = self.taps.taps[tap].experts, int(self.kept_N.sum())
        pairs = [flat(*call) for call in calls]
        ids_NK = torch.cat([ids for ids, _ in pairs]).long()
        given = [weights for _, weights in pairs if weights is not None]
        weights_NK = (
            torch.cat(given).float() if given else torch.full_like(ids_NK, 1 / ids_NK.shape[1], dtype=torch.float)
        )
        if len(ids_NK) == len(self.kept_N):
            kept_N = self.kept_N.to(ids_NK.device)
            ids_NK, weights_NK = ids_NK[kept_N], weights_NK[kept_N]
        elif len(ids_NK) != N:  # a model may leave out padding itself
            raise ValueError(
                f"{self.taps.taps[tap].name} was called with {len(ids_NK)} tokens where the probe has {len(self.kept_N)}"
            )
        empty_NK = (ids_NK < 0) | (ids_NK >= E) | (weights_NK == 0)
        weights_NK = weights_NK.masked_fill(empty_NK, 0)
        order_NK = weights_NK.masked_fill(empty_NK, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        experts_NK = ids_NK.masked_fill(empty_NK, E).gather(1, order_NK)
        return Choice(experts_NK.int(), weights_NK.gather(1, order_NK).half())


def snapshots_of(
    looks: Sequence[tuple[int, Look]], layers: Mapping[int, int], experts: Sequence[int]
) -> list[tuple[int, str, dict[str, NDArray[Any]]]]:
    """Looks as the record keeps them, by step: each as "probe", and those with which the next is compared also as "choices".

    layers: the layer of each tap's number; experts: how many each layer has. To be called where the record is written: it waits
    for the device.
    """
    snapshots: list[tuple[int, str, dict[str, NDArray[Any]]]] = []
    for step, look in looks:
        arrays = arrays_of(look.choices, layers, experts)
        snapshots.append((step, "probe", arrays))
        if look.compared:
            snapshots.append((step, "choices", {"experts": arrays["experts"]}))
    return snapshots


def arrays_of(
    choices: Mapping[int, Choice], layers: Mapping[int, int], experts: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """experts and gates (L, N, K) of a look. In a layer that was not called, all places are empty."""
    by_layer = {layers[tap]: choice for tap, choice in choices.items() if tap in layers}
    N = len(next(iter(choices.values())).experts_NK)
    none = [Choice(torch.full((N, 1), E), torch.zeros(N, 1, dtype=torch.half)) for E in experts]
    all = [by_layer.get(layer, none[layer]) for layer in range(len(experts))]
    chosen = torch.stack([x.cpu() for x in same_width([choice.experts_NK for choice in all], experts)])
    gates = torch.stack([x.cpu() for x in same_width([choice.gates_NK for choice in all], [0] * len(all))])
    small = np.uint8 if max(experts) < 256 else np.uint16
    return {"experts": chosen.numpy().astype(small), "gates": gates.numpy()}


def inputs_of(given: Any, tokenizer: Any) -> dict[str, Any]:
    """What the model is called with: input_ids (rows, tokens), and what else the batch holds. ValueError for anything else."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Sequence) and given and all(isinstance(text, str) for text in given):
        if not callable(tokenizer):
            raise ValueError("probe is a list of texts, which needs watch(tokenizer=...), the tokenizer of your model")
        batch = tokenizer(list(given), return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)
        if not isinstance(ids := batch["input_ids"], Tensor):
            raise ValueError(
                f'probe needs a tokenizer that gives tensors when it is called with return_tensors="pt", padding, truncation and '
                f"max_length; input_ids are {type(ids).__name__}"
            )
        given = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if isinstance(given, Tensor):
        given = {"input_ids": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("input_ids"), Tensor):
        raise ValueError(
            f"probe must be a list of texts, a tensor of token ids, or a batch with input_ids, got {type(given).__name__}"
        )
    ids = given["input_ids"]
    if ids.dim() not in (1, 2) or ids.is_floating_point():
        raise ValueError(
            f"probe's input_ids must be whole numbers of shape (rows, tokens), got {ids.dtype} of {tuple(ids.shape)}"
        )
    inputs = {name: x.detach().clone() if isinstance(x, Tensor) else x for name, x in given.items()}
    if ids.dim() == 1:
        inputs |= {name: x[None] for name, x in inputs.items() if isinstance(x, Tensor) and x.shape == ids.shape}
    return inputs


def counted(inputs: Mapping[str, Any], tokenizer: Any) -> Tensor:
    """(rows * tokens,) bool, which tokens count: neither padding nor special tokens."""
    ids = inputs["input_ids"].cpu()
    mask = inputs.get("attention_mask")
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.shape != ids.shape else mask.cpu().bool()
    special = getattr(tokenizer, "all_special_ids", None)
    return (kept & ~torch.isin(ids, torch.tensor(list(special), dtype=ids.dtype)) if special else kept).flatten()


def reshard(modules: Sequence[nn.Module]) -> None:
    """Let go of whole parameters that FSDP2 keeps after a forward: the next one would take them as they are now, even if the
    optimizer's step comes in between."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FSDPModule

        for module in modules:
            if isinstance(module, FSDPModule):
                module.reshard()


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """In here a compiled model runs uncompiled: the probe cannot be read in its graph."""
    used = "torch._dynamo" in sys.modules  # torch.compiler would import it, which takes a second
    return torch.compiler.set_stance("force_eager") if used else contextlib.nullcontext()


def names_of(model: nn.Module) -> set[str]:
    """The names of the arguments of a model's forward, and of the model inside the wrappers of DDP and torch.compile."""
    names = set(inspect.signature(model.forward).parameters)
    inner = getattr(model, "module", getattr(model, "_orig_mod", None))
    return names | names_of(inner) if isinstance(inner, nn.Module) else names
