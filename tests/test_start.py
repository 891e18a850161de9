"""What is imported at each start: nothing heavy that it does not need. Counted, not timed; `bench start` times it."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_core.runs import create_run
from moe_core.schema import Config, Knobs

ROOT = Path(__file__).parents[1]
HEAVY = (
    "numpy", "plotly", "streamlit", "torch", "sklearn", "scipy", "pandas", "pyarrow", "transformers", "fontTools", "resvg_py",
    "matplotlib", "torch._dynamo", "torch._inductor",
)  # fmt: skip
DASHBOARD = {"numpy", "streamlit", "plotly"}  # Streamlit imports Plotly by itself
STARTS = {
    "import moe_core": set[str](),
    "import moe_core.runs": {"numpy"},
    "from moe_core.__main__ import main; main(['--help'])": {"numpy"},
    "import app; import moe_core.dashboard.main": DASHBOARD,
    "import moe_core.training.session": {"numpy", "torch"},
}


@pytest.mark.parametrize(("start", "needed"), STARTS.items())
def test_a_start_imports_what_it_needs_and_nothing_heavy_beside(start: str, needed: set[str]) -> None:
    words = f"import sys, atexit; atexit.register(lambda: print('|', *sys.modules)); sys.path.insert(0, {str(ROOT)!r}); {start}"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.rpartition("|")[2].split()) & set(HEAVY) == needed


def test_a_runs_file_is_made_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction waits for the disk four times, and whoever started the run waits for the file."""
    said, connect = list[str](), sqlite3.connect

    def traced(path: Any, *words: Any, **more: Any) -> sqlite3.Connection:
        db = connect(path, *words, **more)
        if str(path).endswith("run.db.new"):
            db.set_trace_callback(said.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    create_run(tmp_path / "a", Config(), Knobs()).finish("stopped")
    assert (said[0], said[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    assert said.count("COMMIT") == 1
    assert sum("CREATE TABLE" in words for words in said) > 5
