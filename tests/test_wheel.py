"""The wheel in bare environments: numpy alone reads a run, torch trains without the dashboard, and what is missing is one line."""

import json
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moe_core import __version__
from moe_core.commands.common import EXTRAS
from moe_core.runs import open_run
from tests.server import ROOT
from tests.wheel import Environment, about, build

FIXTURE = ROOT / "tests" / "fixtures" / "v0.1" / "text"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMALL = ["--task", "digits", "--d-model", "8", "--d-hidden", "8", "--tokens", "64", "--threads", "1"]
READ = """
import json, sys
from moe_core.runs import open_run
run = open_run("text", sys.argv[1])
steps, values = run.history("cv_load", layer=1)
print(json.dumps([run.id, run.state, steps.tolist(), values.tolist()]))
"""

START = """
import sys
from moe_core.runs import StoreError, start, wait_ready
from moe_core.schema import Config, Knobs
try:
    wait_ready(start(Config.for_task("plane"), Knobs(), sys.argv[1], run_id="a"), 60, sys.argv[1])
except StoreError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install .` gives."""
    return Environment(tmp_path_factory.mktemp("bare"), wheel)


@pytest.fixture(scope="module")
def trains(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install .[train]` gives."""
    return Environment(tmp_path_factory.mktemp("trains"), wheel, "train")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "runs" / "text")
    return tmp_path / "runs"


def test_the_wheel_holds_every_file_of_the_package_and_the_app(wheel: Path) -> None:
    """Scripts, styles and typefaces too: a page without them is empty."""
    words = ["git", "ls-files", "moe_core", "app.py", "pages", ".streamlit"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name if name.startswith("moe_core/") else f"moe_core/_app/{name}" for name in listed} <= names
    assert {name.split("/")[0] for name in names} == {"moe_core", f"moescope-{__version__}.dist-info"}
    assert about(wheel).version == __version__


def names_of(extra: str) -> set[str]:
    """The packages of an extra in pyproject.toml, those of an extra that it takes in included."""
    asked = list(map(Requirement, PROJECT["optional-dependencies"][extra]))
    inner = [names_of(name) for requirement in asked for name in requirement.extras if requirement.name == "moescope"]
    return {canonicalize_name(one.name) for one in asked if one.name != "moescope"}.union(*inner)


def test_what_the_commands_look_for_is_what_their_extra_brings() -> None:
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - {"all"}
    for extra, modules in EXTRAS.items():
        assert set(modules.values()) == names_of(extra), extra
    assert names_of("all") == set().union(*map(names_of, EXTRAS.keys() - {"watch-demo"}))


def test_requirements_pin_what_the_extras_ask_for() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    by_streamlit = {"pillow", "pyarrow"}
    assert pinned | by_streamlit == names_of("all") | {"numpy"}


def test_numpy_alone_reads_a_run(bare: Environment, runs: Path) -> None:
    assert bare.lacks("torch", "streamlit", "plotly", "sklearn", "fontTools")
    done = bare.run("python", "-c", READ, str(runs))
    assert done.returncode == 0, done.stderr
    run = open_run("text", runs)
    steps, values = run.history("cv_load", layer=1)
    assert len(steps) > 10
    assert json.loads(done.stdout) == [run.id, run.state, steps.tolist(), values.tolist()]


def test_numpy_alone_lists_and_verifies_runs(bare: Environment, runs: Path) -> None:
    listed = bare.run("moescope", "runs", "--runs", str(runs), "--json")
    assert [json.loads(line)["run"] for line in listed.stdout.splitlines()] == ["text"]
    for program in (["moescope"], ["python", "-m", "moe_core"]):
        done = bare.run(*program, "verify", "text", "--runs", str(runs))
        assert (done.returncode, "text is whole" in done.stdout) == (0, True), done.stderr
    asked = bare.run("moescope", "--help")
    assert asked.stdout.startswith("usage: moescope ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the dashboard needs streamlit: pip install 'moescope[dashboard]'"),
        (["--port", "9"], "the dashboard needs streamlit: pip install 'moescope[dashboard]'"),
        (["dashboard"], "the dashboard needs streamlit: pip install 'moescope[dashboard]'"),
        (["train"], "train needs torch: pip install 'moescope[train]'"),
        (["train", "--resume", "text"], "train needs torch: pip install 'moescope[train]'"),
        (["fork", "text", "--at", "40"], "fork needs torch: pip install 'moescope[train]'"),
        (["replay", "text"], "replay needs torch: pip install 'moescope[train]'"),
        (["sweep", "--steps", "5"], "sweep needs torch: pip install 'moescope[train]'"),
        (["ablate", "text"], "ablate needs torch: pip install 'moescope[train]'"),
        (["watch-demo"], "watch-demo needs torch: pip install 'moescope[watch-demo]'"),
        (["bench", "layer"], "bench needs torch: pip install 'moescope[train]'"),
        (["export", "text", "--out", "out"], "export needs plotly: pip install 'moescope[export]'"),
        (["report", "text", "--out", "a.html"], "report needs plotly: pip install 'moescope[export]'"),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_what_is_missing_is_one_line_and_nothing_is_written(
    bare: Environment, runs: Path, words: list[str], line: str
) -> None:
    before = sorted(runs.rglob("*"))
    done = bare.run("moescope", *words, *([] if not words else ["--runs", str(runs)]))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"moe: {line}\n")
    assert sorted(runs.rglob("*")) == before
    assert list(bare.elsewhere.iterdir()) == []


def test_a_dashboard_without_torch_hears_why_its_trainer_did_not_start(bare: Environment, tmp_path: Path) -> None:
    done = bare.run("python", "-c", START, str(tmp_path))
    line = "the trainer of a did not start: moe: train needs torch: pip install 'moescope[train]'\n"
    assert (done.stdout, done.stderr) == (line, "")


def test_torch_trains_and_measures_without_the_dashboard(trains: Environment, tmp_path: Path) -> None:
    assert trains.lacks("streamlit", "plotly", "fontTools", "PIL")
    places = ["--runs", str(tmp_path)]
    done = trains.run("moescope", "train", *SMALL, "--steps", "20", "--run-id", "a", *places)
    assert done.returncode == 0, done.stderr
    assert open_run("a", tmp_path).steps() == (1, 20)
    # The branch's trainer is a process that the first one starts: it finds the package too.
    assert trains.run("moescope", "fork", "a", "--at", "20", "--steps", "30", "--run-id", "b", *places).returncode == 0
    assert open_run("b", tmp_path).steps()[1] == 30
    swept = trains.run("moescope", "sweep", *SMALL, "--steps", "2", "--csv", str(tmp_path / "table.csv"), *places)
    assert swept.returncode == 0, swept.stderr
    assert (tmp_path / "table.csv").read_text().startswith("runs,finished,accuracy,")
    measured = trains.run("moescope", "bench", "batch", "--quick", "--json")
    assert [json.loads(line)["event"] for line in measured.stdout.splitlines()] == ["start", "size", "size", "end"]
    refused = trains.run("moescope", "export", "a", "--out", "out", *places)
    assert (refused.returncode, refused.stderr) == (2, "moe: export needs plotly: pip install 'moescope[export]'\n")
