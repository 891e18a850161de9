"""A figure that cannot be drawn is named; all else of an export or a report is written."""

from pathlib import Path
from typing import Any

import pytest

from moe_core.export import export
from moe_core.export.report import write_report
from moe_core.export.sources import Still
from moe_core.figures.catalog import FIGURES
from moe_core.runs import open_run
from tests.figures.record import record


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Still:
    def broken(*_: Any) -> Any:
        raise KeyError("images")

    monkeypatch.setitem(FIGURES, "loss", FIGURES["loss"]._replace(read=broken))
    record(tmp_path / "undrawn", "digits")
    return Still(open_run("undrawn", tmp_path))


def test_an_export_writes_the_other_figures_and_names_the_one(run: Still, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^loss cannot be drawn: KeyError 'images'\. All else was written to "):
        export(run, tmp_path / "out", ("svg", "csv"), ["balance", "loss", "balance_now"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "balance.svg", "balance.csv", "balance_now.svg", "balance_now.csv", "statistics.csv", "export.json", "script.txt",
    }  # fmt: skip


def test_a_report_says_why_in_the_figures_place(run: Still, tmp_path: Path) -> None:
    write_report(run, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<pre>loss of layer 1 cannot be drawn: KeyError &#x27;images&#x27;</pre>" in text
    assert text.count("<figure>") > 4
    assert write_report(run, tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
