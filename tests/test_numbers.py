"""Numbers and names that people write: read as what they say, or refused in one line."""

import os
from pathlib import Path

import pytest

from moe_core.__main__ import main
from moe_core.dashboard.messages import Deed
from moe_core.dashboard.panel import act
from moe_core.runs import changes_of, open_run
from moe_core.runs.database import hold_lock
from moe_core.schema import Config, Knobs, duration, left_text, parse_setting, real, shortened, switched_off, whole
from tests.runs.test_store import record

READ = {
    "0.5": 0.5, ".5": 0.5, "2.": 2.0, "+1": 1.0, "25e-2": 0.25, " 1 ": 1.0, "1E0": 1.0, "0": 0.0, "003": 3.0,
}  # fmt: skip
NOT_READ = [
    "٣", "１", "1_0", "0x1", "inf", "-Infinity", "nan", "1,5", "1 0", "1e", "e5", ".", "", " ", "1\n", "\t1", "½", "1d0",
    "0.5f", "--1", "1" * 10_000 + "x", "1e400", "1" * 10_000, True, None, [1], 10**400,
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read_as_it_stands(text: str) -> None:
    assert real(text) == parse_setting(Knobs, "noise", text) == READ[text]
    assert parse_setting(Knobs, "noise", READ[text]) == READ[text]


@pytest.mark.parametrize("value", NOT_READ, ids=lambda value: repr(value)[:20])
def test_what_python_would_take_and_nobody_meant_is_refused(value: object) -> None:
    for settings, name in ((Knobs, "noise"), (Knobs, "k"), (Config, "steps")):
        with pytest.raises(ValueError, match=f"{name} must be (a number|between)"):
            parse_setting(settings, name, value)
    if isinstance(value, str):
        with pytest.raises(ValueError, match="must be a whole number"):
            whole(value)


@pytest.mark.parametrize(
    "flag", ["fork x --at", "export x --out y --layer", "export x --out y --size", "bench batch --k"]
)
@pytest.mark.parametrize("value", ["٣", "1_0", "1.5", "1e3", "9" * 5000, "٣x٤"])
def test_a_flag_takes_whole_numbers_in_digits(flag: str, value: str, tmp_path: Path, capsys) -> None:
    record(tmp_path / "x")
    with pytest.raises(SystemExit):
        raise SystemExit(main([*flag.split(), value, "--runs", str(tmp_path)]))
    said = capsys.readouterr().err
    assert said.startswith("moe: ")
    assert any(words in said for words in ("whole number", "WIDTHxHEIGHT", "must be between"))
    assert len(said) < 1_100


@pytest.mark.parametrize("off", ["٣", "1:٣", "9" * 5000, "1_0", "-1"])
def test_experts_are_switched_off_in_digits(off: str) -> None:
    with pytest.raises(ValueError, match="off must list experts counted from 1"):
        switched_off([Config().num_experts] * Config().layers, off)


@pytest.mark.parametrize("name", ["who", "self", "changes", "steps", "config", "__class__", ""])
def test_a_change_of_what_is_no_knob_is_refused_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "a"))
    with pytest.raises(ValueError, match="unknown knob"):
        run.turn("me", changes_of([f"{name}=1"]))
    lock = hold_lock(run.path)  # the panel turns knobs of a run that trains
    with pytest.raises(ValueError, match="unknown knob"):
        act(run, Deed(1, turn={name: 1}))
    os.close(lock)
    assert run.knob_changes() == []


def test_a_long_text_keeps_its_start_and_its_end() -> None:
    assert shortened("short", 80) == "short"
    cut = shortened("a reason, " + "x" * 1000 + "; what to do", 80)
    assert cut.startswith("a reason, xxx")
    assert cut.endswith("xxx; what to do")
    assert len(cut) <= 80


def test_times_read_as_a_person_says_them() -> None:
    assert [duration(s) for s in (0.4, 12, 89, 91, 240, 7500, 4e7)] == ["0 s", "12 s", "89 s", "2 min", "4 min", "2 h 5 min", "11,111 h 7 min"]  # fmt: skip
    assert left_text(10, 2, 8) == "about 40 s left"
    assert (left_text(10, 0, 8), left_text(10, 0.01, 8), left_text(0, 2, 8)) == ("", "", "")
