"""The Batch page: sliders for the formula, and the measurement of throughput, which runs beside everything else."""

from typing import Any

import streamlit as st

from moe_core.dashboard import controls, links
from moe_core.dashboard.gate import deed, looks
from moe_core.figures.reading import k_now
from moe_core.runs import Run, StoreError, open_run, start_measuring, stop_measuring

# Each slider by its name in the link: label, and the values it can have.
SLIDERS = {
    "tokens": ("T, tokens in a batch", [2**i for i in range(6, 17)]),
    "k": ("k, experts per token", [1, 2, 4, 8, 16, 32]),
    "experts": ("E, experts", [2**i for i in range(11)]),
    "devices": ("D, devices", [2**i for i in range(11)]),
}


def page() -> None:
    controls.page("batch", options)


def options(run: Run) -> dict[str, Any]:
    """The sizes to put into the formula: those of the link, which the sliders write; else the run's own. Empty for a run
    whose batches differ in size: it has no chart of the formula."""
    description = run.description
    if not description.tokens:
        return {}
    own = {"tokens": description.tokens or 1, "k": k_now(run), "experts": description.experts[0], "devices": 1}
    chosen: dict[str, Any] = {}
    with st.container(key="batch-row"):
        *columns, last = st.columns([1, 1, 1, 1, 1.2], gap="medium", vertical_alignment="center")
    for column, (name, (label, positions)) in zip(columns, SLIDERS.items(), strict=True):
        with column:
            chosen[name] = slider(run.id, name, label, positions, int(own[name]))
    if run.trainable and not looks():  # only a layer of our own model can be timed
        with last:
            measuring(run.id)
    return chosen


def slider(run: str, name: str, label: str, positions: list[int], own: int) -> int:
    """One slider. Its value is read from the link whenever the page is drawn, and written to the link when it is moved."""
    key, value = f"batch-{name}-{run}", links.word(name) or own
    stops = sorted({*positions, own, min(value, positions[-1])})
    value = min(value, stops[-1])
    st.session_state[key] = value

    def go() -> None:
        st.query_params[name] = str(st.session_state[key])

    st.select_slider(label, stops, key=key, on_change=go, format_func=lambda n: f"{n:,}")
    return value


@st.fragment(run_every=1.0)
def measuring(run_id: str) -> None:
    """The button that measures, its progress and Cancel. Drawn again each second, since another tab may have started it."""
    try:
        run = open_run(run_id, limit=0.25)
    except StoreError as error:
        st.error(str(error))
        return
    try:
        measured, path = run.throughput(), run.throughput_file()
        config, k = run.config, run.knobs.k
        device, threads = run.machine
    finally:
        run.close()
    if measured.running:
        done = len(measured.tokens)
        left = f", about {measured.of - done} s left"  # each takes a second
        st.progress(
            done / max(measured.of, 1), f"{done} of {measured.of} batch sizes{left}" if measured.of else "Starting"
        )
        st.button("Cancel", key=f"batch-cancel-{run_id}", on_click=deed(stop_measuring), args=(path,), width="stretch")
        return
    what = f"d {config.d_model}, h {config.d_hidden}, E {config.num_experts}, k {k}, {device}"
    st.button(
        "Measure throughput" if not len(measured.tokens) else "Measure again", key=f"batch-measure-{run_id}", width="stretch",
        on_click=deed(lambda: start_measuring(path, config, int(k), device, threads)), type="secondary" if len(measured.tokens) else "primary",
        help=f"Times one layer of this run ({what}) at nine batch sizes: about ten seconds in a process of its own.",
    )  # fmt: skip
    if measured.problem:
        st.caption(f"Ended early: {measured.problem}. What it measured is kept.")
