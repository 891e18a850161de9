"""The typefaces of exports: files of ours, the same as the page's, with their licence."""

import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from fontTools.ttLib import TTFont

from moe_core.export.fonts import FILES, FOLDER, width_of
from moe_core.export.marks import Run
from moe_core.figures.paper import ems
from moe_core.schema import Knobs


def test_they_are_the_ones_that_the_page_has() -> None:
    """Or a figure on the page and its export would differ in every word."""
    spec = find_spec("streamlit")
    assert spec
    assert spec.origin
    media = [path.read_bytes() for path in (Path(spec.origin).parent / "static").rglob("*.woff2")]
    assert FILES.keys() == {False, True}
    for path in FILES.values():
        assert path.read_bytes() in media, f"{path.name} is not among the typefaces of the installed streamlit"


def test_their_licence_lies_beside_them_with_each_ones_copyright() -> None:
    licence = (FOLDER / "OFL.txt").read_text()
    assert "SIL OPEN FONT LICENSE\n\nVersion 1.1" in licence
    for path in FILES.values():
        copyright = TTFont(path)["name"].getDebugName(0)
        assert f"{path.name} (" in licence
        assert licence.count(copyright) == len(FILES)


def test_labels_are_reckoned_a_little_wider_than_they_are() -> None:
    """Names of experts, numbers, and turns of any knob: what the figures place by ems()."""
    values = {"strategy": ("expert-choice", "strictly-balanced"), "weigh": ("own", "all"), "off": ("none", "4,11")}
    turns = [f"{f.name} {' → '.join(values.get(f.name, ('0.25', '1')))}" for f in fields(Knobs)]
    for label in ("expert 128", "0123456789", "12–14", "217k", "1,024", "1.31 M rows/s", "3 changes", *turns):
        true = width_of([Run(label, (0, 0, 0, 1.0), 1.0, 400, False)])
        assert true < ems(label) < 1.35 * true, label


def test_tables_are_written_without_the_packages_of_pictures() -> None:
    """Whoever only trains has none of them, and `sweep --csv` writes its table by the same function."""
    code = "import sys, moe_core.export\nassert not {'fontTools', 'plotly', 'PIL', 'resvg_py', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
