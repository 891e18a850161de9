"""export and report: a run's charts and numbers as files."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_core.commands import terminal
from moe_core.commands.common import add, real_flag, report, tell_damage, whole_flag, word_flag
from moe_core.schema import Description, whole


def declare(commands: Any) -> None:
    files = add(
        commands,
        "export",
        export_command,
        "write the charts and numbers of a run, a comparison or a sweep to files",
        extra="export",
    )
    files.add_argument(
        "--out",
        type=word_flag,
        required=True,
        metavar="PATH",
        help="a folder; with --animate or --format replay a file",
    )
    files.add_argument(
        "--format",
        default="csv,html",
        type=word_flag,
        metavar="LIST",
        help="of png, svg, pdf, html, csv, parquet, with commas; or replay",
    )
    files.add_argument("--figure", nargs="+", action="extend", metavar="NAME", help="these figures only")
    declare_look(files)
    files.add_argument(
        "--with",
        nargs="+",
        action="extend",
        metavar="OTHER",
        default=[],
        dest="others",
        help="runs to compare with, at most three",
    )
    files.add_argument(
        "--align", choices=("step", "fork"), help="how compared runs are laid over each other; else by step"
    )
    files.add_argument(
        "--choose",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        default=[],
        help="expert=3, pinned=3,17 (experts that have a colour where there are more than 16), or what the formula is asked: tokens, k, experts, devices",
    )
    files.add_argument(
        "--panels",
        type=whole_flag,
        default=0,
        metavar="COLUMNS",
        help="the figures as panels of one file, so many beside each other",
    )
    files.add_argument("--animate", type=word_flag, metavar="NAME", help="this figure over the run, to a .gif or .mp4")
    files.add_argument("--seconds", type=real_flag, default=10.0, help="how long the animation takes")
    document = add(commands, "report", report_command, "write all of a run into one HTML or PDF file", extra="export")
    document.add_argument(
        "--out", type=word_flag, required=True, metavar="FILE", help="a name that ends in .html or .pdf"
    )


def declare_look(files: argparse.ArgumentParser) -> None:
    """The flags of how a figure looks."""
    files.add_argument("--size", metavar="WxH", help="640x400, 3.25in, 85x60mm or 16:9; else a paper's column")
    files.add_argument("--scale", type=real_flag, help="pixels of a PNG for each CSS pixel; else 2")
    files.add_argument("--theme", help="light, dark or grey; else light")
    files.add_argument("--title", help='instead of the figure\'s own; "" for none')
    files.add_argument(
        "--font",
        metavar="SIZE",
        help="of the axes' type, 13 or 8pt; all else follows; else 8pt on paper, 13 px on a screen",
    )
    files.add_argument(
        "--smooth", type=whole_flag, metavar="STEPS", help="draw lines as a centred mean over so many steps"
    )
    files.add_argument(
        "--style",
        type=word_flag,
        metavar="FILE",
        help="a look kept as JSON, by the names of these flags, which come before it",
    )
    files.add_argument("--layer", default="1", help="its number, counted from 1, or its name")
    files.add_argument("--at", type=whole_flag, metavar="STEP", help="as it stood at a step; else at the last")
    files.add_argument("--caption", action="store_true", help="a line below with run, step and version")


def export_command(arguments: argparse.Namespace) -> int:
    from moe_core.export.sources import named

    options = dict(word.partition("=")[::2] for word in arguments.choose) | (
        {"align": arguments.align} if arguments.align else {}
    )
    source = named(arguments.run, arguments.runs, others=tuple(arguments.others), options=tuple(options.items()))
    with source.open(arguments.runs) as run:
        write(arguments, run)
        runs = [] if source.sweep else [run, *run.others]
        return tell_damage(arguments, [line for one in runs for line in one.look_over()])


def write(arguments: argparse.Namespace, run: Any) -> None:
    from moe_core.export import export

    formats = tuple(name.strip() for name in arguments.format.split(",") if name.strip())
    if not formats:
        raise ValueError(f"--format names png, svg, pdf, html, csv, parquet or replay, got {arguments.format!r}")
    look = look_of(arguments, run)
    out = Path(arguments.out)
    if arguments.animate:
        from moe_core.export.animation import animate

        paths = [animate(run, arguments.animate, out, look, arguments.seconds, progress_of(arguments))]
    elif formats == ("replay",):
        from moe_core.export.replay import replay

        paths = [replay(run, out, look.layer, progress_of(arguments))]
    else:
        figures = tuple(arguments.figure) if arguments.figure else None
        paths = export(run, out, formats, figures, look, progress_of(arguments), arguments.panels)
    for path in paths:
        tell(arguments, path)


def report_command(arguments: argparse.Namespace) -> int:
    from moe_core.export.report import write_report
    from moe_core.export.sources import Still
    from moe_core.runs import open_run

    run = Still(open_run(arguments.run, arguments.runs))
    tell(arguments, write_report(run, Path(arguments.out), progress_of(arguments)))
    return tell_damage(arguments, run.damage)


def progress_of(arguments: argparse.Namespace) -> Callable[[int, int], None]:
    """Says how far it is: on a terminal in place, with --json as events."""
    live = terminal.live(arguments.json)

    def progress(done: int, of: int) -> None:
        if arguments.json:
            print(json.dumps({"event": "progress", "done": done, "of": of}), flush=True)
        elif live:
            print(f"\r{done} of {of}", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return progress


def tell(arguments: argparse.Namespace, path: Path) -> None:
    report(arguments, {"event": "file", "path": str(path), "bytes": path.stat().st_size}, str(path))


def layer_of(word: str, description: Description) -> int:
    """A layer, counted from 0, that is named by its number from 1 or by its name."""
    if word in (layer.name for layer in description.layers):
        return description.layer(word)
    try:
        return whole(word) - 1
    except ValueError:
        last = len(description.layers)
        raise ValueError(
            f"a layer is named by a whole number from 1 to {last}, or by its name, got {word[:80]!r}"
        ) from None


def look_of(arguments: argparse.Namespace, run: Any) -> Any:
    """The flags, and what a style file has where they say nothing, as a Look. ValueError for what is no size or style, and for a name
    that no layer has."""
    from moe_core.export import Look, chosen
    from moe_core.export.sizes import PAPER, size_of_words, type_of_words
    from moe_core.export.style import KINDS, read_style

    words = read_style(arguments.style) if arguments.style else {}
    flags = {name: getattr(arguments, name) for name in KINDS}
    words |= {name: value for name, value in flags.items() if value is not None and value is not False}
    sized = size_of_words(words["size"]) if "size" in words else None
    usual = PAPER if sized and sized.paper else Look.font
    if sized and arguments.panels:
        count = len(chosen(run, arguments.figure))
        sized = sized._replace(size=sized.of_panels(count, max(1, arguments.panels)))
    return Look(
        size=sized and sized.size,
        scale=words.get("scale", Look.scale),
        theme=words.get("theme", Look.theme),
        title=words.get("title"),
        font=type_of_words(str(words["font"])) if "font" in words else usual,
        caption=words.get("caption", False),
        layer=layer_of(arguments.layer, run.description),
        step=arguments.at,
        smooth=words.get("smooth", Look.smooth),
    )
