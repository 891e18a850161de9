"""A run as one HTML file that plays it: the Live page's charts, the knobs as they were, the routing, and a scrubber.

It opens from a disk or any website, without a server or a network. All numbers at a step were recorded at that step: where
a run has more rows than fit, whole rows are left out, and of each stretch of steps the most and the least balanced row stay.
Shares are kept to 1/65535.
"""

import base64
import os
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.export.files import write_parts
from moe_core.export.stamp import caption_of, facts_of
from moe_core.export.svg import printable
from moe_core.export.web import head, plotly_js, script_text, typefaces
from moe_core.figures.catalog import FIGURES
from moe_core.figures.pages.words import ALONE
from moe_core.figures.probe import as_images
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.reading import classes_of_probe, comparable_at, held_out_at, last_step, rows_of_probe
from moe_core.figures.rows import hover_of_row, spreads
from moe_core.figures.theme import THEMES
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import measured_by
from moe_core.schema import (
    AUTOBALANCE,
    BALANCED,
    COLLAPSED,
    LOOKS_AHEAD,
    untaught,
    value_text,
)

BUDGET = 3_300_000  # bytes of rows in the file
SHOTS = 200  # snapshots of the probe at most
IMAGE = 32  # pixels along the longer side of an image
CHARTS = {"selection_share": (780, 335), "balance_now": (410, 335), "balance": (780, 240), "loss": (410, 240)}
NUMBERS = ("cv_load", "cv_importance", "max_over_mean_load", "dead_experts", "effective_experts")
SHARES = ("selection_share", "load", "importance")
KEPT = ("held-out", "off", "ideal")  # lines whose names begin so keep their points; the page fills in the others
HERE = Path(__file__).parent
Progress = Callable[[int, int], None]


def not_measured(run: Source) -> list[str]:
    """The statistics that a replay shows and this run lacks."""
    return [name for name in (*SHARES, *NUMBERS, "task_loss") if not measured_by(run.description, name)]


def replay(
    run: Source, out: str | os.PathLike[str], layer: int = 0, progress: Progress = lambda done, of: None
) -> Path:
    """Write FILE.html, which opens at this layer. ValueError for another ending, a sweep, or a run without steps."""
    path = Path(out)
    if path.suffix.lower() != ".html":
        raise ValueError(f"a replay's name must end in .html, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} in; make it first")
    if isinstance(run, SweepResults):
        raise ValueError(f"a replay shows one run, and {run.id} is a sweep; name one of its runs")
    if not last_step(run):
        raise ValueError(f"{run.id} has no recorded step to replay; let it train, then export again")
    if missing := not_measured(run):
        raise ValueError(
            f"a replay shows {', '.join(missing)}, which {run.id} does not measure; export its figures instead"
        )
    facts = facts_of(run, f"MoEscope replay: {run.id}")
    data = data_of(run, layer, progress)
    parts = (
        f'<!DOCTYPE html>\n<html lang="en"><head>\n{head(facts)}\n<meta name="viewport" content="width=device-width">\n',
        f"<style>{typefaces()}{(HERE / 'replay.css').read_text()}</style>\n<script>{plotly_js()}</script></head>\n",
        f"<body><header><h1>{escape(printable(run.id))}</h1><p>{escape(printable(caption_of(facts)))}</p></header>\n",
        f"<script>const REPLAY = {script_text(data)};</script>\n",
        f"<script>{(HERE / 'replay.js').read_text()}</script></body></html>\n",
    )
    return write_parts(path, (part.encode() for part in parts))


def data_of(run: Source, layer: int, progress: Progress) -> dict[str, Any]:
    """The page's data, in types of JSON; arrays are base64 of little-endian numbers."""
    layers = len(run.description.layers)
    rows = rows_of(run)
    steps = run.history("cv_load", 0)[0][rows]
    of = layers * (len(SHARES) + len(NUMBERS)) + len(THEMES)
    kept: list[dict[str, str]] = []
    done = 0
    for at in range(layers):
        numbers = {}
        for name in (*SHARES, *NUMBERS):
            progress(done, of)
            done += 1
            values = np.asarray(run.history(name, at)[1], np.float64)[rows]
            numbers[name] = packed(shares(values)) if name in SHARES else packed(values.astype("<f4"))
        numbers["untaught"] = packed(untaught_of(run, at)[rows].astype("<f4"))
        kept.append(numbers)
    loss = FIGURES["loss"].read(run, At(layer, bins=4000))
    specs = {}
    for theme in THEMES:
        progress(done, of)
        done += 1
        specs[theme] = [skeletons(run, theme, at) for at in range(layers)]
    progress(of, of)
    return {
        "kind": run.description.probe, "experts": run.description.experts, "layers": layers, "layer": layer, "steps": packed(steps.astype("<f8")), "rows": kept,
        "loss": {"x": packed(np.asarray(loss["steps"], "<f8")), "y": packed(np.asarray(loss["train"], "<f4"))},
        "knobs": knobs_of(run), "specs": specs, "probe": probe_of(run), "words": [BALANCED, COLLAPSED, *ALONE],
        "metric": metric_of(run), "held_out": [held_out_of(run, at) for at in range(layers)],
        "off": [off[:4] for off in run.off_spans()], "themes": {n: {"experts": t.experts, "over": t.over, "under": t.under} | {k: getattr(t, k) for k in ("ground", "ink", "ink2", "rule", "edge", "hand")} for n, t in THEMES.items()},
    }  # fmt: skip


def untaught_of(run: Source, layer: int) -> np.ndarray[Any, Any]:
    """(n,) for each step, whether the gate gets no gradient from the task; all False for a run that did not measure it."""
    if "task_gradient" not in run.description.measures:
        return np.zeros(run.steps()[1], bool)
    gradient, whole = (np.asarray(run.history(name, layer)[1]) for name in ("task_gradient", "grad_norm"))
    return np.asarray(untaught(gradient, whole))


def packed(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def shares(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Shares of what is known of each row, in parts of 65535; 0 for what is not known."""
    known: np.ndarray[Any, Any] = np.nan_to_num(values, posinf=0)
    total = known.sum(axis=1, keepdims=True)
    return np.round(65535 * known / np.where(total > 0, total, 1)).astype("<u2")


def rows_of(run: Source) -> np.ndarray[Any, Any]:
    """The rows to keep: all, or of each stretch the one with the least and the one with the most CV(load), and those around changes."""
    steps, cv = run.history("cv_load", 0)
    each = sum(len(SHARES) * experts * 2 + len(NUMBERS) * 4 for experts in run.description.experts) * 4 / 3
    most = max(200, int(BUDGET / each))
    if len(steps) <= most:
        return np.arange(len(steps))
    parts = np.array_split(np.arange(len(steps)), most // 2)
    kept = {0, len(steps) - 1}
    for part in parts:
        known = np.nan_to_num(cv[part], nan=0.0)
        kept |= {int(part[known.argmin()]), int(part[known.argmax()])}
    for change in run.knob_changes():
        if change.step is not None:
            kept |= {i for i in np.searchsorted(steps, [change.step - 1, change.step]).tolist() if i < len(steps)}
    return np.array(sorted(kept))


def knobs_of(run: Source) -> list[dict[str, Any]]:
    """The knobs at the start, then each change: the step of effect, name, label and value in words."""
    start = [
        {"step": 0, "name": n, "label": run.description.label_of(n), "value": value_text(getattr(run.started_knobs, n))}
        for n in run.description.knobs
    ]
    return start + [
        {
            "step": c.step,
            "name": c.name,
            "label": run.description.label_of(c.name),
            "value": value_text(c.value),
            "before": value_text(c.previous),
            "hand": c.who != AUTOBALANCE,
        }
        for c in run.knob_changes()
        if c.step is not None
    ]


def metric_of(run: Source) -> dict[str, Any] | None:
    """The headline on the held-out split; ahead: for each evaluation "looks ahead" if it does not compare, else "". None for a run
    that reports nothing there."""
    if not run.description.metrics:
        return None
    name, label, unit, _ = run.description.metrics[0]
    done = [(e.step, e.metrics[name]) for e in run.evals() if name in e.metrics]
    comparable = comparable_at(run, [step for step, _ in done])
    words = [""] * len(done) if comparable is None else ["" if fair else LOOKS_AHEAD for fair in comparable]
    return {"label": label, "unit": unit, "steps": [s for s, _ in done], "values": [v for _, v in done], "ahead": words}


def held_out_of(run: Source, layer: int) -> dict[str, list[Any]]:
    """The balance of each evaluation that recorded selections: its step, the CV, and "without noise" or "in evaluation"."""
    steps = [e.step for e in run.evals() if e.counts is not None]
    balances = [balance for step in steps if (balance := held_out_at(run, layer, step)) is not None]
    return {
        "steps": steps,
        "cv": [balance.cv for balance in balances],
        "where": [balance.where for balance in balances],
    }


def skeletons(run: Source, theme: str, layer: int) -> dict[str, Any]:
    """The figures' specs at the end of the run without the points of their lines, which the page fills in up to a step."""
    specs = {}
    for name, size in CHARTS.items():
        given = FIGURES[name].read(run, At(layer, bins=300))
        if name == "selection_share":
            given["banded"] = False  # the page has lines of all experts at every step
        spec = FIGURES[name].draw.spec(**given, theme=THEMES[theme], size=size)
        for trace in spec["data"]:
            if trace["type"] == "scatter" and "lines" in trace["mode"] and not trace["name"].startswith(KEPT):
                trace |= {"x": [], "y": []}
                trace.pop("customdata", None)
        specs[name] = spec
    return specs


def probe_of(run: Source) -> dict[str, Any]:
    """The probe and, snapshot by snapshot, the first expert of each token; of points, also the regions."""
    shown = run.probe()
    at = run.snapshots()
    if not len(at) or run.description.probe in ("tokens", "none"):  # which the page cannot draw
        return {"steps": []}
    at = at[np.unique(np.round(np.linspace(0, len(at) - 1, min(len(at), SHOTS))).astype(int))]
    probe: dict[str, Any] = {"steps": [], "first": [], "regions": []}
    whole = [
        shot for step in at.tolist() if (shot := run.snapshot(step)) and shot[0] == step
    ]  # a damaged one is left out
    if not whole:
        return {"steps": []}
    for when, arrays in whole:
        probe["steps"].append(when)
        probe["first"].append(packed(arrays["experts"][:, :, 0].astype("<u2")))
        if "regions" in arrays:
            probe["regions"].append(packed(arrays["regions"].astype("<u2")))
            probe["side"] = arrays["regions"].shape[-1]
    probe["count"] = int(arrays["experts"].shape[1])
    for name in ("tokens", "points", "extent"):
        if name in shown:
            probe[name] = np.asarray(shown[name]).tolist()
    if "images" in shown:
        images = as_images(shown["images"], IMAGE)
        probe |= {"images": packed(images.astype("u1")), "height": images.shape[1], "width": images.shape[2]}
    if "features" in shown:
        probe["rows"] = hovers_of_rows(run, shown)
    return probe


def hovers_of_rows(run: Source, shown: dict[str, Any]) -> list[str]:
    """The hover text of each row of a table."""
    rows, classes = rows_of_probe(run, shown), classes_of_probe(run)
    z_NF = spreads(rows["values_NF"])
    hovers = (hover_of_row(n, z_NF=z_NF, **rows, **classes) for n in range(len(z_NF)))
    return [unescape(f"{who} {what}") for who, what in hovers]
