"""The Compare page: which runs are laid over the first, how they are aligned, and the table of their differences."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import streamlit as st

from moe_core.dashboard import component, controls, links
from moe_core.dashboard.links import MOST
from moe_core.figures.called import LETTERS, cut_apart
from moe_core.figures.catalog import on_page
from moe_core.figures.pages.tile import NONE, number
from moe_core.figures.read_compare import fork_steps, last_shared
from moe_core.figures.reading import gestures, rows_until
from moe_core.runs import ENDED, Run, StoreError, open_run
from moe_core.runs.overview import Entry, overview
from moe_core.runs.statistics import mean_balance, measured_by
from moe_core.schema import (
    BALANCE_STEPS,
    HELD_OUT_BALANCE,
    LOOKS_AHEAD,
    STAT,
    looks_ahead,
    value_text,
    with_unit,
)

CHIP = 18  # letters of a run's name that a chip has room for (style.py)
ENDS = ("cv_importance", "max_over_mean_load", "dead_experts")  # after that by which a layer is called balanced


def page() -> None:
    """The run of the link is A; those chosen beside it are B to D."""
    controls.page("compare", options)
    if "compared" in st.session_state:
        table(*st.session_state.pop("compared"))


def options(run: Run) -> dict[str, Any]:
    """The chooser of runs of the same task, and the alignment. Both are in the link."""
    task = run.description.task
    entries = [
        entry
        for entry in overview()
        if entry.facts.description and entry.facts.description.task == task and entry.id != run.id
    ]
    names = cut_apart([entry.name for entry in entries], CHIP)
    there = {entry.id: label_of(entry, name) for entry, name in zip(entries, names, strict=True)}
    chosen = [name for name in links.word("with") or [] if name in there]
    align = links.word("align") or "step"
    st.session_state["compare-with"], st.session_state["compare-align"] = chosen, align

    def go() -> None:
        picked = st.session_state["compare-with"]
        st.query_params["with"] = ",".join(picked)
        st.query_params["align"] = st.session_state["compare-align"] or align
        if not picked:
            del st.query_params["with"]

    with st.container(key="compare-row"):
        left, right, end = st.columns([3, 1, 0.8], gap="medium", vertical_alignment="bottom")
    left.multiselect(
        "Compare with",
        list(there),
        format_func=lambda id: there.get(id, id),
        key="compare-with",
        max_selections=MOST,
        on_change=go,
        placeholder="choose up to three runs" if there else "there is no other run of this task",
    )
    right.segmented_control(
        "Align by", ["step", "fork"], key="compare-align", on_change=go,
        format_func={"step": "Step", "fork": "Fork point"}.get,
    )  # fmt: skip
    compared = {"with": chosen, "align": align}
    if chosen:
        with end:
            component.export_link(on_page(run, "compare"), compared, run=run.id)
    st.session_state["compared"] = (run.id, *chosen), align
    return compared


def label_of(entry: Entry, short: str) -> str:
    """A run in the chooser: its name, cut so that a chip has room for it, and what sets it apart. Behind a name that is cut stands the
    whole one, so that a search finds it and the pointer shows it."""
    whole = "" if short == entry.name else f" · {entry.name}"
    return ": ".join(filter(None, (short, entry.apart))) + whole


@st.fragment(run_every=2.0)
def table(ids: Sequence[str], align: str) -> None:
    """The table of differences and end figures of the runs, read again every two seconds while they train."""
    runs = []
    try:
        for id in ids:
            runs.append(open_run(id, limit=0.25))
        st.html(as_html([run.name for run in runs], sections(runs, align), note_on(runs, align)))
    except StoreError as error:
        st.error(str(error))
    finally:
        for run in runs:
            run.close()


def note_on(runs: Sequence[Any], align: str) -> str:
    """A note where aligning by the fork has no effect, since no run is a fork of another; "" otherwise."""
    if align == "fork" and not any(fork_steps(list(runs))):
        return "None of these runs is a fork of another, so they are aligned by step."
    return ""


Section = tuple[str, list[tuple[str, list[str]]]]


def sections(runs: Sequence[Any], align: str = "step") -> list[Section]:
    """The table's sections, (heading, rows of (name, one text per run)): differing settings, differing knobs, and the end figures
    at the last step that all runs have."""
    parts: list[Section] = []
    names = dict.fromkeys(name for run in runs for name in run.description.settings)
    settings = [(name, [value_of(run.description.settings.get(name, "")) for run in runs]) for name in names]
    knobs = dict.fromkeys(name for run in runs for name in run.description.knobs)
    turned = [(name, [history_of(run, name) for run in runs]) for name in knobs]
    for heading, rows in (("Config", settings), ("Knobs", turned)):
        differ = [(name, texts) for name, texts in rows if len(set(texts)) > 1]
        if differ:
            parts.append((heading, differ))
    offsets = fork_steps(list(runs)) if align == "fork" else [0] * len(runs)
    shared = last_shared(list(runs), offsets)
    where = f"{shared:,} steps after the fork" if any(offsets) else f"At step {shared:,}"
    return [*parts, (f"{where}, the last that all have", end_figures(runs, [shared + offset for offset in offsets]))]


def value_of(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "–"
    return value_text(value) if isinstance(value, float | str) else str(value)


def history_of(run: Any, name: str) -> str:
    """A knob's values: "0 → 0.1 (step 201)"; of more than two turns only the last two."""
    turns = [change for change in gestures(run.knob_changes()) if change.name == name]
    waiting = "not acted" if run.state in (*ENDED, "interrupted") else "waiting"
    text = value_text(getattr(run.started_knobs, name, None))
    text += " → …" if len(turns) > 2 else ""
    for change in turns[-2:]:
        text += f" → {value_text(change.value)} ({waiting if change.step is None else f'step {change.step:,}'})"
    return text


def end_figures(runs: Sequence[Any], ends: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Each run's figures at its step in `ends`, and how they differ from the first run's. Balance is a mean over the last
    steps up to it and all MoE layers; on the held-out split it is that of the last evaluation until then.
    """
    rows = [("steps in all", [f"{run.steps()[1]:,}" for run in runs])]
    if runs[0].description.metrics:
        rows.append(headline(runs, ends))
    for stat in (runs[0].description.balance, *ENDS):
        if not all(measured_by(run.description, stat) for run in runs):
            continue
        means = []
        for run, end in zip(runs, ends, strict=True):
            values = [
                rows_until(run, stat, layer, end, BALANCE_STEPS)[1] for layer in range(len(run.description.layers))
            ]
            means.append(float(np.nanmean(values)) if len(values[0]) else math.nan)
        rows.append((STAT[stat].label, against_first(means, 2)))
    counts = [
        next((e.counts for e in reversed(run.evals()) if e.step <= end), None)
        for run, end in zip(runs, ends, strict=True)
    ]
    done = [mean_balance(counts_LE) for counts_LE in counts]
    for name, label, unit in HELD_OUT_BALANCE:
        rows.append((with_unit(label, unit), against_first([one.get(name, math.nan) for one in done], 2)))
    return rows


def headline(runs: Sequence[Any], ends: Sequence[int]) -> tuple[str, list[str]]:
    """The first metric of each run's last evaluation up to its step in `ends`."""
    name, label, unit, _ = runs[0].description.metrics[0]
    last = [
        next((e for e in reversed(run.evals()) if name in e.metrics and e.step <= end), None)
        for run, end in zip(runs, ends, strict=True)
    ]
    values = [math.nan if e is None else e.metrics[name] for e in last]
    ahead = [
        e is not None and looks_ahead(run.description, run.knobs_at(e.step)) for run, e in zip(runs, last, strict=True)
    ]
    texts = against_first(values, 3)
    apart = [math.nan if e is None else end - e.step for e, end in zip(last, ends, strict=True)]
    if any(ahead) or len(set(apart)) > 1:  # the values do not compare, so no difference from A is shown
        texts = [
            number(v, 3)
            + (f", {LOOKS_AHEAD}" if one else "")
            + (f", step {e.step:,}" if e and len(set(apart)) > 1 else "")
            for v, one, e in zip(values, ahead, last, strict=True)
        ]
    return with_unit(label, unit), texts


def against_first(values: Sequence[float], digits: int) -> list[str]:
    """ "0.12 (−1.95)": the value, and its difference from the first."""
    texts = [number(values[0], digits)]
    for value in values[1:]:
        gap = number(value - values[0], digits)
        sign = "+" if value > values[0] else ""
        texts.append(number(value, digits) + ("" if gap == NONE else f" ({sign}{gap})"))
    return texts


def as_html(names: Sequence[str], parts: Sequence[Section], note: str) -> str:
    """A plain table. Names come from folders and values from files: all of it is escaped."""
    heads = "".join(
        f'<th scope="col"><i class="moe-run moe-run-{i}"></i>{LETTERS[i]} {escape(name)}</th>'
        for i, name in enumerate(names)
    )
    body = ""
    for heading, rows in parts:
        body += f'<tr><th scope="rowgroup" colspan="{len(names) + 1}" class="moe-part">{escape(heading)}</th></tr>'
        for name, texts in rows:
            cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
            body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    paragraph = f"<p>{escape(note)}</p>" if note else ""
    return (
        f'<div class="moe-differences"><h2>Differences</h2><p>only rows that differ; balance is a mean over the {BALANCE_STEPS} steps '
        f'up to that step and all layers, in brackets the difference from A</p>{paragraph}<div class="moe-wide" tabindex="0"><table><thead><tr><th scope="col">setting</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )
