"""A run as one document: its settings, its knob changes, how it ended, every figure, and samples of its text.

One list of parts is written as HTML, which can be printed, is light or dark as the reader's system, and needs no network; or
as PDF, A4, drawn by the same marks as the figures.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_core.export.files import write
from moe_core.export.look import Look, sheet_of, undrawable
from moe_core.export.marks import Sheet
from moe_core.export.pages import WIDE, Paper, Rows
from moe_core.export.pdf import to_pdf
from moe_core.export.stamp import caption_of, facts_of
from moe_core.export.svg import printable, to_svg
from moe_core.export.web import head, typefaces
from moe_core.figures.catalog import FIGURES, shows
from moe_core.figures.reading import gestures, held_out_at, last_step
from moe_core.figures.theme import DARK, LIGHT
from moe_core.runs import ENDED
from moe_core.runs.source import Record
from moe_core.runs.statistics import mean_balance, measured_by
from moe_core.schema import (
    BALANCE_STEPS,
    HELD_OUT_BALANCE,
    LOOKS_AHEAD,
    STAT,
    Config,
    looks_ahead,
    meta_of,
    value_text,
    with_unit,
)

FIGURE = (WIDE, 300)
SETTINGS = {f.name for f in fields(Config)}
SAMPLES = 5  # texts, the last ones
EVALS = 25  # rows of the table of evaluations; more are thinned evenly
Progress = Callable[[int, int], None]
Draw = Callable[[str, int], Any]  # makes a figure, given its name and its layer


class Picture(NamedTuple):
    """A figure as it stands in the HTML file."""

    html: str


class Part(NamedTuple):
    """A section: a title, and below it tables (Rows), quoted texts (str), or figures as `draw` made them."""

    title: str
    content: list[Any]


def write_report(run: Record, out: str | os.PathLike[str], progress: Progress = lambda done, of: None) -> Path:
    """Write FILE.html or FILE.pdf. ValueError for another ending, and for a folder that does not exist."""
    path = Path(out)
    kinds: dict[str, Callable[[Record, Progress], str | bytes]] = {".html": as_html, ".pdf": as_pdf}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"a report's name must end in .html or .pdf, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} in; make it first")
    return write(path, kinds[path.suffix.lower()](run, progress))


def parts_of(run: Record, draw: Draw, progress: Progress = lambda done, of: None) -> list[Part]:
    """The sections of the report, in their order. The figures are drawn first: they read every step, and the first section says which
    steps are damaged."""
    state = run.status()
    started = {name: getattr(run.started_knobs, name) for name in run.description.knobs}
    ended = run.knobs_at(last_step(run))
    named = [
        (name, layer)
        for name in FIGURES
        if shows(run, name)
        for layer in range(len(run.description.layers) if FIGURES[name].layered else 1)
    ]
    figures = []
    for done, one in enumerate(named):
        progress(done, len(named))
        figures.append(draw(*one))
    progress(len(named), len(named))
    parts = [
        Part("How it stands", [Rows(("", ""), [*summary(run, state), *(("damage", line) for line in run.look_over())])]),
        Part("Configuration", [Rows(("setting", "value", "meaning"), [setting(*one) for one in run.description.settings.items() if one[1] not in ((), [], "")])]),
        Part(
            "Knobs",
            [Rows(("knob", "at the start", "at the end"), [(n, value_text(v), value_text(getattr(ended, n))) for n, v in started.items()])],
        ),
        Part("What was turned", [changes(run)]),
        Part(f"Evaluations{of_all(EVALS, len(run.evals()))}", [evaluations(run)]),
        Part("Figures", figures),
    ]  # fmt: skip
    texts = [(e.step, e.text) for e in run.evals() if e.text]
    if texts:
        parts.append(
            Part(
                f"Samples{of_all(SAMPLES, len(texts), 'the last ')}",
                [f"step {step:,}\n{text}" for step, text in texts[-SAMPLES:]],
            )
        )
    return parts


def of_all(most: int, there: int, which: str = "") -> str:
    """The end of a heading above a list that is shortened: ": 25 of 60"; else ""."""
    return f": {which}{most} of {there:,}" if there > most else ""


def summary(run: Record, state: Any) -> Iterator[tuple[str, str]]:
    last = last_step(run)
    yield "task", run.description.task
    yield "state", state.state + (f": {state.reason}" if state.reason else "")
    yield (
        "steps",
        f"{last:,}" + (f", {run.parent.step:,} of them inherited from {run.parent.run}" if run.parent else ""),
    )
    for name, value in run.facts.items():
        if name != "created":  # an export has no time of day, so that its bytes repeat
            yield name, words_of(value)
    if not last:
        return
    for layer in range(len(run.description.layers)):
        for stat, words in ((run.description.balance, STAT[run.description.balance].label), ("cv_importance", "CV(importance)"), ("max_over_mean_load", "max / mean load"), ("dead_experts", "dead experts")):  # fmt: skip
            if not measured_by(run.description, stat):
                continue
            _, values = run.history(stat, layer, first=max(1, last - BALANCE_STEPS + 1), last=last)
            known, steps = values[np.isfinite(values)], min(last, BALANCE_STEPS)  # steps that are damaged are not known
            mean = f"{np.mean(known):.3g}" if len(known) else "not known"
            of = f"{len(known)} of the" if len(known) < steps else "the"
            yield f"{words}, layer {layer + 1}", f"{mean} (mean of {of} last {steps} steps)"
        if (held_out := held_out_at(run, layer, last)) is not None:
            for (_, label, _), value in zip(HELD_OUT_BALANCE, (held_out.cv, held_out.max_over_mean), strict=True):
                yield f"{label}, layer {layer + 1}", f"{value:.3g} ({held_out.where}, step {held_out.step:,})"


def words_of(fact: Any) -> str:
    """A fact as one line: a mapping's pairs, a list's sentences."""
    if isinstance(fact, dict):
        return ", ".join(f"{k} {v}" for k, v in fact.items())
    return "; ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def setting(name: str, value: Any) -> tuple[str, str, str]:
    words = (
        ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else value_text(value)
        if isinstance(value, int | float | str)
        else str(value)
    )
    return name, words, meta_of(Config, name).help if name in SETTINGS else ""


def changes(run: Record) -> Rows:
    """The knob changes, a drag in one row; script.txt beside an export has every value of a drag."""
    waiting = "not acted" if run.state in (*ENDED, "interrupted") else "waiting"
    rows: list[tuple[str, ...]] = [
        (
            waiting if c.step is None else f"{c.step:,}",
            c.name,
            value_text(c.previous),
            value_text(c.value),
            c.who.partition("/")[0],  # without the name of its drag
        )
        for c in gestures(run.knob_changes())
    ]
    return Rows(("step", "knob", "from", "to", "by"), rows)


def evaluations(run: Record) -> Rows:
    names = [(name, with_unit(label, unit)) for name, label, unit, _ in run.description.metrics]
    done = [e._replace(metrics=e.metrics | mean_balance(e.counts)) for e in run.evals()]
    if any(e.counts is not None for e in done):
        names += [(name, with_unit(label, unit)) for name, label, unit in HELD_OUT_BALANCE]
    kept = [done[round(i)] for i in np.linspace(0, len(done) - 1, min(len(done), EVALS))] if done else []
    rows = [(f"{e.step:,}", *(f"{e.metrics[n]:.4g}" if n in e.metrics else "–" for n, _ in names)) for e in kept]
    ahead = [looks_ahead(run.description, run.knobs_at(e.step)) for e in kept]
    if any(ahead):
        rows = [(*row, LOOKS_AHEAD if one else "") for row, one in zip(rows, ahead, strict=True)]
    return Rows(("step", *(words for _, words in names), *[""] * any(ahead)), rows)


def figure_title(run: Record, name: str, layer: int) -> str | None:
    """The figure's title with the layer; None for its own title, where that says enough."""
    many = len(run.description.layers) > 1 and FIGURES[name].layered
    return f"{FIGURES[name].title}, layer {layer + 1}" if many else None


def drawn(run: Record, name: str, layer: int, theme: str) -> Sheet | str:
    """A figure, or, whatever the record may hold that it cannot be drawn of, why not."""
    look = Look(size=FIGURE, theme=theme, layer=layer, title=figure_title(run, name, layer))
    try:
        return sheet_of(run, name, look, "")[0]
    except Exception as error:
        return undrawable(f"{name} of layer {layer + 1}", error)


# HTML


def as_html(run: Record, progress: Progress) -> str:
    facts = facts_of(run, f"MoEscope report: {run.id}")
    body = []
    for part in parts_of(run, partial(picture_of, run), progress):
        body += [f"<section><h2>{escape(part.title)}</h2>", *map(html_of, part.content), "</section>"]
    return f"""<!DOCTYPE html>
<html lang="en"><head>
{head(facts)}
<meta name="viewport" content="width=device-width">
<style>{typefaces()}{STYLE}</style></head><body>
<h1>{safe(run.id)}</h1><p class="caption">{safe(caption_of(facts))}</p>
{"".join(body)}
</body></html>
"""


STYLE = f"""
:root {{ --ground: {LIGHT.ground}; --ink: {LIGHT.ink}; --ink2: {LIGHT.ink2}; --rule: {LIGHT.rule}; color-scheme: light dark; }}
body {{ margin: 32px auto; padding: 0 16px; max-width: {WIDE}px; background: var(--ground); color: var(--ink);
  font: 15px/1.4 'Source Sans', sans-serif; font-variant-numeric: tabular-nums; }}
h1 {{ font-size: 26px; margin: 0; overflow-wrap: anywhere; }} h2 {{ font-size: 18px; margin: 32px 0 8px; }}
.caption {{ color: var(--ink2); font-size: 13px; margin: 4px 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
th, td {{ text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }}
th {{ color: var(--ink2); font-weight: 600; }}
pre {{ font: 13px/1.4 'Source Code', monospace; white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--rule); padding-left: 12px; }}
figure {{ margin: 16px 0; break-inside: avoid; }} figure img {{ width: 100%; height: auto; display: block; }}
.dark {{ display: none; }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ --ground: {DARK.ground}; --ink: {DARK.ink}; --ink2: {DARK.ink2}; --rule: {DARK.rule}; }}
  figure img.light {{ display: none; }} figure img.dark {{ display: block; }}
}}
@media print {{ body {{ margin: 0; max-width: none; }} h2 {{ break-after: avoid; }} tr {{ break-inside: avoid; }} }}
"""


def safe(text: str) -> str:
    return escape(printable(text))


def html_of(piece: Rows | str | Picture) -> str:
    if isinstance(piece, Picture):
        return piece.html
    if isinstance(piece, Rows):
        if not piece.rows:
            return '<p class="caption">none</p>'
        heading = "".join(f"<th scope='col'>{safe(word)}</th>" for word in piece.heading)
        top = f"<thead><tr>{heading}</tr></thead>" if any(piece.heading) else ""
        rows = "".join(f"<tr>{''.join(f'<td>{safe(word)}</td>' for word in row)}</tr>" for row in piece.rows)
        return f"<table>{top}<tbody>{rows}</tbody></table>"
    return f"<pre>{safe(piece)}</pre>"


def picture_of(run: Record, name: str, layer: int) -> Picture | str:
    """A figure light and dark, or why it cannot be drawn."""
    words = safe(figure_title(run, name, layer) or FIGURES[name].title)
    pictures = []
    for theme in ("light", "dark"):
        sheet = drawn(run, name, layer, theme)
        if isinstance(sheet, str):
            return sheet
        pictures.append(picture(sheet, theme, words))
    return Picture(f"<figure>{''.join(pictures)}</figure>")


def picture(sheet: Sheet, theme: str, words: str) -> str:
    """An SVG as an image of its own, so that its ids (glyphs, clip paths) cannot clash with those of other figures."""
    import base64

    data = base64.b64encode(to_svg(sheet).encode()).decode()
    return f'<img class="{theme}" alt="{words}" width="{sheet.width}" height="{sheet.height}" src="data:image/svg+xml;base64,{data}">'


# PDF


def as_pdf(run: Record, progress: Progress) -> bytes:
    facts = facts_of(run, f"MoEscope report: {run.id}")
    paper = Paper(caption_of(facts))
    paper.words(str(run.id), 24, 600)
    paper.words(caption_of(facts), 12, 400, LIGHT.ink2)
    for part in parts_of(run, partial(drawn, run, theme="light"), progress):
        paper.heading(part.title)
        for piece in part.content:
            if isinstance(piece, Rows):
                paper.table(piece)
            elif isinstance(piece, str):
                paper.quote(piece)
            else:
                paper.figure(piece)
    return to_pdf(paper.pages(), facts)
