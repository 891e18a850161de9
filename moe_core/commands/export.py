"""export: a run's numbers and charts as files."""

import argparse
from pathlib import Path
from typing import Any

from moe_core.commands.common import add, report


def declare(commands: Any) -> None:
    export = add(commands, "export", export_command, "write a run's numbers and charts to files")
    export.add_argument("--out", required=True, metavar="DIR")
    export.add_argument("--format", default="csv,html", metavar="LIST", help="of csv, html, with commas")
    export.add_argument("--figure", nargs="+", metavar="NAME", help="these figures only")


def export_command(arguments: argparse.Namespace) -> int:
    from moe_core.export import export
    from moe_core.runs import open_run

    formats = tuple(name.strip() for name in arguments.format.split(",") if name.strip())
    run = open_run(arguments.run, arguments.runs)
    for path in export(run, Path(arguments.out), formats, tuple(arguments.figure) if arguments.figure else None):
        report(arguments, {"event": "file", "path": str(path)}, str(path))
    return 0
