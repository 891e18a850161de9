"""What is run by hand and needs a browser, in its short form: the dashboard's benchmark, and `make screens`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.browser


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_the_benchmark_of_the_dashboard_measures_all_that_it_names() -> None:
    told = json.loads(run("benchmarks/dashboard.py", "--quick").stdout)
    watched = {
        "frames_per_s",
        "layouts_per_s",
        "main_thread_percent",
        "browser_percent",
        "server_percent",
        "kb_per_frame",
        "nodes_replaced",
    }
    keys = {"key_to_store_ms", "key_to_trainer_ms", "key_to_chart_ms", "key_to_chart_p95_ms"}
    assert told.keys() == {"click_text_s"} | keys | watched | {f"slow_{name}" for name in watched}
    assert 0 <= told["key_to_store_ms"] <= told["key_to_trainer_ms"] <= told["key_to_chart_ms"]
    assert all(
        told[name] > 0
        for name in ("click_text_s", "frames_per_s", "kb_per_frame", "browser_percent", "slow_frames_per_s")
    )
    assert told["slow_frames_per_s"] < 8  # five steps a second
    assert told["nodes_replaced"] == told["slow_nodes_replaced"] == 0


def test_screens_takes_a_picture_of_a_page_with_its_charts(tmp_path: Path) -> None:
    run("tests/browser/screens.py", "--quick", "--out", str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name == "live-quick-light-1280x800.png"
    picture = Image.open(path)
    assert picture.size == (1280, 800)
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 50  # the experts' colours, not an empty page
    asked = subprocess.run(["make", "-n", "screens"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "python tests/browser/screens.py" in asked
