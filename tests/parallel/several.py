"""What test_ranks.py starts: `python -m tests.parallel.several FOLDER STEPS` trains each case on 1, 2 and 4 ranks, and the first
rank writes what came out into FOLDER/RANKS.pt. The ranks are forks of one process: importing torch takes longer than all else.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from moe_core.nn.experts import reference_mixture
from moe_core.parallel.exchange import Disagreement, exchanged
from moe_core.parallel.ranks import Ranks
from moe_core.parallel.trainer import Member
from moe_core.schema import Config, Knobs, layout, stats_of_ranks
from moe_core.training.again import Nowhere
from moe_core.training.data import load
from moe_core.training.loop import Trainer

SMALL = {"layers": 1, "num_experts": 4, "tokens": 64, "d_model": 16, "d_hidden": 16, "churn_every": 3, "threads": 1}
# By name: settings and knobs that differ from the usual.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {"strategy": "none"}),
    "paper": ({"layers": 2}, {"w_importance": 0.1, "w_load": 0.1}),
    "switch": ({}, {"strategy": "switch", "w_switch": 0.1, "w_z": 0.01}),
    "switch, global": ({}, {"strategy": "switch", "w_switch": 0.1, "balance_over": "global"}),
    "loss-free": ({}, {"strategy": "loss-free", "w_sequence": 0.01}),
    "quantile": ({}, {"strategy": "quantile"}),
    "expert-choice": ({}, {"strategy": "expert-choice"}),
    "strictly-balanced": ({}, {"strategy": "strictly-balanced", "w_importance": 0.1, "w_threshold": 0.1}),
    "even": ({}, {"strategy": "even"}),
    "capacity": ({}, {"capacity_factor": 1.0}),
    "groups": ({"layers": 2, "num_experts": 8, "groups": 4}, {"k": 1, "k_primary": 2}),
    "text": ({"task": "text", "context": 16}, {"strategy": "switch", "balance_over": "sequence", "w_switch": 0.1}),
    "one expert": ({}, {"k": 1, "weigh": "all", "off": "1,2"}),
}  # fmt: skip
MICRO = {
    "micro-batch": ({}, {"strategy": "switch", "w_switch": 1.0, "balance_over": "micro-batch"}),
    "batch": ({}, {"strategy": "switch", "w_switch": 1.0}),
}
ON_TWO = ("paper", "strictly-balanced", "text")  # the others are trained on 1 and on 4
DEALT = {1: 1, 2: 2, 4: 2}  # over how many ranks the experts are dealt


def trained(case: tuple[dict[str, Any], dict[str, Any]], ranks: Ranks | None, steps: int) -> dict[str, Any]:
    """Losses and statistics of each step, by name, and the weights after the last."""
    trainer = trainer_of(case, ranks)
    config, columns = trainer.config, trainer.telemetry.columns
    for _ in range(steps):
        trainer.train_step(0.0)
    trainer.committer.close()
    _, rows_nC = trainer.telemetry.take()
    rows = {(c.stat, c.layer): rows_nC[:, c.start : c.start + c.width] for c in columns}
    model, optimizer = trainer.model.state_dict(), trainer.optimizer.state_dict()
    parameters = {name: p.numel() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {
        "rows": rows, "model": model, "optimizer": optimizer["state"], "config": config,
        "chosen": trainer.window.state()[-1], "parameters": parameters, "dealt": trainer.window.dealt,
    }  # fmt: skip


def trainer_of(case: tuple[dict[str, Any], dict[str, Any]], ranks: Ranks | None) -> Trainer:
    config = Config(**{"task": "plane", **SMALL, **case[0]})
    columns = layout(config.layers, config.num_experts, stats_of_ranks(ranks.size if ranks else 1))
    writer: Any = Nowhere(Path())
    given = config, Knobs(**case[1]), load(config), torch.device("cpu"), writer, lambda event: None
    trainer = Member(ranks, *given, columns=columns) if ranks else Trainer(*given, columns=columns)
    trainer.replaying = True  # it looks at nothing by the clock
    return trainer


def exchanges(ranks: Ranks) -> list[float]:
    """How far an exchange is from its definition in float64: the outputs and each gradient, at the limits too.

    Row 0: random experts; 1: all tokens to the first expert, so that the other ranks of the group receive nothing; 2: empty
    places; 3: no token has an expert.
    """
    E, K, t, D, H = 4, 2, 6, 4, 8
    draw = torch.Generator().manual_seed(0)
    furthest = []
    for kind in range(4):
        experts_TK = torch.stack([torch.randperm(E, generator=draw)[:K] for _ in range(ranks.size * t)])
        if kind == 1:
            experts_TK = torch.tensor([0, 1]).expand(ranks.size * t, K)
        elif kind >= 2:
            empty_TK = torch.rand(ranks.size * t, K, generator=draw) < (0.5 if kind == 2 else 2.0)
            experts_TK = experts_TK.masked_fill(empty_TK, E)
        inputs = [torch.randn(*shape, generator=draw).double() for shape in ((ranks.size * t, D), (ranks.size * t, K), (E, D, H), (E, D, H), (ranks.size * t, D))]  # fmt: skip
        *whole, toward_TD = inputs
        whole = [x.requires_grad_() for x in whole]
        y_TD = reference_mixture(whole[0], whole[1].masked_fill(experts_TK == E, 0), experts_TK.clone(), *whole[2:])
        (y_TD * toward_TD).sum().backward()
        mine, part = slice(ranks.rank * t, (ranks.rank + 1) * t), slice(ranks.place * 2, ranks.place * 2 + 2)
        own = [x.detach()[where].clone().requires_grad_() for x, where in zip(whole, (mine, slice(None), part, part), strict=True)]  # fmt: skip
        y_tD = exchanged(ranks, own[0], own[1], experts_TK, torch.empty(0), own[2], own[3], gaps=kind >= 2)
        (y_tD * toward_TD[mine]).sum().backward()
        pairs = [(y_tD, y_TD[mine]), (own[0].grad, whole[0].grad[mine]), (own[1].grad[mine], whole[1].grad[mine])]
        pairs += [
            (ranks.add_up(o.grad, ranks.data_group), w.grad[part]) for o, w in zip(own[2:], whole[2:], strict=True)
        ]
        furthest.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    return furthest


def disagreement(ranks: Ranks) -> str:
    """What is said when one rank has chosen other experts than the rest, though it sends as many rows."""
    experts_TK = torch.tensor([[0, 1], [1, 0]]).repeat(ranks.size, 1)
    if ranks.rank == 1:
        experts_TK = experts_TK.flip(0)
    w_eDH = torch.zeros(2, 4, 4)
    try:
        exchanged(ranks, torch.zeros(2, 4), torch.zeros(len(experts_TK), 2), experts_TK, torch.empty(0), w_eDH, w_eDH)
    except Disagreement as error:
        return str(error)
    return ""


def disagreements_of_groups(ranks: Ranks) -> dict[str, list[str]]:
    """What each rank says when one group differs from the other: it draws other noise, or has other gates, by which ranks decide in
    evaluations only. Then what they say if none differs."""
    said: dict[str, list[str]] = {}
    for differs in ("noise", "gate", "nothing"):
        trainer = trainer_of(CASES["paper"], ranks)
        ranks.chosen, ranks.unlike_R = torch.zeros_like(ranks.chosen), torch.zeros_like(ranks.unlike_R)
        if ranks.rank >= 2 and differs == "noise":
            torch.manual_seed(1)
        if ranks.rank >= 2 and differs == "gate":
            trainer.model.moe_layers[0].gate.w_gate.data.normal_()
        problem = ""
        try:
            trainer.evaluate(text=False)
            for _ in range(3):
                trainer.train_step(0.0)
        except Disagreement as error:
            problem = f"step {trainer.step}: {error}"
        trainer.committer.close()
        said[differs] = [""] * ranks.size
        distributed.all_gather_object(said[differs], problem)
    return said


def work(rank: int, many: int, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    ranks = None
    if many > 1:
        store = distributed.FileStore(str(folder / f"store-{many}"), many)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=many)
        ranks = Ranks(DEALT[many], torch.device("cpu"))
    cases = {name: case for name, case in (CASES | MICRO).items() if many != 2 or name in ON_TWO}
    came_out: dict[str, Any] = {name: trained(case, ranks, steps) for name, case in cases.items()}
    if ranks and many == 4:
        came_out["again"] = trained(CASES["paper"], ranks, steps)
        came_out["disagreements of groups"] = disagreements_of_groups(ranks)
        came_out["exchanges"], came_out["disagreement"] = exchanges(ranks), disagreement(ranks)
    if rank == 0:
        torch.save(came_out, folder / f"{many}.pt")
    if many > 1:
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for count in DEALT:
        given = count, Path(sys.argv[1]), int(sys.argv[2])
        multiprocessing.start_processes(work, given, nprocs=count, start_method="fork")
