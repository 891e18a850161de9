"""Configure: start any run from the page.

Each field follows from its declaration in Config or Knobs (moe_core/schema/settings.py): kind, start, help, range, and the
tasks and strategies that read it. So a setting that is added there is here too. What is wrong with a value is said below its field.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

import streamlit as st

from moe_core.dashboard import own, starting
from moe_core.dashboard.faults import Faults, as_html, in_fields
from moe_core.dashboard.own import Columns, Recognised
from moe_core.runs import command_of, runs_folder
from moe_core.runs.estimate import Estimate, estimate, shape_of, speeds
from moe_core.runs.machine import device_kind
from moe_core.runs.ranks import ALONE, RankCounts, check_dealt, check_room, check_shares, most_ranks, rows_of
from moe_core.runs.room import bytes_text
from moe_core.schema import (
    STRATEGIES,
    TASKS,
    Config,
    Knobs,
    duration,
    first_few,
    meta_of,
    parse_setting,
    problems,
    range_text,
    reads,
    shortened,
)
from moe_core.schema.checks import parsed_value

SOURCES = ("built in", "on this machine", "uploaded")
FILES = {"text": "text", "digits": "data"}  # the setting that names a person's own files, by task
AS_READ = ("label", "drop", "missing")  # how a table is read
CSS = """
.st-key-configure-settings, .st-key-configure-knobs, .st-key-configure-table {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 8px 16px; align-items: start;
}
.st-key-configure-settings > *, .st-key-configure-knobs > *, .st-key-configure-table > * { min-width: 0; }
.st-key-configure-data { row-gap: 8px; }
.moe-recognised { border-left: 3px solid var(--moe-green); padding-left: 12px; overflow-wrap: anywhere; }
.moe-recognised p { margin: 0; }
.st-key-configure-strategy .moe-strategy { margin-top: 28px; }
.moe-takes { display: flex; flex-wrap: wrap; gap: 8px 32px; font-variant-numeric: tabular-nums; }
.moe-takes div { font-size: 13px; color: var(--moescope-ink-2); }
.moe-takes b { display: block; font-size: 20px; line-height: 28px; font-weight: 600; }
@media (min-width: 1600px) { .moe-takes div { font-size: 15px; } .moe-takes b { font-size: 24px; } }
"""


class Form:
    """What a person has filled in: the values that are in range, and what is wrong with the others."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.values: dict[str, Any] = {}
        self.faults = Faults()

    def field(
        self, settings: type[Config] | type[Knobs], name: str, start: Any, offered: Sequence[str] | None = None
    ) -> None:
        """Draw a setting's field, and take its value. offered: words to choose from, beside any that a person types."""
        with st.container(gap=None):
            value = widget(settings, name, start, f"configure-{self.task}-{name}", offered)
            self.faults.place(name)
        try:
            self.values[name] = parse_setting(settings, name, start if value is None else value)
        except ValueError as error:
            self.faults.say(str(error), name)

    def check(self, check: Callable[..., Any], *values: Any) -> None:
        """Show it if these values together do not pass a check."""
        try:
            check(*values)
        except ValueError as error:
            self.faults.say_together(str(error))

    def take(self, settings: type[Config] | type[Knobs]) -> dict[str, Any]:
        """The values that belong to one of both."""
        return {f.name: self.values[f.name] for f in fields(settings) if f.name in self.values}


def widget(
    settings: type[Config] | type[Knobs], name: str, start: Any, key: str, offered: Sequence[str] | None = None
) -> Any:
    """The field of a setting, by the type of its start and its declaration."""
    meta = meta_of(settings, name)
    common: dict[str, Any] = {
        "key": key,
        "help": f"{in_fields(meta.help, '**{}**')}. {range_text(meta)}".strip(),
        "persist_state": "session",
    }
    if meta.choices:
        return st.selectbox(name, meta.choices, meta.choices.index(start), **common)
    if isinstance(start, tuple):
        words = [*start, *(offered or ())]
        return st.multiselect(name, words, start, accept_new_options=True, placeholder="none", **common)
    if offered is not None:
        return st.selectbox(name, offered, None, accept_new_options=True, placeholder="none", **common)
    if isinstance(start, str):
        return st.text_input(name, start, placeholder="none", **common)
    if isinstance(start, int):
        return whole_field(name, start, **common)
    fine = meta.step or (0.01 if meta.high <= 10 else 1.0)
    return st.number_input(name, value=start, step=fine, format="%g", **common)


def whole_field(label: str, start: int, **given: Any) -> int | float:
    """A field for a whole number, which may hold another number. Streamlit's field for whole numbers would read 1e3 as 1."""
    # float: the page may have set a whole one.
    value = float(st.number_input(label, value=float(start), step=1.0, format="%g", **given))
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def configure(started: Knobs) -> None:
    """The form. started: the knobs that it starts from."""
    st.html(f"<style>{CSS}</style>")
    with st.container(key="configure-data", horizontal=True, gap="large"):
        task = st.radio("What it learns", TASKS, key="configure-task", horizontal=True, persist_state="session")
        form = Form(task or TASKS[0])
        source = choose_source(form.task)
    files = choose_files(form, source)
    shown = st.container()
    usual = Config.for_task(form.task)
    settings = [
        f.name
        for f in fields(Config)
        if form.task in meta_of(Config, f.name).tasks and f.name not in ("task", *FILES.values(), *AS_READ)
    ]
    with st.container(key="configure-settings"):
        for name in settings:
            form.field(Config, name, getattr(usual, name))
        ranks = choose_ranks(form)
    draw_knobs(form, usual, started)
    recognised = look_at(form, files, shown)
    given = Config.for_task(form.task, **form.take(Config))
    knobs = Knobs(**form.take(Knobs))
    for problem in problems(given, knobs):
        form.faults.say_together(problem)
    faulty, rows = {*form.faults.problems}, rows_of(given)
    if "ranks" not in faulty:  # the rows of a batch are dealt however the experts are
        form.check(check_shares, RankCounts(ranks.size), given.num_experts, rows)
    if not faulty & {"ranks", "expert_parallel"}:
        form.check(check_shares, ranks, given.num_experts, rows)
    offer(form, given, knobs, recognised, ranks)


def choose_ranks(form: Form) -> RankCounts:
    """The fields that say how many processes train the run. No fields where this machine has room for one process only."""
    config = Config(device=form.values.get("device", "auto"))
    most, each = most_ranks(device_kind(config))
    if most < 2:
        return ALONE
    size = take_whole(
        form.faults,
        "ranks",
        1,
        "configure-ranks",
        help=f"processes that train it together, each with its part of every batch, on a {each} of its own. 1 to {most}",
        persist_state="session",
    )
    about = (
        "over how many of the ranks the experts of a layer are dealt; each group of so many ranks has them all. With 1 each rank has all "
        "experts, and there is no load of devices to see"
    )
    expert = 1
    if size != 1:
        key = "configure-expert_parallel"
        expert = take_whole(form.faults, "expert_parallel", 1, key, help=about, persist_state="session")
    ranks = RankCounts(size, expert)
    form.check(check_room, ranks, config)
    form.check(check_dealt, ranks)
    return ranks


def take_whole(
    faults: Faults, name: str, start: int, key: str, low: float = -math.inf, high: float = math.inf, label: str = "", **given: Any
) -> int:  # fmt: skip
    """Draw the field of a whole number that is no setting of a run, and take what is in it. If that is no whole number, or out of range, the
    page says so below the field, and `start` is taken."""
    with st.container(gap=None):
        value = whole_field(label or name, start, key=key, **given)
        faults.place(name)
    try:
        return int(parsed_value(name, int, low, high, (), value))
    except ValueError as error:
        faults.say(str(error), name)
        return start


def draw_knobs(form: Form, usual: Config, started: Knobs) -> None:
    """The knobs that act under the strategy, with the values that the run starts with; the strategy first."""
    config = Config.for_task(form.task, groups=form.values.get("groups", usual.groups))
    st.markdown("**Knobs at the start.** They can be turned while it trains.")
    with st.container(key="configure-strategy"):
        chooser, words = st.columns([1, 3], gap="medium")
    with chooser:
        form.field(Knobs, "strategy", started.strategy)
    strategy = form.values["strategy"]
    with words:
        say_strategy(strategy)
    with st.container(key="configure-knobs"):
        # k decides how much is computed, so it comes first.
        for name in sorted((f.name for f in fields(Knobs)), key=lambda name: name != "k"):
            if name != "strategy" and reads(config, strategy, name):
                form.field(Knobs, name, getattr(started, name))


def say_strategy(name: str) -> None:
    """What a strategy does, and its formula."""
    strategy = STRATEGIES[name]
    st.html(
        f'<p class="moe-strategy"><b>{escape(name)}</b>: {escape(strategy.about)}<br><code>{escape(strategy.formula)}</code></p>'
    )


# A person's own files


def choose_source(task: str) -> str:
    """Where the data come from: SOURCES[0] for a task that has its own only."""
    if task not in FILES:
        return SOURCES[0]
    return st.radio("Data", SOURCES, key="configure-source", horizontal=True, persist_state="session") or SOURCES[0]


def choose_files(form: Form, source: str) -> tuple[str, ...] | None:
    """The person's own files, by path or uploaded; None for the built-in data, and () for none yet."""
    if source == SOURCES[0]:
        return None
    name = FILES[form.task]
    several, files = form.task == "text", tuple[str, ...]()
    what = (
        "text: files or folders, one a line; each is a domain"
        if several
        else "data: a CSV, an .npz with x and y, or an .npy"
    )
    with st.container(gap=None):
        if source == SOURCES[1]:
            key, hint = f"configure-path-{form.task}", f"below {own.data_folder()}"
            ask = st.text_area if several else st.text_input
            text = str(ask(what, key=key, placeholder=hint, persist_state="session") or "")  # type: ignore[operator]
            named = [line.strip() for line in text.splitlines() if line.strip()]
            read = named_path
        else:
            given = st.file_uploader(what, accept_multiple_files=several, key=f"configure-upload-{form.task}")
            named = given if isinstance(given, list) else [given] * (given is not None)
            read = kept
        form.faults.place(name)
    for one in named:
        try:
            files += (str(read(one)),)
        except ValueError as error:
            form.faults.say(str(error), name)
    if name == "data":
        columns = own.header_of(files[0]) if files else Columns()
        with st.container(key="configure-table"):
            for setting in AS_READ:
                form.field(
                    Config, setting, getattr(Config(), setting), None if setting == "missing" else columns.offered
                )
        check_named(form, columns)
    if files:
        form.values[name] = files if several else files[0]
    return files


def check_named(form: Form, columns: Columns) -> None:
    """Say it if label or drop names a column that the table does not have, each at its own field."""
    for name, wanted, words in (
        ("label", "a column", [form.values["label"]]),
        ("drop", "columns", form.values["drop"]),
    ):
        if unknown := [word for word in words if word and not columns.have(word)]:
            there = first_few(columns.offered)
            form.faults.say(
                f"{name} must name {wanted} of the table, got {first_few(unknown)}; there are {there}", name
            )


def named_path(text: str) -> Path:
    """What a person named. ValueError if a page may not read it, or there is nothing."""
    path = own.inside(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no file or folder {shortened(text, 80)!r}; correct the path") from None
    except OSError as error:  # a name that is too long, a folder without permission
        raise ValueError(f"{shortened(text, 80)!r} cannot be read: {error.strerror}") from None
    return path


def kept(upload: Any) -> Path:
    return own.keep(upload.name, upload.getvalue())


def look_at(form: Form, files: tuple[str, ...] | None, shown: Any) -> Recognised | None:
    """How the person's files are read, shown before anything is trained; None if they cannot be used, or there are none yet."""
    if files is None:
        features, classes = shape_of(Config.for_task(form.task, **form.take(Config)))
        return Recognised((), features, classes)
    if not files or form.faults.problems.keys() & {FILES[form.task]}:
        return None
    right = {name: value for name, value in form.take(Config).items() if name not in form.faults.problems}
    with shown, st.spinner("Reading your data"):
        recognised = own.recognise(Config.for_task(form.task, **right))
    if problem := recognised.problem:
        for path in map(Path, files):
            if path.parent.parent.name == own.UPLOADS:  # the person knows it by its name only
                problem = problem.replace(str(path), path.name)
        form.faults.say_together(problem, field_of(problem, FILES[form.task]))
        return None
    lines = "".join(f"<p>{as_html(words[:1000])}</p>" for words in recognised.taken[:80])
    shown.html(f'<div class="moe-recognised" role="group" aria-label="How your data are read">{lines}</div>')
    return recognised


def field_of(problem: str, files: str) -> str:
    """The field at which a problem of a person's files can be mended: how a table is read, if the words advise that, else the files'."""
    advised = re.search(f"--({'|'.join(AS_READ)})\\b", problem)
    return advised[1] if advised else files


# What it takes, and the start


def offer(form: Form, config: Config, knobs: Knobs, recognised: Recognised | None, ranks: RankCounts) -> None:
    """What the run will take, the command that does the same, and the button that starts it."""
    ready = None if form.faults else recognised
    if ready:
        recorded = recorded_speeds(str(runs_folder()))
        takes(estimate(config, knobs, ready.features, ready.classes, recorded, ranks), config, ranks)
    if st.button("Start", key="configure-start", type="primary", disabled=ready is None):
        run = starting.start(config, knobs, who="dashboard", ranks=ranks)
        st.query_params.from_dict({"run": run} | ({"layer": str(config.layers)} if config.layers > 1 else {}))
        st.rerun()
    if ready:
        st.caption("The same from a terminal:")
        st.code(command_of(config, knobs, ranks), language="bash", wrap_lines=True)


def takes(found: Estimate, config: Config, ranks: RankCounts) -> None:
    """The estimate in a line of numbers, and where they come from."""
    whose = "of memory" if ranks == ALONE else f"of memory, {ranks.size} ranks together"
    numbers = [(f"{found.parameters:,}", "parameters"), (f"about {bytes_text(found.memory)}", whose)]
    if found.seconds is not None:
        numbers.append((f"about {1 / found.seconds:.3g}", "steps a second"))
        if config.steps:
            numbers.append((f"about {duration(config.steps * found.seconds)}", f"for {config.steps:,} steps"))
    if config.steps:
        numbers.append((f"about {bytes_text(found.disk(config.steps))}", "on the disk"))
    shown = "".join(f"<div><b>{escape(value)}</b>{escape(what)}</div>" for value, what in numbers)
    st.html(f'<div class="moe-takes">{shown}</div>')
    st.caption(found.source)


@st.cache_data(ttl=30, show_spinner=False)
def recorded_speeds(runs: str) -> Sequence[Any]:
    return speeds(runs)
