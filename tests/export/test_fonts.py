"""The typefaces of exports: files of ours, the same as the page's, with their licence."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fontTools.ttLib import TTFont

from moe_core.export.fonts import FILES, FOLDER


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


def test_tables_are_written_without_the_packages_of_pictures() -> None:
    """Whoever only trains has none of them, and `sweep --csv` writes its table by the same function."""
    code = "import sys, moe_core.export\nassert not {'fontTools', 'plotly', 'PIL', 'resvg_py', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
