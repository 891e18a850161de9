"""The workings of the Sweep page: choose a sweep, see how far it is, read its table, maps and Pareto front.

new_sweep.py has the form that starts one. A sweep started here is a process of its own: it outlives the dashboard and is found again by its lock.
"""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import streamlit as st

from moe_core.dashboard import component, links
from moe_core.dashboard.configure import recorded_speeds
from moe_core.dashboard.gate import deed, looks
from moe_core.dashboard.new_sweep import side_by_side
from moe_core.figures.catalog import FIGURES, shows
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.theme import THEMES
from moe_core.folders import PAGES
from moe_core.runs import StoreError, last_words, reap
from moe_core.runs.source import At
from moe_core.schema import AHEAD, LOOKS_AHEAD, Knobs, describe, exact_text
from moe_core.sweep import (
    FAILED,
    TRAINS,
    Result,
    Sweep,
    beside,
    cancel,
    ceiling_lines,
    detach,
    figure,
    left_of,
    measured,
    measures,
    notes,
    open_sweep,
    paper_columns,
    progress,
    results,
    rows,
    state_of,
    sweep_ids,
)

NEW = "New sweep"
CSS = """
.moe-table { border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums; width: 100%; }
.moe-table th { text-align: left; font-weight: 600; font-size: 13px; vertical-align: bottom; }
.moe-table th, .moe-table td { padding: 4px 16px 4px 0; border-bottom: 1px solid var(--moescope-rule); white-space: nowrap; }
.moe-table thead th { white-space: normal; }
.moe-table small { font-size: 13px; color: var(--moescope-ink-2); display: block; }
.moe-table tfoot td { color: var(--moescope-ink-2); font-size: 13px; }
.moe-table a { color: var(--moescope-hand); }
.moe-state { display: flex; align-items: baseline; gap: 12px; }
.moe-right { color: var(--moescope-ink-2); font-size: 13px; }
.moe-scroll { overflow-x: auto; }
.st-key-sweep-lists { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 8px 16px; align-items: start; }
.st-key-sweep-lists > * { min-width: 0; }
/* Below each other where beside each other their second lines would be cut. */
.st-key-sweep-maps [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
.st-key-sweep-maps [data-testid="stColumn"] { min-width: min(100%, 400px); }
.moe-notes p { color: var(--moescope-ink-2); font-size: 13px; margin: 4px 0 0; }
@media (min-width: 1600px) {
  .moe-table { font-size: 17px; }
  :is(.moe-table :is(th, small, tfoot td), .moe-right, .moe-notes p) { font-size: 15px; }
}
"""


def choose() -> Sweep | None:
    """The sweep that the link names, else the newest; None for a new one. The chooser is in the sidebar."""
    reap()
    st.html(f"<style>{CSS}</style>")
    names = sweep_ids()
    wanted = links.word("sweep") or (names[0] if names else "new")
    sweep = None
    if wanted != "new":
        try:
            sweep = open_sweep(wanted)
        except StoreError as error:
            st.error(str(error))
    st.session_state["sweep-chooser"] = sweep.id if sweep else NEW

    def go() -> None:
        picked = st.session_state["sweep-chooser"]
        st.query_params["sweep"] = "new" if picked == NEW else picked

    offered = [*([] if sweep and looks() else [NEW]), *names]  # who only looks starts none
    if names or not looks():
        st.sidebar.selectbox("Sweep", offered, key="sweep-chooser", on_change=go, label_visibility="collapsed")
    return sweep


# How far it is


def status(sweep: Sweep) -> list[Result]:
    """The line with the progress and its button, which keeps itself up to date. Returns the state of each run."""
    outcomes = results(sweep)
    done = state_of(sweep, outcomes) == "finished"
    st.fragment(moving, run_every=None if done else 1.0)(sweep, counted(outcomes))
    for result in outcomes:
        if result.state in FAILED:
            st.error(f"{result.job.run_id}: {result.problem}")
    return outcomes


def counted(outcomes: Sequence[Result]) -> tuple[int, int]:
    """How many runs have finished and failed; when this changes, the page draws its table again."""
    now = progress(outcomes)
    return now["finished"], now["failed"]


def moving(sweep: Sweep, drawn: tuple[int, int]) -> None:
    """Progress, with Cancel while the sweep runs and Go on when it does not and is not done."""
    reap()
    outcomes = results(sweep)
    state, now, plan = state_of(sweep, outcomes), progress(outcomes), sweep.plan
    knobs = " × ".join(plan.swept) or "no knob"
    steps = "" if "steps" in plan.swept else f" · {plan.config.steps:,} steps"
    seeds = "1 seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    st.html(
        f'<div class="moe-state" data-sweep="{state}"><b>{escape(sweep.id)}</b><span class="moe-right">'
        f"{escape(knobs)} · {describe(plan.config, Knobs()).task}{steps} · {seeds}</span></div>"
    )
    failed = f", {now['failed']} failed" if now["failed"] else ""
    at_work = sum(result.state in TRAINS for result in outcomes)
    training = f", {at_work} training" if at_work else ""
    bar, side = (st, st) if state == "finished" else st.columns([5, 1], vertical_alignment="center")
    left = left_of(outcomes, recorded_speeds(str(sweep.runs))) if state == "running" else ""
    bar.progress(
        min(1.0, now["step"] / max(1, now["steps"])), f"{now['finished']} of {now['runs']} runs{failed}{training}{left}"
    )
    if state == "running" and not looks():
        side.button("Cancel", key=f"cancel-{sweep.id}", on_click=deed(cancel), args=(sweep,), width="stretch")
    elif state == "incomplete" and not looks():
        side.button("Go on", key=f"go-on-{sweep.id}", on_click=go_on, args=(sweep,), type="primary", width="stretch")
        words = last_words(sweep.folder, "sweep.log")
        st.caption(
            words if words.startswith("moe:") else "Stopped. What is finished stays; what is not is trained again."
        )
    if counted(outcomes) != drawn:
        st.rerun()


@deed
def go_on(sweep: Sweep) -> None:
    detach(sweep, side_by_side())


# What came of it


def table(sweep: Sweep, outcomes: Sequence[Result]) -> None:
    """A row a cell: mean and spread over seeds, the paper's figure where the weights are its, its runs as links."""
    labels = measures(sweep.plan)
    swept = sweep.plan.swept
    lines = rows(sweep, outcomes)
    apart = paper_columns(lines)
    head = "".join(f"<th>{escape(name)}</th>" for name in [*swept, "runs", *labels.values(), *apart.values()])
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(exact_text(row[name]))}</td>" for name in swept)
        + f"<td>{run_links(row, outcomes)}</td>"
        + "".join(f'<td data-measure="{name}">{beside_paper(row, name)}</td>' for name in labels)
        + "".join(f'<td data-measure="{name}">{beside(row, name)}</td>' for name in apart)
        + "</tr>"
        for row in lines
    )
    foot = "".join(
        f'<tr><td colspan="{len(swept) + 1}">{words[:1].upper()}{words[1:]}</td>'
        + "".join(f"<td>{figure(highest[name]) if name in highest else ''}</td>" for name in [*labels, *apart])
        + "</tr>"
        for words, highest in ceiling_lines(sweep.plan, lines)
    )
    sentences = "".join(f"<p>{escape(note)}</p>" for note in notes(sweep.plan, lines, "paper"))
    st.html(
        f'<div class="moe-scroll"><table class="moe-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        f'<tfoot>{foot}</tfoot></table></div><div class="moe-notes">{sentences}</div>'
    )


def beside_paper(row: dict[str, Any], name: str) -> str:
    """A cell of the table: mean and spread, and the paper's figure, small. The mark says in a hover what it means."""
    paper, mark = beside(row, name), f'<abbr title="{LOOKS_AHEAD}">{AHEAD}</abbr>'
    return escape(measured(row, name)).replace(AHEAD, mark) + (f"<small>paper {paper}</small>" if paper else "")


def run_links(row: dict[str, Any], outcomes: Sequence[Result]) -> str:
    """The cell's runs by their seeds; one that has not begun is no link."""
    own = [result for result in outcomes if result.job.run_id in row["ids"]]
    words = []
    for result in own:
        seed = str(result.job.config.seed)
        begun = result.state not in ("waiting", "starting")
        words.append(f'<a href="./?run={escape(result.job.run_id)}">{seed}</a>' if begun else seed)
    return "seed " + ", ".join(words)


def charts(sweep: Sweep, outcomes: Sequence[Result]) -> None:
    """The maps of a sweep of two knobs, the metric against CV(load) of any sweep, and the link that exports them. A click on a
    chart opens a run."""
    theme, plan = THEMES[st.context.theme.type or "light"], sweep.plan
    source = SweepResults(
        sweep.id, describe(plan.config, Knobs()), plan.swept, plan.cells, rows(sweep, outcomes), outcomes
    )
    figures = [name for name in FIGURES if shows(source, name)]
    if "sweep_balance" in figures:
        maps = st.container(key="sweep-maps").columns(2)
        for column, name in zip(maps, ("sweep_balance", "sweep_quality"), strict=True):
            with column:
                clickable(name, FIGURES[name].draw(**FIGURES[name].read(source, At()), theme=theme))
    if any(result.ended for result in outcomes):
        pareto = FIGURES["sweep_pareto"]
        clickable("sweep_pareto", pareto.draw(**pareto.read(source, At()), theme=theme))
    component.export_link(figures, sweep=sweep.id)


def clickable(name: str, drawn: Any) -> None:
    """A chart; a click on a dot or a cell opens its run."""
    event = st.plotly_chart(
        drawn,
        theme=None,
        key=f"chart-{name}",
        on_select="rerun",
        selection_mode="points",
        config={"displayModeBar": False},  # its buttons would be stops of the Tab key; Export has the pictures
    )
    points = event["selection"]["points"] if event else []
    run = str(points[0].get("customdata") or "") if points else ""
    if re.fullmatch(r"[A-Za-z0-9._-]+", run):
        st.switch_page(PAGES / "live.py", query_params={"run": run})
