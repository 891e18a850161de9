"""Names that a statistic or a figure once had still work where scripts and links have them."""

from pathlib import Path

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.dashboard.links import chosen
from moe_core.figures.catalog import FIGURES
from moe_core.runs import StoreError, open_run
from moe_core.schema import RENAMED, STAT
from tests.figures.record import record


def test_an_earlier_name_leads_to_a_present_one_and_is_not_used_again() -> None:
    assert set(RENAMED.values()) <= {*STAT, *FIGURES}
    assert not set(RENAMED) & {*STAT, *FIGURES}


def test_a_history_is_found_by_the_earlier_name(tmp_path: Path) -> None:
    record(tmp_path / "a", E=4, L=1)
    run = open_run(tmp_path / "a")
    np.testing.assert_array_equal(run.history("load_share")[1], run.history("selection_share")[1])
    with pytest.raises(StoreError, match="unknown statistic 'load_shares'"):
        run.history("load_shares")


def test_a_link_with_the_earlier_name_shows_the_figure() -> None:
    assert chosen("figures", "loss,load_share,nothing") == ["loss", "selection_share"]


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["--figure", "load_share", "--format", "csv", "--out", "x"], "x/selection_share.csv"),
        (["--animate", "load_share", "--size", "300x200", "--scale", "1", "--seconds", "1", "--out", "x.gif"], "x.gif"),
    ],
)
def test_the_export_command_takes_the_earlier_name(
    words: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "a", E=4, L=1)
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(tmp_path / "a"), *words]) == 0
    assert (tmp_path / file).is_file()
