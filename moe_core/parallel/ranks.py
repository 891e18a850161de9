"""The ranks of a training, laid out as data x expert, and what they do together in a step.

Each rank has its own rows of the batch, all alike in number. The experts are dealt over the `expert` ranks of a group, and
each group has them all: so an expert's gradient is added up over the `data` groups, and everything else's over all ranks. A
rank's task loss is its part of the mean over the whole batch. So every gradient is a plain sum over ranks, and no
coefficient depends on how many there are.

Shapes: R ranks, t tokens of a rank, T = R t tokens of all, E experts. `x_tE` is (t, E).
"""

import datetime
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import DeviceMesh

from moe_core.nn.gating import NoisyTopKGate
from moe_core.nn.hierarchical import HierarchicalGate
from moe_core.nn.layer import MoELayer
from moe_core.nn.models import Classifier, TextModel
from moe_core.nn.once import only_once
from moe_core.parallel.alive import Alive
from moe_core.parallel.exchange import exchanged
from moe_core.parallel.group import add_up, from_first, let_go
from moe_core.parallel.traffic import Traffic, sent_to_add_up, size_of
from moe_core.runs.ranks import RankCounts, check_dealt, check_shares
from moe_core.training.data import Batch

Model = TextModel | Classifier
PATIENCE = 60.0  # seconds that a rank waits for the others before it gives them up


class Ranks:
    """This process among those that train. expert: over how many ranks the experts are dealt; data: how many such groups; alive: what
    is told of each exchange. For that, each must be within traffic.waiting()."""

    def __init__(
        self, expert: int, device: torch.device, patience: float = PATIENCE, alive: Alive | None = None
    ) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        check_dealt(RankCounts(self.size, expert))
        self.expert, self.data = expert, self.size // expert
        mesh = torch.arange(self.size).view(self.data, expert)
        wait = datetime.timedelta(seconds=patience)
        groups = [distributed.new_subgroups_by_enumeration(side.tolist(), timeout=wait)[0] for side in (mesh.T, mesh)]
        self.mesh = DeviceMesh.from_group(groups, device.type, mesh=mesh, mesh_dim_names=("data", "expert"))
        self.data_group, self.expert_group = self.mesh.get_group("data"), self.mesh.get_group("expert")
        self.patience = patience
        self.dismissed = False  # whether rank 0 has told the others that it is over
        self.place = self.mesh.get_local_rank("expert")  # which part of the experts this rank has
        self.control = distributed.new_group(backend="gloo", timeout=wait)  # for what is no tensor of the training
        self.traffic = Traffic(alive)
        self.chosen = torch.zeros((), dtype=torch.int64, device=device)  # see exchange.Group
        self.unlike_R = torch.zeros(self.size, dtype=torch.int64, device=device)

    def check(self, num_experts: int, rows: int) -> None:
        """ValueError unless experts and the batch's rows can be dealt evenly."""
        check_shares(RankCounts(self.size, self.expert), num_experts, rows)

    def meet(self) -> None:
        """Wait for all ranks; so one that hangs is noticed though nothing is trained."""
        with self.traffic.waiting():
            distributed.barrier(group=self.control)

    def from_first(self, value: Any) -> Any:
        """What rank 0 hands on to all; the value of the others counts for nothing."""
        with self.traffic.waiting():
            return from_first(value, self.control)

    def end(self) -> None:
        """Let go of all process groups, once nothing is exchanged any more."""
        let_go()
        del self.mesh, self.data_group, self.expert_group, self.control

    # What a step does

    def own_part(self, batch: Batch) -> Batch:
        """This rank's rows of the batch, without the labels, which only the whole batch needs. The first call of each step."""
        self.traffic.take()  # not counted: what evaluations and looks have sent since the last step
        inputs, targets = (x.chunk(self.size)[self.rank] for x in (batch.inputs, batch.targets))
        return Batch(inputs, targets, {})

    def gather(self, x_tE: Tensor) -> Tensor:
        """(T, E) the rows of all ranks, in order of rank. Only this rank's rows have a gradient here: every rank computes the
        same losses from all rows, so each finds the whole gradient of its own."""
        return gathered(x_tE, self)

    def add_up(self, values: Tensor, group: distributed.ProcessGroup | None = None, ranks: int | None = None) -> Tensor:
        """The sum over the ranks of a group, of all if None."""
        with self.traffic.waiting(sent_to_add_up(values, self.size if ranks is None else ranks)):
            return add_up(values, group)

    def add_up_all(
        self, values: Sequence[Tensor], group: distributed.ProcessGroup | None = None, ranks: int | None = None
    ) -> list[Tensor]:
        """add_up() of several tensors of a type, in one message."""
        if not values:
            return []
        whole = self.add_up(torch.cat([x.flatten() for x in values]), group, ranks)
        return [part.view_as(x) for part, x in zip(whole.split([x.numel() for x in values]), values, strict=True)]

    def add_up_gradients(self, model: Model) -> None:
        """Set each gradient to that of the whole batch's loss. Which parameters have one must be the same on all ranks."""
        standard, experts = parts_of(model)
        for threshold in thresholds_of(model):
            assert threshold.grad is not None
            threshold.grad /= self.size  # each rank has found it from all tokens, and so whole
        kinds = [(standard, None, self.size), (experts, self.data_group, self.data)]
        for parameters, group, ranks in kinds:
            if ranks > 1:
                gradients = [p.grad for p in parameters if p.grad is not None]
                for own, whole in zip(gradients, self.add_up_all(gradients, group, ranks), strict=True):
                    own.copy_(whole)

    def norm(self, model: Model) -> Tensor:
        """Euclidean norm of the gradients of all parameters, those of the other ranks' experts included."""
        standard, experts = (
            torch.stack(torch._foreach_norm([p.grad for p in part if p.grad is not None])).square().sum()
            for part in parts_of(model)
        )
        return (standard + self.add_up(experts, self.expert_group, self.expert)).sqrt()

    def add_up_step(self, model: Model, task_loss: Tensor, began: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """After backward: the gradients of the whole batch are set; returns their norm, the whole batch's task loss, and what
        the ranks sent in this step. task_loss: this rank's part; began: when the step did, by time.perf_counter().

        Each rank adds its digest of what was chosen, at its own place, so all learn of one that differs, in other groups too. The next
        exchange raises the error: it waits for the device anyway."""
        self.add_up_gradients(model)
        grad_norm = self.norm(model)
        sent, waited = self.traffic.take()
        seconds = time.perf_counter() - began
        # Not on a GPU: a call returns to the host before the GPU has done it, so the host's times mean nothing.
        share = waited / seconds if task_loss.device.type == "cpu" else torch.nan
        numbers = torch.tensor([sent, share], dtype=torch.float64, device=task_loss.device)
        digests_R = torch.zeros(self.size, dtype=torch.float64, device=task_loss.device)
        digests_R[self.rank] = self.chosen  # whole in float64
        with self.traffic.waiting():
            whole = add_up(torch.cat([task_loss.detach().double()[None], numbers, digests_R]))
        self.unlike_R = (whole[3:] - whole[3]).long()
        between = {"sent_bytes": whole[1], "communication": whole[2] / self.size}
        return grad_norm, whole[0].to(task_loss.dtype), between


class Gathered(FunctionCtx):
    """What gathering keeps for its backward: which rows are this rank's."""

    own: slice


class Gather(torch.autograd.Function):
    """The rows of all ranks. Backward keeps this rank's."""

    @staticmethod
    def forward(ctx: Gathered, x_tE: Tensor, ranks: Ranks) -> Tensor:
        x_TE = x_tE.new_empty(ranks.size * len(x_tE), x_tE.shape[1])
        with ranks.traffic.waiting((ranks.size - 1) * size_of(x_tE)):
            distributed.all_gather(list(x_TE.chunk(ranks.size)), x_tE.contiguous())
        ctx.own = slice(ranks.rank * len(x_tE), (ranks.rank + 1) * len(x_tE))
        return x_TE

    @staticmethod
    @only_once  # in a second derivative the other ranks' rows would be constants
    def backward(ctx: Gathered, grad_TE: Tensor) -> tuple[Tensor, None]:
        return grad_TE[ctx.own], None


gathered: Callable[[Tensor, Ranks], Tensor] = Gather.apply


def parts_of(model: Model) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that every rank has, and those of its experts."""
    experts = [w for layer in model.moe_layers for w in (layer.w1, layer.w2)]
    of_experts = {id(w) for w in experts}
    return [p for p in model.parameters() if id(p) not in of_experts], experts


def gates_of(model: Model) -> list[NoisyTopKGate | HierarchicalGate]:
    """All gates, of two levels both."""
    gates = [layer.gate for layer in model.moe_layers]
    return [
        gate
        for top in gates
        for gate in (top, getattr(top, "primary", None))
        if isinstance(gate, NoisyTopKGate | HierarchicalGate)
    ]


def thresholds_of(model: Model) -> list[nn.Parameter]:
    """The thresholds that have a gradient."""
    found = [getattr(gate, "threshold_E", None) for gate in gates_of(model)]
    return [threshold for threshold in found if threshold is not None and threshold.grad is not None]


def spread(model: Model, ranks: Ranks) -> None:
    """Leave this rank its experts, and let gates and experts work for the rows of all ranks. In place."""
    for layer in model.moe_layers:
        deal(layer, ranks)
        layer.mix = partial(exchanged, ranks)
    for gate in gates_of(model):
        gate.bring_together = brought_together(gate, ranks)


def brought_together(gate: nn.Module, ranks: Ranks) -> Callable[[Tensor], Tensor]:
    """How a gate gets the rows of all ranks. In evaluation every rank has the same rows."""
    return lambda x_tE: ranks.gather(x_tE) if gate.training else x_tE


def deal(layer: MoELayer, ranks: Ranks) -> None:
    """Keep this rank's part of a layer's experts. The layer's state stays that of all: so a checkpoint fits any number of ranks."""
    names = ("w1", "w2")

    def own(w_EDH: Tensor) -> Tensor:
        return w_EDH.chunk(ranks.expert)[ranks.place].clone()

    for name in names:
        setattr(layer, name, nn.Parameter(own(getattr(layer, name).data)))

    def whole(layer: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        for name in names:
            state[prefix + name] = whole_experts(state[prefix + name], ranks)

    def part(layer: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name in names:
            if prefix + name in state:
                state[prefix + name] = own(state[prefix + name])

    layer.register_state_dict_post_hook(whole)  # type: ignore[no-untyped-call]
    layer.register_load_state_dict_pre_hook(part)  # type: ignore[no-untyped-call]


def whole_experts(w_eDH: Tensor, ranks: Ranks) -> Tensor:
    """(E, D, H) the experts of all ranks of this rank's group."""
    whole_EDH = w_eDH.new_empty(ranks.expert * w_eDH.shape[0], *w_eDH.shape[1:])
    with ranks.traffic.waiting():
        distributed.all_gather(
            list(whole_EDH.chunk(ranks.expert)), w_eDH.detach().contiguous(), group=ranks.expert_group
        )
    return whole_EDH


def spread_optimizer(optimizer: torch.optim.Optimizer, model: Model, ranks: Ranks) -> None:
    """Let the optimizer's state be that of all experts when it is read, and this rank's part when it is set."""
    of_experts = {id(w) for w in parts_of(model)[1]}
    places = [at for at, p in enumerate(model.parameters()) if id(p) in of_experts]

    def change(state: dict[str, Any], f: Any) -> dict[str, Any]:
        changed = {
            at: {name: f(x) if at in places and x.dim() == 3 else x for name, x in of.items()}
            for at, of in state["state"].items()
        }
        return state | {"state": changed}

    def part(w_EDH: Tensor) -> Tensor:
        return w_EDH.chunk(ranks.expert)[ranks.place].clone()

    optimizer.register_state_dict_post_hook(lambda _, state: change(state, lambda w: whole_experts(w, ranks)))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: change(state, part))
