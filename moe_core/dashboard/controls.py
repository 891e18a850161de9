"""The sidebar and the start cards. A slider is a view of the store: set from it on every run, writing only when turned."""

from html import escape
from typing import Any

import streamlit as st

from moe_core.dashboard.component import live
from moe_core.dashboard.style import CSS
from moe_core.runs import (
    Run,
    StoreError,
    is_alive,
    last_words,
    list_runs,
    open_run,
    reap,
    runs_folder,
    start,
)
from moe_core.schema import Config, Knobs, label_of, meta_of, value_text

NEW = "New run"
SHOWN = ("noise", "k", "w_importance", "w_load", "lr", "speed_limit")
WORDS = {
    "starting": ("grey", "Starting…"),
    "training": ("green", "Training"),
    "paused": ("amber", "Paused"),
    "finished": ("grey", "Finished"),
    "stopped": ("grey", "Stopped"),
    "failed": ("red", "Failed"),
    "interrupted": ("red", "Interrupted"),
}
CARDS = {
    "text": "A byte-level Transformer learns the Python documentation, source code and data tables.",
    "digits": "A classifier learns 1,797 handwritten digits; see which expert takes which digit.",
    "plane": "Points of two spirals; see which region of the plane each expert owns.",
}


def style() -> None:
    st.html(f"<style>{CSS}</style>")


def page(name: str, figures: dict[str, list[str]]) -> None:
    """A page with the sidebar: its figures for the run's task, or the cards when there is no run."""
    run = frame()
    if run is not None:
        live(name, run.id, run.config.task, layer_of(run), figures[run.config.task])
        run.close()


def frame(choose: bool = True) -> Run | None:
    """The sidebar, and the run that it shows; close it when it has been read. choose: without a run, draw the cards."""
    reap()
    run = chosen()
    if run:
        st.session_state["layer-drawn"] = layer_of(run)
    with st.sidebar:
        chooser(run)
        if run is None:
            starting_values()
        else:
            panel(run.id)
    if run is None and choose:
        cards()
    return run


def chosen() -> Run | None:
    """The run that the link names, else the newest; None for the start cards. Says why one cannot be opened."""
    wanted = st.query_params.get("run")
    if wanted == "new":
        return None
    try:
        if wanted is not None:
            waiting_for(wanted)
            return open_run(wanted)
        listed = next((one for one in list_runs() if not one.problem), None)
        return open_run(listed.id) if listed else None
    except StoreError as error:
        st.error(str(error))
        return None


def waiting_for(run_id: str) -> None:
    """Between the click on a card and the first row of the run: a second or two."""
    folder = runs_folder() / run_id
    if not folder.is_dir() or (folder / "run.db").exists():
        return
    with st.sidebar:
        st.html('<div class="moe-state"><span class="moe-dot grey"></span>Starting…</div>')

    @st.fragment(run_every=0.2)
    def wait() -> None:
        reap()
        if (folder / "run.db").exists():
            st.rerun()
        elif (
            st.session_state.get("started") == run_id
            and not is_alive(folder)
            and (words := last_words(folder)) != "it printed nothing"
        ):
            st.error(f"The trainer did not start. {words}")
        else:
            st.caption("Starting the trainer: loading torch and the data.")

    wait()
    st.stop()


def chooser(run: Run | None) -> None:
    """The run chooser. The link follows it."""
    names = [NEW, *(one.id for one in list_runs())]
    current = run.id if run else NEW
    if current not in names:
        names.append(current)
    st.session_state["run-chooser"] = current

    def go() -> None:
        picked = st.session_state["run-chooser"]
        st.query_params.clear()
        st.query_params["run"] = "new" if picked == NEW else picked

    st.selectbox("Run", names, key="run-chooser", on_change=go, label_visibility="collapsed")


def layer_of(run: Run) -> int:
    """The layer that the link names, counted from 1 there and from 0 here."""
    named = st.query_params.get("layer", "1")
    return min(int(named), run.config.layers) - 1 if named.isdigit() and int(named) > 0 else 0


@st.fragment(run_every=1.0)
def panel(run_id: str) -> None:
    """State, buttons, knobs, layer and changes; looks again each second for what other tabs and the terminal did."""
    try:
        run = open_run(run_id, limit=0.25)
    except StoreError as error:
        st.error(str(error))
        return
    try:
        status = run.status()
        state_line(status)
        if status.state in ("starting", "training", "paused"):
            buttons(run, status.state)
        knobs(run, status.state in ("starting", "training", "paused"))
        if run.config.layers > 1:
            layers(run)
        changes(run)
    finally:
        run.close()


def state_line(status: Any) -> None:
    colour, word = WORDS.get(status.state, ("grey", "Unknown"))
    age = status.heartbeat_age
    if status.state == "training" and age > 4:
        colour, word = "grey", f"No news for {age:.0f} s"
    st.html(
        f'<div class="moe-state" data-state="{escape(status.state)}"><span class="moe-dot {colour}"></span>'
        f'<b class="{colour}">{word}</b><span class="moe-right">step {status.step:,}</span></div>'
    )


def buttons(run: Run, state: str) -> None:
    def tell(name: str) -> None:
        try:
            open_run(run.path).command(name, who="dashboard")
        except StoreError as error:
            st.toast(str(error))

    paused = state == "paused"
    left, middle, right = st.columns(3, gap="small")
    name = "resume" if paused else "pause"
    left.button(
        name.capitalize(),
        key=f"{name}-{run.id}",
        on_click=tell,
        args=(name,),
        width="stretch",
        type="primary" if paused else "secondary",
    )
    middle.button("Step", key=f"step-{run.id}", on_click=tell, args=("step",), width="stretch", disabled=not paused)
    right.button("Stop", key=f"stop-{run.id}", on_click=tell, args=("stop",), width="stretch")


def knobs(run: Run, alive: bool) -> None:
    stored = run.knobs
    for name in SHOWN:
        knob(run, name, getattr(stored, name), alive)


def knob(run: Run, name: str, stored: float, alive: bool) -> None:
    """One slider. Its key is the run's, so that no value travels to another run."""
    key, meta = f"knob-{name}-{run.id}", meta_of(Knobs, name)

    def turn() -> None:
        try:
            open_run(run.path).turn(who="dashboard", **{name: st.session_state[key]})
        except ValueError as error:
            st.toast(str(error))

    high = min(meta.high, run.config.num_experts) if name == "k" else meta.high
    if high <= meta.low:
        return
    # No help=: Streamlit would add its words to the slider's accessible name.
    given: dict[str, Any] = {"label": label_of(name), "key": key, "on_change": turn, "disabled": not alive}
    if st.session_state.get(key) != stored:
        st.session_state[key] = stored
    if meta.scale == "linear":
        number = int if name == "k" else float
        st.slider(min_value=number(meta.low), max_value=number(high), step=number(meta.step or 1), **given)
    else:
        st.select_slider(options=stops(meta, stored), format_func=lambda value: f"{value:g}", **given)


def stops(meta: Any, stored: float) -> list[float]:
    """Positions of a logarithmic slider: 1, 2, 5 of each decade in range, 0 where the scale has one, and the value as it stands."""
    low = meta.low or meta.high * 1e-3
    decades = range(-9, 10)
    found = {
        float(f"{digit}e{power}")
        for power in decades
        for digit in (1, 2, 3, 5)
        if low <= float(f"{digit}e{power}") <= meta.high
    }
    return sorted(found | {meta.low, meta.high, stored})


def layers(run: Run) -> None:
    key = f"layer-{run.id}"
    st.session_state[key] = layer_of(run) + 1

    def go() -> None:
        st.query_params["layer"] = str(st.session_state[key] or layer_of(run) + 1)

    st.segmented_control("Layer", list(range(1, run.config.layers + 1)), key=key, on_change=go)
    if layer_of(run) != st.session_state.get("layer-drawn"):
        st.rerun()  # this panel reruns by itself; the charts beside it must follow


def changes(run: Run) -> None:
    """The last knob changes, newest first."""
    done = run.knob_changes()[-3:][::-1]
    if not done:
        return
    rows = "".join(
        f'<div class="moe-change"><span>{escape(c.name)} {escape(value_text(c.previous))} → {escape(value_text(c.value))}</span>'
        f'<span class="moe-right">{"waiting" if c.step is None else f"step {c.step:,}"}</span></div>'
        for c in done
    )
    st.html(f'<div class="moe-heading">Changes</div>{rows}')


def starting_values() -> None:
    st.html(
        '<div class="moe-heading">Starting values</div>'
        '<div class="moe-change"><span>noise 1, k 2</span></div>'
        '<div class="moe-change"><span>w_importance 0, w_load 0</span></div>'
    )


def cards() -> None:
    """Three ways to begin, each one click."""
    st.title("See a Mixture of Experts balance itself")
    st.markdown(
        "Choose what it learns. Both balancing losses start at 0, so within seconds the gate collapses onto a few experts. "
        "Then turn **w_importance** or **w_load** up, and watch it recover. The order matters: "
        "a gate that was balanced first does not collapse when it is released."
    )
    for column, (task, text) in zip(st.columns(3, gap="medium"), CARDS.items(), strict=True):
        with column.container(border=True):
            st.subheader(task.capitalize(), anchor=False)
            st.markdown(text)
            st.button(
                task.capitalize(),
                key=f"start-{task}",
                on_click=begin,
                args=(task,),
                type="primary" if task == "text" else "secondary",
                width="stretch",
            )
    st.caption("The same from a terminal:")
    st.code("python -m moe_core train --task text --w-importance 0 --w-load 0", language="bash")


def begin(task: str) -> None:
    """Start a trainer with both loss weights at 0, and look at it."""
    run_id = start(Config.for_task(task), Knobs(w_importance=0.0, w_load=0.0), who="dashboard")
    st.session_state["started"] = run_id
    st.query_params.clear()
    st.query_params["run"] = run_id
