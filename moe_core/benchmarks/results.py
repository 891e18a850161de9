"""Where a benchmark's figures are kept: benchmarks/results/NAME.json, with the machine that gave them and the command."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from moe_core.recording.facts import versions
from moe_core.runs.machine import cores


def keep(path: Path, rows: list[dict[str, Any]], **said: Any) -> None:
    """Write one JSON object: the command, the machine, what is `said` of all rows, and the rows of a benchmark's table.

    It is written beside its place and moved there, so that the file is always whole. OSError if it cannot be written.
    """
    result = {"command": command(), "date": time.strftime("%Y-%m-%d"), "machine": machine()} | said | {"rows": rows}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def check_place(path: Path) -> None:
    """ValueError, before anything is measured, where keep() could not write."""
    if path.is_dir():
        raise ValueError(f"--out must name a file, got the folder {str(path)!r}; add a name such as layer.json")
    beside = path.with_suffix(".part")
    try:
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise ValueError(
            f"--out {str(path)!r} cannot be written: {error.strerror}; name a file in a folder that can be written to"
        ) from None


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program. load: how many processes wanted a core in the last minute; None if unknown."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(),
        "cores": cores(),
        "load": load,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def processor() -> str:
    """The processor's name as the system gives it; Linux has it only in a file."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command() -> str:
    """The command that this process was started with, as the docs write commands."""
    script = Path(sys.argv[0])
    ours = script.name == "__main__.py"
    return " ".join([f"python -m {script.parent.name}" if ours else f"python benchmarks/{script.name}", *sys.argv[1:]])
