"""Where a benchmark's figures are kept: benchmarks/results/NAME.json, with the machine that gave them and the command."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from moe_core.recording.facts import versions


def keep(path: Path, rows: list[dict[str, Any]], **said: Any) -> None:
    """Write the rows of a benchmark's table, what is `said` of all of them, the machine and the command, as one JSON object.

    The file is whole or absent: it is written beside its place and moved there. OSError where it cannot be written.
    """
    result = {"command": command(), "date": time.strftime("%Y-%m-%d"), "machine": machine()} | said | {"rows": rows}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program. load: of the last minute, processes that wanted a core; None where unknown."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(),
        "cores": cores,
        "load": load,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def processor() -> str:
    """Its name as the system gives it; Linux tells it in a file only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command() -> str:
    """The words of this process, as the docs write them."""
    script = Path(sys.argv[0])
    ours = script.name == "__main__.py"
    return " ".join([f"python -m {script.parent.name}" if ours else f"python benchmarks/{script.name}", *sys.argv[1:]])
