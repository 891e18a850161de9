"""A held-out number of a model that saw later tokens: one function decides, and whoever shows the number says so."""

import itertools
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.commands.tell import Teller
from moe_core.dashboard import compare
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.panel import banner
from moe_core.export.numbers import columns, table
from moe_core.export.replay import data_of
from moe_core.export.report import evaluations
from moe_core.figures.catalog import FIGURES, tiles_of
from moe_core.figures.pages.live import heldout_tile
from moe_core.recording.committer import Committer
from moe_core.recording.recent import Recent
from moe_core.runs import Batch, Run, create_run, ending, open_run
from moe_core.runs.ablation import Ablation
from moe_core.runs.source import At, Beside
from moe_core.schema import LOOKING, LOOKS_AHEAD, STRATEGIES, Config, Knobs, describe, layout, looks_ahead, meta_of
from moe_core.training.again import Nowhere


class Disk(Nowhere):
    """A writer that takes everything."""

    def __init__(self) -> None:
        super().__init__(Path())


CONFIG = Config(num_experts=4, layers=1, tokens=128)
ROW = np.ones((1, sum(column.width for column in layout(1, 4))), np.float32)


def recorded(folder: Path, begins: str, ends: str) -> Run:
    """Forty steps under one strategy and forty under another, evaluated at steps 40 and 80."""
    writer = create_run(folder, CONFIG, Knobs(strategy=begins))
    first, second = ({"bits_per_byte": bits, "perplexity": 2**bits} for bits in (2.0, 1.5))
    writer.commit(Batch(1, ROW.repeat(40, 0), evals=[(40, first, None)], state="training"))
    writer.turn("test", strategy=ends)
    (change,) = writer.pending().knobs
    writer.commit(Batch(41, ROW.repeat(40, 0), applied=[(change.id, 41)], evals=[(80, second, None)]))
    writer.finish("finished")
    return open_run(folder)


@pytest.fixture
def ahead(tmp_path: Path) -> Run:
    """Evaluated under expert choice at the end, though not before."""
    return recorded(tmp_path / "ahead", "paper", "expert-choice")


@pytest.fixture
def plain(tmp_path: Path) -> Run:
    """Under expert choice once, but not at the last evaluation."""
    return recorded(tmp_path / "plain", "expert-choice", "paper")


def earlier_outputs_change(config: Config, knobs: Knobs, tries: int, training: bool = False) -> bool:
    """Whether the outputs of a sequence's first half depend on its second, for random weights and bytes."""
    import torch

    from moe_core.nn.models import build, routing_options

    for seed in range(tries):
        torch.manual_seed(seed)
        model = build(config, 256, 256, knobs.k, 0.0, knobs.strategy).double().train(training)
        for layer in model.moe_layers:
            for gate in (layer.gate, *([layer.gate.primary] if config.groups > 1 else [])):
                torch.nn.init.normal_(gate.w_gate)  # chooses with conviction
        inputs_BS = torch.randint(0, 256, (4, 16))
        changed_BS = inputs_BS.clone()
        changed_BS[1, 8:] = torch.randint(0, 256, (8,))
        with torch.no_grad():
            before, after = (model(one, **routing_options(config, knobs))[0][1, :8] for one in (inputs_BS, changed_BS))
        if not torch.allclose(before, after, rtol=0, atol=1e-9):
            return True
    return False


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_said_to_look_ahead_does_and_nothing_else(strategy: str, groups: int) -> None:
    """Later bytes are changed, and the outputs before them compared, under each strategy with and without a capacity."""
    config = Config(num_experts=8, layers=1, tokens=64, d_model=16, d_hidden=16, context=16, groups=groups)
    if groups and not STRATEGIES[strategy].hierarchical:
        return
    for k, k_primary, factor in itertools.product((1, 2), (1, 2) if groups else (2,), (0.0, 0.5, 1.0, 5.0)):
        knobs = Knobs(strategy=strategy, k=k, k_primary=k_primary, capacity_factor=factor)
        ahead = looks_ahead(describe(config, knobs), knobs)
        assert earlier_outputs_change(config, knobs, tries=12 if ahead else 3) == ahead, knobs
        if not factor:
            still = replace(knobs, noise=0.0, noise_primary=0.0)
            assert earlier_outputs_change(config, still, 3, training=True) == looks_ahead(
                describe(config, still), still, training=True
            )
        assert not looks_ahead(describe(replace(config, task="digits"), knobs), knobs)  # rows have no order


def test_it_goes_by_the_knobs_that_are_named_and_no_others() -> None:
    for knobs in (Knobs(capacity_factor=1.0), Knobs(strategy="expert-choice"), Knobs(capacity_factor=1.0, k=1)):
        for f in fields(Knobs):
            meta = meta_of(Knobs, f.name)
            values = meta.choices or (("1",) if f.name == "off" else (1, 2, 8, meta.high))
            answers = {
                looks_ahead(describe(CONFIG, replace(knobs, **{f.name: value})), replace(knobs, **{f.name: value}))
                for value in values
            }
            assert f.name in LOOKING or answers == {looks_ahead(describe(CONFIG, knobs), knobs)}, f.name
    assert {
        looks_ahead(describe(CONFIG, Knobs(capacity_factor=1.0, k=k)), Knobs(capacity_factor=1.0, k=k)) for k in (1, 2)
    } == {False, True}


def test_an_end_says_it_by_the_strategy_at_its_evaluation(ahead: Run, plain: Run, tmp_path: Path) -> None:
    assert (ending(ahead)["comparable"], ending(plain)["comparable"]) == (False, True)
    create_run(tmp_path / "none", CONFIG, Knobs(strategy="expert-choice")).finish("stopped")
    assert ending(open_run(tmp_path / "none"))["comparable"] is None


def test_train_says_it_beside_the_held_out_numbers_and_no_others(
    ahead: Run, plain: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, marked in ((ahead, {"held-out loss", "held-out perplexity"}), (plain, set())):
        Teller(False, CONFIG).tell({"event": "end", **ending(run)})
        lines = capsys.readouterr().out.splitlines()
        names = {re.split(r"\s+(?=\d)", line)[0]: f"({LOOKS_AHEAD})" in line for line in lines}
        assert {name for name, is_marked in names.items() if is_marked} == marked
        assert {"training loss", "held-out loss", "CV(load)"} <= set(names)
        assert any(re.match(r"balance: mean of the last \d+ steps and all layers; ", line) for line in lines)
        assert next(line for line in lines if line.startswith("training loss")).endswith(" nats")
        assert "1.5000 bits/byte" in next(line for line in lines if line.startswith("held-out loss"))
        assert " per byte" in next(line for line in lines if line.startswith("held-out perplexity"))


def test_an_evaluation_is_told_with_whether_it_compares_whatever_was_turned_since() -> None:
    """The thread that tells of it lags behind the training."""
    events: list[dict[str, Any]] = []
    watch = Recent(describe(CONFIG, Knobs()), Knobs())
    for step, knobs in ((41, Knobs(strategy="expert-choice")), (81, Knobs(k=1)), (82, Knobs(strategy="expert-choice"))):
        watch.note_turns(step, knobs)
    committer = Committer(Disk(), events.append, watch)
    committer.put(
        Batch(1, ROW.repeat(90, 0), evals=[(step, {"bits_per_byte": 2.0}, None) for step in (40, 41, 80, 81, 82)])
    )
    assert committer.close() == ""
    evals = [event for event in events if event["event"] == "eval"]
    assert [(e["step"], e["comparable"]) for e in evals] == [
        (40, True),
        (41, False),
        (80, False),
        (81, True),
        (82, False),
    ]


@pytest.mark.parametrize("live", [False, True])
def test_train_says_it_while_it_trains(live: bool, capsys: pytest.CaptureFixture[str]) -> None:
    teller = Teller(False, CONFIG)
    teller.live = live
    for step, comparable in ((50, True), (100, False), (150, False), (200, True)):
        teller.tell({"event": "eval", "step": step, "bits_per_byte": 2.0, "perplexity": 4.0, "comparable": comparable})
        assert teller.measured.endswith("†") is not comparable  # of the line that is kept up to date
    lines = capsys.readouterr().err.replace("\r\x1b[K", "").splitlines()
    plain = "held-out loss 2.000 bits/byte"
    every = [f"step 50:  {plain}", f"step 100:  {plain} ({LOOKS_AHEAD})", f"step 150:  {plain} ({LOOKS_AHEAD})", f"step 200:  {plain}"]  # fmt: skip
    assert lines == ([every[1], every[3]] if live else every)


def test_the_loss_charts_draw_it_apart_and_their_numbers_say_it(ahead: Run, plain: Run) -> None:
    drawn = FIGURES["loss"].draw.spec(**FIGURES["loss"].read(ahead, At(0, None, None, None)))
    _, whole, apart = drawn["data"]
    assert (whole["y"].tolist()[0], math.isnan(whole["y"][1])) == (2.0, True)
    assert (apart["y"].tolist()[1], math.isnan(apart["y"][0])) == (1.5, True)
    assert (apart["line"]["dash"], apart["marker"]["symbol"]) == ("dot", "circle-open")
    assert LOOKS_AHEAD in apart["hovertemplate"]
    assert LOOKS_AHEAD not in whole["hovertemplate"]
    assert "open: looks ahead" in drawn["layout"]["title"]["text"]

    both = Beside(ahead, {}, (plain,))
    drawn = FIGURES["compare_loss"].draw.spec(**FIGURES["compare_loss"].read(both, At(0, None, None, None)))
    held_out = {trace["name"]: trace["y"].tolist() for trace in drawn["data"] if "markers" in trace["mode"]}
    known = {name: [y for y in values if y == y] for name, values in held_out.items()}
    assert {name: y for name, y in known.items() if "held-out" not in name and name != "turned"} == {
        "A ahead": [2.0], "A ahead, looks ahead": [1.5], "B plain": [1.5], "B plain, looks ahead": [2.0],
    }  # fmt: skip
    assert "open: looks ahead" in drawn["layout"]["title"]["text"]

    numbers = table(columns(FIGURES["loss"].read(ahead, At(0, None, None, None)))).splitlines()
    place = numbers[0].split(",").index("comparable")
    assert [line.split(",")[place] for line in numbers[1:4]] == ["true", "false", ""]
    compared = columns(FIGURES["compare_loss"].read(both, At(0, None, None, None)))
    assert compared["ahead_heldout_comparable"].tolist() == [True, False]
    assert compared["plain_heldout_comparable"].tolist() == [False, True]


def test_a_difference_of_training_losses_is_dotted_where_either_looked_ahead(ahead: Run, tmp_path: Path) -> None:
    """Strict balance looks ahead in training alone."""
    strict = recorded(tmp_path / "strict", "strictly-balanced", "paper")
    plain = recorded(tmp_path / "none", "none", "paper")
    for first, second, wanted in (
        (plain, ahead, [True] * 40 + [False] * 40),
        (strict, plain, [False] * 40 + [True] * 40),
        (strict, ahead, [False] * 80),
    ):
        data = FIGURES["compare_loss_difference"].read(Beside(first, {}, (second,)), At(0, None, None, None))
        (gap,) = data["gaps"]
        assert gap.comparable.tolist() == wanted
        drawn = FIGURES["compare_loss_difference"].draw.spec(**data)
        known = {
            trace["line"].get("dash", "solid"): np.isfinite(trace["y"]).tolist()
            for trace in drawn["data"]
            if "line" in trace
        }
        assert (known["solid"], known["dot"]) == (wanted, [not one for one in wanted])
        assert "; dotted: looks ahead" in drawn["layout"]["title"]["text"]
    assert columns(data)["ahead_minus_strict_comparable"].tolist() == [False] * 80
    data = FIGURES["compare_loss_difference"].read(
        Beside(plain, {}, (recorded(tmp_path / "p", "paper", "none"),)), At(0, None, None, None)
    )
    assert data["gaps"][0].comparable is None
    assert "looks ahead" not in FIGURES["compare_loss_difference"].draw.spec(**data)["layout"]["title"]["text"]


def test_a_loss_chart_on_which_all_compares_says_nothing_of_it(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", "paper", "switch")
    data = FIGURES["loss"].read(run, At(0, None, None, None))
    drawn = FIGURES["loss"].draw.spec(**data)
    assert [trace["name"] for trace in drawn["data"]] == ["training", "held-out"]
    assert "looks ahead" not in drawn["layout"]["title"]["text"]
    assert "comparable" not in columns(data)


def test_on_the_axis_of_a_fork_the_mark_stays_at_its_step(ahead: Run) -> None:
    """The evaluation of step 80 looks ahead, which stands at 40 after a fork at 40."""
    ahead.parent = SimpleNamespace(run="other", step=40)  # type: ignore[assignment]
    drawn = FIGURES["compare_loss"].read(Beside(ahead, {"align": "fork"}), At(0, None, None, None))
    (curve,) = drawn["heldout"]
    assert (curve.steps.tolist(), curve.comparable.tolist()) == ([40], [False])


def test_ablate_says_it_of_the_loss_that_it_starts_from(
    ahead: Run, plain: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rise_LE = np.zeros((1, 4), np.float32)
    monkeypatch.setattr(
        "moe_core.training.ablate.ablate", lambda run, at, tell, moved: Ablation(80, 1.0, rise_LE, rise_LE)
    )
    for run, marked in ((ahead, True), (plain, False)):
        assert main(["ablate", str(run.path)]) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(f"nats ({LOOKS_AHEAD})") == marked
        assert main(["ablate", str(run.path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["comparable"] is not marked


def test_the_replay_holds_the_mark_of_each_evaluation(ahead: Run) -> None:
    data = data_of(ahead, 0, lambda done, of: None)
    assert data["metric"]["ahead"] == ["", LOOKS_AHEAD]
    for specs in data["specs"].values():
        _, whole, apart = specs[0]["loss"]["data"]
        assert (whole["x"].tolist(), apart["x"].tolist()) == (
            [40, 80],
            [40, 80],
        )  # kept whole: the page cuts them at a step


def test_the_report_marks_the_evaluations_made_so(ahead: Run, plain: Run) -> None:
    assert [row[-1] for row in evaluations(ahead).rows] == ["", LOOKS_AHEAD]
    assert [row[-1] for row in evaluations(plain).rows] == [LOOKS_AHEAD, ""]
    for run in (ahead, plain):
        data = evaluations(run)
        assert {len(row) for row in data.rows} == {len(data.heading)}


def test_compare_takes_no_difference_of_what_does_not_compare(ahead: Run, plain: Run) -> None:
    def held_out(*runs: Any) -> list[str]:
        return dict(compare.end_figures(runs, [run.steps()[1] for run in runs]))["held-out loss, bits/byte"]

    assert held_out(plain, ahead) == ["1.500", f"1.500, {LOOKS_AHEAD}"]
    assert held_out(ahead, plain) == [f"1.500, {LOOKS_AHEAD}", "1.500"]
    assert held_out(plain, plain) == ["1.500", "1.500 (0.000)"]


def test_the_tiles_say_it(ahead: Run, plain: Run) -> None:
    assert heldout_tile(ahead, At(0, 80)).lines == (LOOKS_AHEAD,)
    assert heldout_tile(ahead, At(0, 79)).lines != (LOOKS_AHEAD,)  # the last evaluation until then was made otherwise
    assert heldout_tile(plain, At(0, 79)).lines == (LOOKS_AHEAD,)
    ahead.others = (plain,)  # type: ignore[attr-defined]
    first, second = tiles_of("compare", ahead)
    assert first.lines[0] == "held-out 1.50, looks ahead"
    assert second.lines[1] == "held-out 1.50 bits/byte"


def test_the_banner_of_a_run_that_ended_says_it(ahead: Run, plain: Run) -> None:
    for run, said in ((ahead, True), (plain, False)):
        feed = Feed(run)
        feed.refresh(now=True)
        shown = banner(feed, 0)
        assert shown
        assert (f"Held-out loss 1.50\N{NO-BREAK SPACE}bits/byte ({LOOKS_AHEAD}), CV" in shown["text"]) == said
