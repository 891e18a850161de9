"""The declarations: every field knows its range, and bad values are refused in words that help."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from moe_core.schema import (
    METRICS,
    PRESETS,
    STATS,
    STRATEGIES,
    TASKS,
    Config,
    Knobs,
    as_dict,
    change_text,
    check,
    check_knob,
    exact_text,
    first_line,
    from_dict,
    highest,
    layout,
    meta_of,
    parse_setting,
    strategies_with,
    switched_off,
    value_text,
    weighing,
)
from tests.values import VALUES

STRATEGIES_PAGE = Path(__file__).parents[1] / "docs" / "strategies.md"


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_of_every_task_are_in_range(task: str) -> None:
    config, knobs = check(Config.for_task(task), Knobs())
    assert (config, knobs) == (Config.for_task(task), Knobs())
    assert METRICS[task]


def test_presets_name_real_fields() -> None:
    names = {f.name for f in fields(Config)}
    assert all(set(preset) <= names for preset in PRESETS.values())


@pytest.mark.parametrize("settings", [Config, Knobs])
def test_every_field_has_help_and_every_number_a_range_that_holds_its_default(settings: type) -> None:
    for f in fields(settings):
        meta = meta_of(settings, f.name)
        assert meta.help
        if isinstance(f.default, (int, float)):
            assert math.isfinite(meta.low)
            assert math.isfinite(meta.high)
            assert meta.low <= f.default <= meta.high
            assert parse_setting(settings, f.name, meta.low) == meta.low
            assert parse_setting(settings, f.name, meta.high) == meta.high


@pytest.mark.parametrize("settings", [Config(text=("a", "b")), Knobs(noise=0.25)])
def test_settings_survive_json(settings: Config | Knobs) -> None:
    assert from_dict(type(settings), as_dict(settings)) == settings


def test_a_run_of_a_later_version_opens() -> None:
    assert from_dict(Knobs, {**as_dict(Knobs()), "noise": 0.5, "invented_later": 3}) == Knobs(noise=0.5)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("nose", 1, "unknown knob 'nose'; there are: noise, k"),
        ("noise", "loud", "noise must be a number, got 'loud'"),
        ("noise", 5, "noise must be between 0 and 4, got 5"),
        ("noise", float("nan"), "noise must be between 0 and 4, got nan"),
        ("noise", float("inf"), "noise must be between 0 and 4, got inf"),
        ("k", 1.5, "k must be a whole number, got 1.5"),
        ("k", 0, "k must be between 1 and 1024, got 0"),
    ],
)
def test_a_bad_knob_is_refused_in_one_line(name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        parse_setting(Knobs, name, value)
    assert "\n" not in str(refused.value)


def test_a_value_takes_the_type_of_its_field() -> None:
    assert parse_setting(Knobs, "k", "3") == 3
    assert isinstance(parse_setting(Knobs, "k", 3.0), int)
    assert isinstance(parse_setting(Knobs, "noise", 1), float)


@pytest.mark.parametrize(
    ("config", "knobs", "says"),
    [
        (Config(num_experts=4), Knobs(k=5), "k must be between 1 and num_experts=4, got 5"),
        (Config(task="poetry"), Knobs(), "task must be one of text, digits, plane, got 'poetry'"),
        (Config(task="plane", text=("a",)), Knobs(), "add --task text"),
        (Config(text=("a", "")), Knobs(), "got an empty one; for the folder you are in give ."),
        (Config(text=("a\udcff",)), Knobs(), "--text wants paths in UTF-8"),
        (Config(task="text", data="x.npz"), Knobs(), "add --task digits"),
        (Config(groups=3), Knobs(), "num_experts=16 must be divisible by groups=3"),
        (Config(groups=8), Knobs(k=3), "k must be between 1 and num_experts / groups=2, got 3"),
        (Config(groups=2), Knobs(k_primary=3), "k_primary must be between 1 and groups=2, got 3"),
        (
            Config(groups=4),
            Knobs(strategy="even"),
            "with groups=4 strategy must be one of none, paper, switch, got even",
        ),
        (
            Config(task="plane", tokens=100),
            Knobs(strategy="expert-choice"),
            "whole number, got 2 . 100 / 16; change k or",
        ),
        (Config(), Knobs(off="0"), "off must name experts 1 to 16 of layers 1 to 2, got '0'"),
        (Config(), Knobs(off="3:1"), "off must name experts 1 to 16 of layers 1 to 2, got '3:1'"),
        (Config(), Knobs(off="four"), "off must list experts counted from 1, like 4,11 or 2:4 .*, got 'four'"),
        (
            Config(num_experts=4),
            Knobs(off="1,2,2:3"),
            "at least k=2 experts must stay on in each layer, got 1 in layer 2",
        ),
        (Config(groups=4), Knobs(off="1,2,3"), "each group must keep k=2 experts or none.*got 1, 4, 4, 4 on"),
        (Config(groups=2), Knobs(off="1,2,3,4,5,6,7,8"), "k_primary=2 groups some; got 0, 8 on"),
        (Config(tokens=1000), Knobs(), "tokens must be a multiple of context=128, got 1000; use 896"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(config: Config, knobs: Knobs, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check(config, knobs)


def test_k_may_be_all_experts_and_no_more() -> None:
    config = replace(Config(), num_experts=4)
    assert check_knob(config, "k", 4) == 4
    with pytest.raises(ValueError, match="num_experts=4"):
        check_knob(config, "k", 5)


def test_a_knob_is_checked_against_the_others_as_they_stand() -> None:
    config = Config(task="plane", num_experts=8, tokens=64)
    assert check_knob(config, "k", 3, Knobs()) == 3
    whole = Knobs(strategy="expert-choice")
    assert check_knob(config, "k", 4, whole) == 4
    for run, name, value, knobs in (
        (replace(config, tokens=63), "strategy", "expert-choice", Knobs()),
        (replace(config, tokens=60), "k", 3, whole),
        (config, "k", 7, Knobs(off="1,2")),
        (config, "off", "1,2,3,4,5,6,7", Knobs()),
    ):
        assert check_knob(run, name, value) == value
        with pytest.raises(ValueError) as refused:
            check_knob(run, name, value, knobs)
        assert "\n" not in str(refused.value)


def test_experts_are_switched_off_in_every_layer_or_in_one_by_the_words_that_are_shown() -> None:
    config = Config(layers=3)
    assert switched_off([config.num_experts] * config.layers, "") == ((), (), ())
    assert switched_off([config.num_experts] * config.layers, "4, 11,2:1,4") == ((3, 10), (0, 3, 10), (3, 10))
    assert switched_off([256], "256") == ((255,),)
    assert check_knob(config, "off", " 4 , 2:16 ") == "4 , 2:16"
    assert check_knob(config, "off", " 4 ") == "4,"  # never a word that looks like a number
    assert value_text(check_knob(config, "off", "4")) == "4"  # and yet as it was given
    assert [check_knob(config, "off", word) for word in ("none", " None ", "")] == ["", "", ""]
    assert value_text("") == "none"
    assert switched_off([config.num_experts], "none") == ((),)
    assert switched_off([config.num_experts] * config.layers, "1:4,2:4,3:4") == switched_off(
        [config.num_experts] * config.layers, "4"
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_what_it_does_in_two_lines_and_a_formula(name: str) -> None:
    strategy = STRATEGIES[name]
    assert 40 < len(strategy.about) < 130
    assert strategy.about.endswith(".")
    assert 10 < len(strategy.formula) < 75
    assert f"`{strategy.formula}`" in STRATEGIES_PAGE.read_text()


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_a_value_is_rounded_and_not_cut(value: float, text: str) -> None:
    assert value_text(value) == text
    assert float(exact_text(value)) == value


def test_words_counts_and_what_is_no_number_read_as_they_are() -> None:
    assert [value_text(v) for v in ("", None, "paper", 2, 2**31 - 1, math.inf)] == ["none", "–", "paper", "2", "2147483647", "inf"]  # fmt: skip


def test_a_turn_never_reads_as_none() -> None:
    assert change_text(0.000297, 0.00083249) == "3.0e-4 → 8.3e-4"
    assert change_text(0.1234, 0.1231) == "0.1234 → 0.1231"
    assert change_text("", "1:4") == "none → 1:4"
    assert change_text("4,", "4,11") == "4 → 4,11"


def test_the_highest_value_of_a_knob_is_of_the_run() -> None:
    assert highest(Config(num_experts=8), "k") == 8
    assert highest(Config(num_experts=8, groups=4), "k") == 2
    assert highest(Config(num_experts=8, groups=4), "k_primary") == 4
    assert highest(Config(num_experts=8), "noise") == 4


def test_a_run_of_an_earlier_version_stands_as_it_was_trained() -> None:
    """By the defaults of what came since; but before there was `weigh`, every strategy weighed over the kept."""
    config = {"task": "text", "num_experts": 16, "layers": 2, "tokens": 1024, "context": 128}
    knobs = {"noise": 1.0, "k": 2, "w_importance": 0.1, "w_load": 0.0, "lr": 0.003, "speed_limit": 0.0}
    was = Config(churn_every=0, scores_every=1, task_gradient_every=25, launch="waiting")  # its churn was by the clock
    assert from_dict(Config, config) == was
    assert from_dict(Knobs, knobs) == Knobs(w_importance=0.1, w_load=0.0, weigh="kept")
    for strategy in STRATEGIES:
        assert weighing(strategy, from_dict(Knobs, {**knobs, "strategy": strategy}).weigh) == "kept"
    assert [name for name in strategies_with("by_token") if weighing(name, Knobs().weigh) == "all"] == ["switch"]
    assert check(from_dict(Config, config), from_dict(Knobs, knobs))


def test_the_layout_has_every_stored_column_once_and_no_gap() -> None:
    columns = layout(layers=3, num_experts=5)
    assert [c.start for c in columns] == [sum(c.width for c in columns[:i]) for i in range(len(columns))]
    assert {c.stat for c in columns} == {s.name for s in STATS if s.stored and not s.ranks}
    assert len({(c.stat, c.layer) for c in columns}) == len(columns)
    assert next(c for c in columns if c.stat == "load" and c.layer == 2).width == 5
    assert [c.layer for c in columns if c.stat == "loss"] == [-1]


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(RuntimeError()) == ""
