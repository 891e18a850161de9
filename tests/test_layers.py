"""Who may import whom. This table is the documentation as well as the check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a module of each part may import beside the standard library, by the longest matching prefix of its path.
MAY_IMPORT = {
    "moe_core/schema": {"moe_core.schema"},
    "moe_core/nn": {"torch", "moe_core.schema", "moe_core.nn"},
    "moe_core/benchmarks": {"torch", "moe_core.nn", "moe_core.benchmarks"},
    "moe_core/benchmarks/peers.py": {"torch", "transformers", "st_moe_pytorch"},
    "moe_core/benchmarks/ranks.py": {"torch", "moe_core.folders", "moe_core.schema", "moe_core.runs", "moe_core.training.checkpoint", "moe_core.parallel.alive", "moe_core.benchmarks"},
    "moe_core/benchmarks/one_rank.py": {"torch", "moe_core.schema", "moe_core.nn", "moe_core.runs", "moe_core.parallel", "moe_core.training", "moe_core.benchmarks"},
    "moe_core/benchmarks/results.py": {"moe_core.recording", "moe_core.runs"},
    "moe_core/benchmarks/seeing.py": {"torch", "moe_core.schema", "moe_core.runs", "moe_core.training", "moe_core.benchmarks"},
    "moe_core/benchmarks/start.py": {"moe_core.folders", "moe_core.runs", "moe_core.benchmarks"},
    "moe_core/benchmarks/waits.py": {"torch", "moe_core.schema", "moe_core.nn", "moe_core.training"},
    "moe_core/runs": {"numpy", "moe_core", "moe_core.folders", "moe_core.schema", "moe_core.runs"},
    "moe_core/figures": {"numpy", "plotly", "moe_core.schema", "moe_core.runs.rows", "moe_core.runs.series", "moe_core.runs.source", "moe_core.runs.statistics", "moe_core.figures"},
    "moe_core/diagnosis.py": {"numpy", "moe_core.schema", "moe_core.evidence", "moe_core.remedies"},
    "moe_core/remedies.py": {"moe_core.schema", "moe_core.evidence"},
    "moe_core/evidence.py": {"numpy", "moe_core.schema", "moe_core.runs.rows", "moe_core.runs.statistics"},
    "moe_core/recording": {"numpy", "moe_core.schema", "moe_core.diagnosis", "moe_core.runs", "moe_core.evidence", "moe_core.recording"},
    "moe_core/recording/facts.py": {"numpy", "torch", "moe_core"},
    "moe_core/parallel": {"torch", "moe_core.schema", "moe_core.nn", "moe_core.runs", "moe_core.training", "moe_core.parallel"},
    "moe_core/watching/callback.py": {"torch", "transformers", "moe_core.runs", "moe_core.schema", "moe_core.watching"},
    "moe_core/training": {"numpy", "torch", "moe_core.schema", "moe_core.diagnosis", "moe_core.evidence", "moe_core.nn", "moe_core.runs", "moe_core.recording", "moe_core.training"},
    "moe_core/watching": {"torch", "numpy", "moe_core.schema", "moe_core.diagnosis", "moe_core.evidence", "moe_core.remedies", "moe_core.nn", "moe_core.runs", "moe_core.recording", "moe_core.parallel.group", "moe_core.watching"},
    "moe_core/watching/demo.py": {"torch", "transformers", "moe_core.runs", "moe_core.watching"},
    "moe_core/export": {"numpy", "plotly", "pyarrow", "PIL", "fontTools", "resvg_py", "imageio_ffmpeg", "moe_core", "moe_core.schema", "moe_core.runs", "moe_core.sweep", "moe_core.figures", "moe_core.export"},
    "moe_core/scaling": {"numpy", "moe_core.schema", "moe_core.runs", "moe_core.scaling"},
    "moe_core/sweep": {"moe_core.schema", "moe_core.runs", "moe_core.sweep"},
    "moe_core/dashboard": {"numpy", "streamlit", "starlette", "google.protobuf", "plotly", "moe_core.folders", "moe_core.schema", "moe_core.diagnosis", "moe_core.evidence", "moe_core.lessons", "moe_core.runs", "moe_core.sweep", "moe_core.figures", "moe_core.export", "moe_core.dashboard"},
    "moe_core/dashboard/frames.py": {"numpy"},
    "moe_core/dashboard/jobs.py": {"moe_core.folders", "moe_core.schema", "moe_core.runs", "moe_core.export", "moe_core.dashboard.gate"},
    "moe_core/commands": {"moe_core", "moe_core.folders", "moe_core.benchmarks", "moe_core.schema", "moe_core.runs", "moe_core.sweep", "moe_core.training", "moe_core.parallel", "moe_core.watching", "moe_core.export", "moe_core.scaling", "moe_core.commands"},
    "moe_core/lessons": {"numpy", "moe_core.schema", "moe_core.runs.source", "moe_core.lessons"},
    "moe_core/__main__.py": {"moe_core", "moe_core.commands"},
    "moe_core/__init__.py": {"moe_core.watching"},  # when it is asked for
    "moe_core/folders.py": set(),
    "pages": {"streamlit", "moe_core.dashboard", "moe_core.runs", "moe_core.figures"},
    "app.py": {"streamlit", "moe_core.folders", "moe_core.dashboard"},
}  # fmt: skip
SQL_ONLY_IN = {
    f"moe_core/runs/{name}.py"
    for name in ("begin", "branch", "database", "file", "store", "sums", "thinning", "turns", "writer")
}


def imports(path: Path) -> set[str]:
    """Full dotted names that a file imports from outside the standard library, wherever in the file it does."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names or name.startswith("sqlite3")}


def allowed(name: str, may: set[str]) -> bool:
    """moe_core alone allows its __version__ only; a package allows what is below it."""
    if name.startswith("moe_core.") and name != "moe_core.__version__":
        return any(name == prefix or name.startswith(prefix + ".") for prefix in may - {"moe_core"})
    return name == "moe_core.__version__" or any(name == prefix or name.startswith(prefix + ".") for prefix in may)


FILES = sorted(
    path
    for folder in ("moe_core", "pages", "app.py")
    for path in [*(ROOT / folder).rglob("*.py"), ROOT / folder]
    if path.is_file()
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_part_may(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    prefixes = [prefix for prefix in MAY_IMPORT if name == prefix or name.startswith(prefix + "/")]
    assert prefixes, f"{name} belongs to no part; say in MAY_IMPORT what it may import"
    may = MAY_IMPORT[max(prefixes, key=len)]
    modules = imports(path)
    if name not in SQL_ONLY_IN:
        assert not {module for module in modules if module.split(".")[0] == "sqlite3"}, (
            f"{name}: SQL belongs in {sorted(SQL_ONLY_IN)}"
        )
    modules = {module for module in modules if module.split(".")[0] != "sqlite3"}
    refused = sorted(module for module in modules if not allowed(module, may))
    assert not refused, f"{name} may not import {refused}"


def test_no_two_modules_import_each_other() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imports(path)
        for path in FILES
        if path.name != "__init__.py"
    }
    used = {
        name: {other for other in modules if any(f"{i}.".startswith(f"{other}.") for i in of)}
        for name, of in modules.items()
    }
    assert not [(one, other) for one in used for other in used[one] if one < other and one in used[other]]


def test_nothing_finds_a_file_by_how_deep_it_lies() -> None:
    """In a wheel the app lies elsewhere than in a checkout; moe_core/folders.py knows where."""
    modules = [str(path.relative_to(ROOT)) for path in FILES if "__file__).parents" in path.read_text()]
    assert modules == []


def test_the_dashboard_process_has_no_torch() -> None:
    code = "import sys, moe_core.dashboard.controls, moe_core.dashboard.live, moe_core.dashboard.feed, moe_core.dashboard.sweeps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_store_and_the_figures_need_neither_torch_nor_streamlit() -> None:
    code = "import sys, moe_core.runs, moe_core.figures; sys.exit(bool({'torch', 'streamlit'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "name",
    ["Ranks", "RankCounts", "WatchedRanks", "device_kind", "device_of", "measured_by", "ranks_of", "stats_of_ranks", "wanted_device"],
)  # fmt: skip
def test_a_name_that_meant_two_things_means_one(name: str) -> None:
    pattern = re.compile(rf"^(?:def|class) {name}\b", re.MULTILINE)
    assert sum(len(pattern.findall(path.read_text())) for path in FILES) == 1
