"""Who only looks changes nothing: every deed of the dashboard passes the gate, whatever a browser sends."""

import ast
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import moe_core.dashboard.exports  # noqa: F401 - before the fixture `processes` takes what it needs away
from moe_core.dashboard import gate, managing
from moe_core.dashboard.address import LOOKS, TURNS, Door
from moe_core.dashboard.component import Chosen
from moe_core.dashboard.gate import LOOKING, REFUSED, ROLE, deed, looks
from moe_core.schema import Knobs
from moe_core.sweep import make_plan, make_sweep
from tests.dashboard.test_learn import begun
from tests.dashboard.test_more_pages import page
from tests.figures.record import record
from tests.sweep.made import CONFIG, WEIGHTS

ROOT = Path(__file__).parents[2]

# What the dashboard uses of the runs and the sweeps: what changes something or starts a process, and what only reads.
CHANGES = {
    "cancel", "change_notes", "detach", "fork", "load_torch_ahead", "make_sweep", "remove_run", "resume", "start", "start_demo", "start_measuring",
    "start_on_devices", "stop_later", "stop_measuring", "stop_on_devices",
}  # fmt: skip
READS = {  # look: whoever looks says so, which changes how often the trainer shows its probe and nothing of the training
    "beside", "bytes_text", "ceiling_lines", "command_of", "cores", "cost", "deletion", "devices_for", "estimate", "figure", "files_of", "is_alive",
    "is_locked", "is_running", "knobs_after", "last_problem", "last_words", "left_of", "look", "make_plan", "mean_balance", "measured", "measured_by",
    "measures", "nothing_on_devices", "notes", "off_spans", "open_plain", "open_run", "open_sweep", "overview", "owner", "pairs_of", "paper_columns", "pick", "progress",
    "read_notes", "reap", "results", "rows", "runs_folder", "shape_of", "speeds", "stamp_of", "state_of", "sweep_ids", "thin", "values_of", "words_of", "words_of_failure",
    "again_text", "is_word", "names_columns", "names_in", "not_read", "number_in", "check_dealt", "check_room", "check_shares", "device_kind", "facts_of_ranks", "most_ranks", "ranks_again", "rows_of",
}  # fmt: skip
METHODS = {  # of a run, of a path, of modules
    "Popen", "command", "hardlink_to", "killpg", "makedirs", "mkdir", "mkdtemp", "rename", "rmdir", "rmtree", "symlink_to", "touch",
    "turn", "unlink", "write_bytes", "write_text", "writestr",
}  # fmt: skip
# Functions behind a gate, and the one from which each is called. Work is a deed: what it calls touches its own folder only.
BEHIND = {
    "panel.act": "live.do", "going.go_on": "panel.act", "own._looked": "own.recognise", "jobs.end": "jobs.cancel", "jobs.zipped": "jobs.listen",
}  # fmt: skip
FILES = [*sorted((ROOT / "moe_core" / "dashboard").rglob("*.py")), *sorted((ROOT / "pages").glob("*.py"))]


def borrowed(tree: ast.AST) -> dict[str, str]:
    """Functions of runs and sweeps by the name that a file gives them."""
    return {
        name.asname or name.name: name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("moe_core.runs", "moe_core.sweep"))
        for name in node.names
        if name.name.islower()
    }


def around(tree: ast.AST) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """Each node with all that it lies in."""
    open_ = [(tree, list[ast.AST]())]
    for node, above in open_:
        open_ += [(inner, [*above, node]) for inner in ast.iter_child_nodes(node)]
        yield node, above


def is_gate(node: ast.AST, module: str) -> bool:
    """Whether a node lets nobody through who only looks: a function that is a deed or behind one, or `deed(…)`."""
    if isinstance(node, ast.FunctionDef):
        return "deed" in map(ast.unparse, node.decorator_list) or f"{module}.{node.name}" in BEHIND
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "deed"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_whatever_changes_something_lies_behind_the_gate(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = borrowed(tree)
    unknown = set(names.values()) - CHANGES - READS
    assert not unknown, f"say in CHANGES or READS what {unknown} do"
    for node, above in around(tree):
        changes = (isinstance(node, ast.Name) and names.get(node.id) in CHANGES) or (
            isinstance(node, ast.Attribute) and (node.attr in METHODS or ast.unparse(node) == "subprocess.run")
        )
        passed = any(is_gate(one, path.stem) for one in above)
        assert not changes or passed, f"{path.name}, line {node.lineno}: {ast.unparse(node)} lies behind no gate"  # type: ignore[attr-defined]


def test_what_lies_behind_a_gate_is_called_from_there_only() -> None:
    users: dict[str, set[str]] = {name: set() for name in BEHIND}
    for path in FILES:
        tree = ast.parse(path.read_text())
        here = {node.name: path.stem for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("moe_core.dashboard."):
                here |= {name.name: str(node.module).rpartition(".")[2] for name in node.names}
        for node, above in around(tree):
            name = f"{here[node.id]}.{node.id}" if isinstance(node, ast.Name) and node.id in here else ast.unparse(node)
            if name in users and isinstance(node, ast.Name | ast.Attribute):
                users[name] |= {f"{path.stem}.{one.name}" for one in above[-1:0:-1] if hasattr(one, "name")}
    users["jobs.end"].discard("jobs.__init__")
    assert {name: by - {"jobs.Work"} for name, by in users.items()} == {name: {by} for name, by in BEHIND.items()}


@pytest.fixture
def role(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A dashboard that asks for a token. Says what the pages' viewer may do from now on, as the guard tells Streamlit."""
    monkeypatch.setattr(gate, "DOOR", Door((), "0.0.0.0", "secret", look="glance"))
    context = SimpleNamespace(headers=[("Host", "127.0.0.1"), (ROLE, TURNS)], cookies={}, remote_ip=None)
    monkeypatch.setattr("streamlit.runtime.context._get_client_context", lambda: context)

    def become(role: str) -> None:
        context.headers[1] = (ROLE, role)

    return become


def test_a_page_whose_browser_has_gone_changes_nothing(
    role: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamlit may run what was pressed after the socket was closed; of such a page it knows no headers."""
    done: list[str] = []
    monkeypatch.setattr("streamlit.runtime.context._get_client_context", lambda: None)
    monkeypatch.setattr(gate.st, "stop", lambda: (_ for _ in ()).throw(InterruptedError))
    assert looks()
    with pytest.raises(InterruptedError):
        deed(done.append)("all")
    assert done == []
    monkeypatch.setattr(gate, "DOOR", Door())  # no token is asked for: whoever comes in may turn
    deed(done.append)("all")
    assert done == ["all"]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that would have been started."""
    begun: list[Any] = []

    def refuse(words: Any, *_: Any, **__: Any) -> None:
        begun.append(words)
        raise OSError("no process is started here")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    return begun


def contents(folder: Path) -> str:
    """A hash of all that lies in a folder; not of what tells SQLite's readers from each other."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith("-shm"):
            digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


@pytest.fixture
def filled(runs: Path) -> Iterator[Path]:
    """A run that has ended, one of a lesson that trains, and a sweep that was stopped."""
    record(runs / "ended", "text", L=2).close()
    writer = begun(runs, "lesson", 6)
    make_sweep(make_plan(CONFIG, Knobs(), WEIGHTS, [], 1), runs, "grid")
    yield runs
    writer.finish("stopped")


# What is on each page for who turns, by link and by what the tab has chosen: its widgets that change something.
DEEDS: dict[str, tuple[dict[str, str], dict[str, Any], set[str]]] = {
    "live": ({"run": "new"}, {}, {"start-text", "start-digits", "start-plane", "start-demo"}),
    "batch": ({"run": "ended"}, {}, {"batch-measure-ended", "batch-deal-ended"}),
    "sweep": ({"sweep": "grid"}, {}, {"go-on-grid"}),
    "sweep, new": ({"sweep": "new"}, {}, {"sweep-start"}),
    "learn": ({"lesson": "6", "run": "lesson"}, {}, {"class-lead", "stage-6-0", "stage-6-1"}),
    "export": (
        {"run": "ended", "figures": "loss,balance"}, {},
        {f"begin-work-ended-{name}" for name in ("png-figures.zip", "report.html", "replay.html", "balance_now.gif")},
    ),
    "runs": ({}, {managing.CHOSEN: Chosen(["lesson"])}, {"runs-stop-all", "runs-stop", "runs-name-lesson", "runs-note-lesson", "runs-tags-lesson"}),
    "runs, several": ({}, {managing.CHOSEN: Chosen(["lesson", "ended"])}, {"runs-stop-all", "runs-stop", "runs-tag"}),
    "runs, to delete": ({}, {managing.CHOSEN: Chosen(["ended"]), managing.DELETE: ["ended"]}, {"runs-stop-all", "runs-yes"}),
}  # fmt: skip
# They show something else, or ask.
HARMLESS = r"read-.*|runs-(go|no|doom|compare)|title|sweep-(list|strategy|pairs|more).*|export-.*"


CHANGED = {"text_input": "changed", "text_area": "changed", "multiselect": ["changed"]}


def opened(name: str, become: Callable[[str], None], role: str) -> AppTest:
    """A page as a viewer of this role opens it."""
    become(role)
    link, state, _ = DEEDS[name]
    app = page(name.partition(",")[0], **link)
    for key, value in state.items():
        app.session_state[key] = value
    return app.run() if state else app


def widgets(app: AppTest) -> list[Any]:
    return [*app.button, *app.text_input, *app.text_area, *app.multiselect]


def pressable(app: AppTest) -> set[str]:
    keys = {str(widget.key) for widget in widgets(app) if not widget.disabled}
    return {key for key in keys if not re.fullmatch(HARMLESS, key)}


@pytest.mark.parametrize("name", DEEDS)
def test_who_only_looks_changes_nothing_even_by_a_message_made_by_hand(
    filled: Path, role: Callable[[str], None], processes: list[Any], name: str
) -> None:
    before, deeds = contents(filled), DEEDS[name][2]
    app = opened(name, role, TURNS)
    assert pressable(app) == deeds, "say in DEEDS or in HARMLESS what is new here"
    for key in sorted(deeds):
        role(TURNS)
        app.run()  # the page has the widget, so that Streamlit knows it
        role(LOOKS)
        (widget,) = (one for one in widgets(app) if one.key == key)
        (widget.click() if widget.type == "button" else widget.set_value(CHANGED[widget.type])).run()
        assert not app.exception
        assert any(one.value.startswith((LOOKING, REFUSED)) for one in (*app.error, *app.caption)), key
        assert (contents(filled), processes) == (before, []), key
    looking = opened(name, role, LOOKS)
    assert not looking.exception
    assert not pressable(looking) & deeds


def test_what_only_those_who_turn_can_use_is_not_there_for_others_and_they_are_told(
    filled: Path, role: Callable[[str], None]
) -> None:
    for become, dead in ((TURNS, False), (LOOKS, True)):
        role(become)
        app = page("export", run="ended", figures="loss,balance")
        assert not app.exception
        assert not [one.key for one in widgets(app) if one.disabled and one.key != "export-none"]
        assert bool(app.get("file_uploader")) is not dead
        told = [one.value for one in app.caption if one.value.startswith(LOOKING)]
        assert told == [f"{LOOKING} Reports, replays and animations are left to the teacher."] * dead
        # One figure after the other can be had by everybody.
        assert ("export-one" in {one.key for one in app.get("download_button")}) is dead
        panels = "".join(one.proto.json for one in app.get("bidi_component"))
        assert (f'"looks": {json.dumps(dead)}' in panels, f'"looks": {json.dumps(not dead)}' in panels) == (True, False)
        sweeps = page("sweep", sweep="grid").selectbox(key="sweep-chooser").options
        assert sweeps == ([] if dead else ["New sweep"]) + ["grid"]
