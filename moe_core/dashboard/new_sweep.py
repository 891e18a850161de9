"""The form of the Sweep page that starts a sweep: what is varied, what it will take, and the command that does the same."""

import shlex
from typing import Any

import streamlit as st

from moe_core.dashboard.configure import recorded_speeds, say_strategy, take_whole
from moe_core.dashboard.faults import Faults
from moe_core.dashboard.gate import deed, only_looking
from moe_core.runs import cores, runs_folder
from moe_core.schema import STRATEGIES, TASKS, Config, Knobs, exact_text, meta_of, range_text
from moe_core.sweep import Plan, cost, detach, make_plan, make_sweep, owner, pairs_of, values_of

# What has a field of its own, and what stands in it. The rest is named in the last field.
LISTED = {
    "w_importance": "0, 0.1",
    "w_load": "0, 0.1",
    "noise": "",
    "k": "",
    "num_experts": "",
    "layers": "",
    "seed": "",
}


def new() -> None:
    """The form, what the sweep will take, and the command that does the same; for one who only looks there is none."""
    if only_looking():
        return
    st.title("Train a grid")
    st.markdown(
        "Give a knob or a setting several values, with commas between them; one that is left empty keeps the value shown in "
        "grey. Each combination is an ordinary run, once for each seed. It ends in a table with the paper's beside it."
    )
    faults = Faults()
    with st.container(border=True, key="sweep-form"):
        asked, parallel = fields_of(faults)
        plan = None if faults else planned(asked, faults)
        if plan:
            st.markdown(
                f"**{cost(plan, parallel, recorded_speeds(str(runs_folder()))).words(parallel)}.** An estimate."
            )
        if st.button("Start", type="primary", key="sweep-start", disabled=plan is None) and plan:
            begin(plan, parallel, faults)
        if plan:
            st.caption("The same from a terminal:")
            st.code(command(asked, parallel), language="bash", wrap_lines=True)
    st.caption("The paper's six rows (Table 6) from a terminal:")
    st.code(
        "python -m moe_core sweep --task text --pairs table6 --seeds 3 --steps 1000", language="bash", wrap_lines=True
    )
    st.caption("On your own data, from a terminal:")
    st.code(
        "python -m moe_core sweep --task digits --data my_table.csv --w-importance 0,0.1 --steps 500",
        language="bash",
        wrap_lines=True,
    )


def fields_of(faults: Faults) -> tuple[dict[str, Any], int]:
    """Draw the fields. What was asked: the values' texts by name, and task, steps, seeds and pairs; and the runs at a time."""
    asked: dict[str, Any] = {}
    task, steps, seeds, together = st.columns(4)
    asked["task"] = task.selectbox("Task", TASKS, key="sweep-task")
    with steps:
        asked["steps"] = take_whole(faults, "steps", 1000, "sweep-steps", 1, 10**9, "Steps")
    with seeds:
        about = "how many, from 0 on; or name them in seed"
        asked["seeds"] = take_whole(faults, "seeds", 3, "sweep-seeds", 1, 100, "Seeds", help=about)
    with together:
        parallel = take_whole(faults, "runs at a time", side_by_side(), "sweep-parallel", 1, 256, "Runs at a time")
    usual = Config.for_task(asked["task"])
    with st.container(key="sweep-lists"):
        for name, default in LISTED.items():
            with st.container(gap=None):
                start = getattr(usual if owner(name) is Config else Knobs(), name)
                meta = meta_of(owner(name), name)
                text = st.text_input(
                    name, default, placeholder=exact_text(start), key=f"sweep-list-{name}", help=f"{meta.help}. {range_text(meta)}"
                )  # fmt: skip
                faults.place(name)
            take(asked, name, text, faults)
    chosen = st.multiselect("strategy", list(STRATEGIES), placeholder=Knobs().strategy, key="sweep-strategy")
    for strategy in chosen:
        say_strategy(strategy)
    take(asked, "strategy", ", ".join(chosen), faults)
    pairs, more = st.columns(2)
    with pairs:
        label = "Pairs w_importance/w_load, in place of both lists"
        asked["pairs"] = st.text_input(label, placeholder="table6, or 0/0 0.1/0.1", key="sweep-pairs")
        faults.place("pairs")
    with more:
        hint = "lr=0.001, 0.003; d_model=32, 64"
        others = st.text_input("Other knobs and settings", placeholder=hint, key="sweep-more")
        faults.place("more")
    take_others(asked, others, faults)
    return asked, parallel


def take(asked: dict[str, Any], name: str, text: str, faults: Faults, at: str = "") -> None:
    """Take a list of values, if they are values of this knob or setting."""
    if not text.strip():
        return
    try:
        values_of(name, text)
    except ValueError as error:
        faults.say(str(error), at or name)
    asked.setdefault("lists", {})[name] = text


def take_others(asked: dict[str, Any], text: str, faults: Faults) -> None:
    """Take lists that are written name=values; name=values."""
    for word in filter(None, map(str.strip, text.split(";"))):
        name, equals, values = word.partition("=")
        if not equals:
            faults.say(f"other knobs and settings are written name=values; name=values, got {word!r}", "more")
            continue
        name = name.strip().replace("-", "_")
        if name in (*LISTED, "strategy", "steps"):
            faults.say(f"{name} has a field of its own above; write its values there, not here", "more")
            continue
        take(asked, name, values, faults, "more")


def planned(asked: dict[str, Any], faults: Faults) -> Plan | None:
    """The plan of what was asked; None, and why at the field, if it cannot be trained."""
    try:
        pairs = pairs_of([asked["pairs"]])
    except ValueError as error:
        faults.say(str(error), "pairs")
        return None
    try:
        lists = {name: values_of(name, text) for name, text in lists_of(asked).items()}
        several = len(lists.get("seed", ())) > 1
        config = Config.for_task(asked["task"], steps=asked["steps"], threads=1)
        return make_plan(config, Knobs(), lists, pairs, 1 if several else asked["seeds"])
    except ValueError as error:
        faults.say(str(error))
        return None


def lists_of(asked: dict[str, Any]) -> dict[str, str]:
    """The lists by name; pairs take the place of both weights'."""
    lists: dict[str, str] = asked.get("lists", {})
    return {name: text for name, text in lists.items() if not (asked["pairs"] and name in ("w_importance", "w_load"))}


def command(asked: dict[str, Any], parallel: int) -> str:
    """The command line that trains the same."""
    lists = lists_of(asked)
    words = ["sweep", "--task", asked["task"], "--steps", str(asked["steps"]), "--parallel", str(parallel)]
    words += [] if "," in lists.get("seed", "") else ["--seeds", str(asked["seeds"])]
    for name, text in lists.items():
        words += ["--" + name.replace("_", "-"), ",".join(word.strip() for word in text.split(","))]
    if asked["pairs"]:
        words += ["--pairs", *asked["pairs"].replace(",", " ").split()]
    return " ".join(["python -m moe_core", *map(shlex.quote, words)])


@deed
def begin(plan: Plan, parallel: int, faults: Faults) -> None:
    """Start the sweep and show it; one line if it cannot be started."""
    try:
        sweep = make_sweep(plan)
    except ValueError as error:
        faults.say(str(error))
        return
    detach(sweep, parallel)
    st.query_params["sweep"] = sweep.id
    st.rerun()


def side_by_side() -> int:
    """Runs at a time that leave a core to the dashboard."""
    return max(1, cores() - 1)
