"""How long functions and files may be."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "moe_core").rglob("*.py"), *(ROOT / "pages").rglob("*.py"), ROOT / "app.py"])
LONGEST_FUNCTION, LONGEST_FILE, MEDIAN = 60, 400, 7


def functions() -> Iterator[tuple[str, int]]:
    """Each function with its lines, from `def` to its end."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_no_function_is_too_long() -> None:
    assert not {name: lines for name, lines in functions() if lines > LONGEST_FUNCTION}


def test_half_of_the_functions_are_short() -> None:
    assert statistics.median(lines for _, lines in functions()) <= MEDIAN


def test_no_file_is_too_long() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert not {name for name in lines if lines[name] > LONGEST_FILE}, "part it into two ideas"
