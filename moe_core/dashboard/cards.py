"""The four ways to begin, each one click, and the wait until a trainer that was started has made its run."""

from importlib.util import find_spec

import streamlit as st

from moe_core.dashboard import links, serving, starting
from moe_core.dashboard.configure import configure
from moe_core.dashboard.gate import deed, only_looking
from moe_core.dashboard.panel import did_not_start
from moe_core.folders import PAGES
from moe_core.runs import load_torch_ahead, reap, runs_folder, start_demo, words_of_failure
from moe_core.schema import Config, Knobs

CARDS = {
    "text": "A byte-level Transformer learns the Python documentation, source code and data tables.",
    "digits": "A classifier learns 1,797 handwritten digits; see which expert takes which digit.",
    "plane": "Points of two spirals; see which region of the plane each expert owns.",
}
WATCH = """from moe_core import watch
live = watch(model, run="my-finetune", optimizer=optimizer)
live.step(loss=loss)  # after each optimizer.step()"""
STARTING = Knobs(w_importance=0.0, w_load=0.0)  # so that a person first sees the gate collapse


def cards() -> None:
    """Shown without a run: to one who only looks, nothing to press."""
    if only_looking("The runs are in the list at the left."):
        return
    get_ready()
    st.title("See a Mixture of Experts balance itself", anchor=False)
    st.markdown(
        "Choose what it learns. Both balancing losses start at 0, so within seconds the gate collapses onto a few experts. "
        "Then turn **w_importance** or **w_load** up, and watch it recover. Turn them back to 0, and the load drifts apart "
        "again, most of all soon after the start."
    )
    for column, (task, text) in zip(st.columns(3, gap="medium"), CARDS.items(), strict=True):
        with column.container(border=True, height="stretch"):
            st.subheader(task.capitalize(), anchor=False)
            st.container(height="stretch").markdown(text)
            st.button(
                task.capitalize(),
                key=f"start-{task}",
                on_click=begin,
                args=(task,),
                type="primary" if task == "text" else "secondary",
                width="stretch",
            )
    form = st.expander(
        "**Configure**: your own data, another size, another seed, or any other start",
        key="configure", icon=":material/tune:", on_change="rerun",
    )  # fmt: skip
    if form.open:
        with form:
            configure(STARTING)
    with st.container(border=True, key="your-model"):
        your_model()
    st.page_link(
        PAGES / "learn.py",
        label="New to this? Eight lessons, each with an experiment of your own",
        icon=":material/school:",
    )
    if not form.open:  # the form has a command of its own
        st.caption("What *Text* starts, from a terminal:")
        st.code("python -m moe_core train --task text --w-importance 0 --w-load 0", language="bash", wrap_lines=True)


@deed
def get_ready() -> None:
    """Whoever sees the cards is likely to press one: torch is loaded meanwhile."""
    if serving.serves():
        load_torch_ahead()


def your_model() -> None:
    """The lines that watch a model of one's own, and a button that starts an example."""
    left, right = st.columns([1, 1.6], gap="medium", vertical_alignment="center")
    with left:
        st.subheader("Your model", anchor=False)
        st.markdown("Watch and tune any MoE that you train in PyTorch, in your own loop, with three lines.")
        missing = next((name for name in ("torch", "transformers") if find_spec(name) is None), "")
        st.button(
            "Watch an example", key="start-demo", on_click=begin_demo, disabled=bool(missing), width="stretch",
            help="A tiny Qwen3-MoE of random weights is fine-tuned on text; its gates collapse. Turn router_aux_loss_coef up.",
        )  # fmt: skip
        if missing:
            st.caption(f"The example needs {missing}: `pip install 'moescope[watch-demo]'`")
    right.code(WATCH, language="python", wrap_lines=True)


@deed
def begin_demo() -> None:
    """Start the example, and look at its last layer, which collapses furthest."""
    st.query_params.from_dict({"run": start_demo(), "layer": "4"})


def begin(task: str) -> None:
    """Start a trainer with both loss weights at 0, and look at it."""
    config = Config.for_task(task)
    run_id = starting.start(config, STARTING, who="dashboard")
    # The last layer, where there are several: it collapses first and furthest.
    st.query_params.from_dict({"run": run_id} | ({"layer": str(config.layers)} if config.layers > 1 else {}))


@st.fragment(run_every=1.0)
def wait(run_id: str, silent: bool = False) -> None:
    """Draw the page again once the run is there. silent: say nothing meanwhile, since its empty charts are drawn already."""
    folder = runs_folder() / run_id
    reap()
    if (folder / "run.db").exists():
        st.rerun()
    if silent:
        return
    if did_not_start(folder):
        st.error(f"The trainer did not start: {links.literal(words_of_failure(folder))}")
    else:
        st.caption("Starting the trainer: loading torch and the data.")
