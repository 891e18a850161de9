"""ablate: how much the held-out loss rises without each expert."""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

from moe_core.commands import terminal
from moe_core.commands.common import add, csv_file, moved, plain, take_places, whole_flag, word_flag
from moe_core.schema import LOOKS_AHEAD, looks_ahead


def declare(commands: Any) -> None:
    ablate = add(
        commands,
        "ablate",
        ablate_command,
        "measure how much the held-out loss rises without each expert",
        extra="train",
    )
    ablate.add_argument(
        "--at", type=whole_flag, metavar="STEP", help="the checkpoint nearest to this step; else the last"
    )
    take_places(ablate)
    ablate.add_argument("--out", type=word_flag, metavar="FILE.csv", help="write the table there too")


def ablate_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import open_run, write_ablation

    run, out = open_run(arguments.run, arguments.runs), csv_file("--out", arguments.out)
    live = terminal.live(arguments.json)

    def progress(done: int, of: int) -> None:
        if live:
            terminal.update(f"{done} of {of} experts measured")

    from moe_core.training.ablate import ablate

    ablation = ablate(run, arguments.at, progress, moved(arguments))
    path = write_ablation(run.path, ablation)
    rows = table(ablation)
    ahead = looks_ahead(run.description, run.knobs_at(ablation.step))
    if live:
        terminal.update("")
    if out:
        write_csv(out, rows)
    if arguments.json:
        for row in rows:
            print(json.dumps({"event": "expert", **row}))
        event = {"event": "end", "run": run.id, "step": ablation.step, "loss": ablation.loss, "comparable": not ahead}
        print(json.dumps(event | {"path": str(path)}))
        return 0
    mark = f" ({LOOKS_AHEAD})" if ahead else ""
    print(plain(f"{run.id} at step {ablation.step}: held-out loss {ablation.loss:.4f} nats{mark}"))
    print(f"{'layer':>5} {'expert':>6} {'rise, nats':>12} {'selections':>10}")
    for row in rows:
        rise = "–" if row["rise"] is None else f"{row['rise']:+.4f}"
        print(f"{row['layer']:>5} {row['expert']:>6} {rise:>12} {100 * row['share']:>8.1f} %")
    return 0


def table(ablation: Any) -> list[dict[str, Any]]:
    """One row an expert, the most missed first; layers and experts counted from 1. rise is None where it was not measured."""
    rows = [
        {
            "layer": layer + 1,
            "expert": expert + 1,
            "rise": float(rise),
            "share": float(ablation.share_LE[layer, expert]),
        }
        for layer, rise_E in enumerate(ablation.rise_LE)
        for expert, rise in enumerate(rise_E)
    ]
    rows.sort(key=lambda row: (math.isnan(row["rise"]), -row["rise"] if not math.isnan(row["rise"]) else 0.0))
    return [row | {"rise": None} if math.isnan(row["rise"]) else row for row in rows]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ("layer", "expert", "rise", "share"))
        writer.writeheader()
        writer.writerows(rows)
