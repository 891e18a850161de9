"""bench: what is measured side by side with peers."""

import argparse
import sys
from pathlib import Path
from typing import Any

from moe_core.commands.common import add


def declare(commands: Any) -> None:
    bench = add(commands, "bench", bench_command, "measure the MoE layer beside its peers", run=False)
    bench.add_argument("what", choices=("layer",))


def bench_command(arguments: argparse.Namespace) -> int:
    # Benchmarks lie beside the package, not in it: they are not what a person installs.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks.layer import main as layer

    return int(layer(["--json"] if arguments.json else []))
