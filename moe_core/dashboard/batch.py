"""The Batch page: sliders for the formula, and what is measured beside everything else: throughput, and what experts see on several devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from moe_core.dashboard import controls, links
from moe_core.dashboard.gate import deed, looks
from moe_core.figures.reading import k_now
from moe_core.runs import (
    Measured,
    OnDevices,
    Run,
    StoreError,
    devices_for,
    open_run,
    start_measuring,
    start_on_devices,
    stop_measuring,
    stop_on_devices,
)

# Each slider by its name in the link: label, and the values it can have.
SLIDERS = {
    "tokens": ("T, tokens in a batch", [2**i for i in range(6, 17)]),
    "k": ("k, experts per token", [1, 2, 4, 8, 16, 32]),
    "experts": ("E, experts", [2**i for i in range(11)]),
    "devices": ("D, devices", [2**i for i in range(11)]),
}
DEALS = (
    "Deals the experts of this run over 1, 2 and 4 ranks on this machine's CPU, each with a batch of its own, and counts the rows that an "
    "expert multiplies: about 20 seconds. A run that trains writes a checkpoint for it; if none comes within 10 seconds, its last one is measured."
)


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
    """The buttons that measure, or the progress of what runs and Cancel. Drawn again each second, since another tab may have started it."""
    try:
        run = open_run(run_id, limit=0.25)
    except StoreError as error:
        st.error(str(error))
        return
    try:
        measured, devices = run.throughput(), run.on_devices()
        if measured.running:
            st.progress(*measured.progress)
            offer_cancel(run_id, deed(stop_measuring), run.throughput_file())
        elif devices.running:
            st.progress(*devices.progress)
            offer_cancel(run_id, deed(stop_on_devices), run.path)
        else:
            offer_throughput(run, measured)
            offer_devices(run, devices)
            if refused := st.session_state.get(refusal_of(run_id)):
                st.error(links.literal(refused))
    finally:
        run.close()


def offer_cancel(run_id: str, stop: Callable[[Path], object], path: Path) -> None:
    st.button("Cancel", key=f"batch-cancel-{run_id}", on_click=stop, args=(path,), width="stretch")


def offer_throughput(run: Run, measured: Measured) -> None:
    """The button that measures throughput, and why an earlier measurement ended early."""
    config, k = run.config, int(run.knobs.k)
    device, threads = run.machine
    what = f"d {config.d_model}, h {config.d_hidden}, E {config.num_experts}, k {k}, {device}"
    st.button(
        "Measure throughput", key=f"batch-measure-{run.id}", width="stretch", on_click=begin_throughput,
        args=(run.id, run.throughput_file(), config, k, device, threads),
        type="secondary" if len(measured.tokens) else "primary",
        help=f"Times one layer of this run ({what}) at nine batch sizes: about ten seconds in a process of its own.",
    )  # fmt: skip
    say_early(measured.problem, len(measured.tokens), measured.earlier)


def offer_devices(run: Run, devices: OnDevices) -> None:
    """The button that measures on several devices, or why these experts cannot be dealt, and why an earlier measurement ended early."""
    reason = ""
    try:
        devices_for(run.config.num_experts)
    except ValueError as error:
        reason = str(error)
    st.button(
        "Measure on devices", key=f"batch-deal-{run.id}", width="stretch", on_click=begin_devices,
        args=(run.id, run.path), disabled=bool(reason), type="secondary" if devices.done or reason else "primary",
        help=f"Not for this run: {reason}." if reason else DEALS,
    )  # fmt: skip
    say_early(devices.problem, len(devices.devices_m), devices.earlier)


def say_early(problem: str, found: int, earlier: bool) -> None:
    """Why a measurement ended early. found: how many sizes or numbers of devices the result has; earlier: it is of the one before."""
    if problem:
        kept = " The previous result is shown." if earlier else " What it measured is kept." if found else ""
        st.caption(f"Ended early: {links.literal(problem.removeprefix('moe: '))}.{kept}")


@deed
def begin_throughput(run_id: str, path: Path, *of: Any) -> None:
    keep_refusal(run_id, "")
    with refusals_told(partial(keep_refusal, run_id)):
        start_measuring(path, *of)


@deed
def begin_devices(run_id: str, folder: Path) -> None:
    keep_refusal(run_id, "")
    with refusals_told(partial(keep_refusal, run_id)):
        start_on_devices(folder)


def keep_refusal(run_id: str, words: str) -> None:
    """For each drawing of the buttons: what a callback of their fragment writes itself is no part of the fragment."""
    st.session_state[refusal_of(run_id)] = words


def refusal_of(run_id: str) -> str:
    return f"batch-refused-{run_id}"


@contextmanager
def refusals_told(tell: Callable[[str], object] = st.error) -> Iterator[None]:
    """A folder that cannot be written to is told in a line."""
    try:
        yield
    except OSError as error:
        tell(f"It cannot be measured: {error.filename or 'its file'}: {error.strerror}.")
