"""Reading beside a trainer that commits between any two reads: what is read is of one run, and nothing of it is taken for lost."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.export import export
from moe_core.export.numbers import statistics, table
from moe_core.export.report import parts_of
from moe_core.export.sources import Named
from moe_core.runs import Batch, Run, RunWriter, create_run, ending, list_runs, open_run, script_of, verify
from moe_core.runs import checked as checked_module
from moe_core.runs.branch import branch_off
from moe_core.runs.compare import fingerprint
from moe_core.runs.file import File
from moe_core.schema import Config, Knobs, layout
from tests.export.made import parts
from tests.runs.test_damage import read

CONFIG = Config.for_task("plane", num_experts=4, layers=1)
COLUMNS = sum(c.width for c in layout(1, 4))


class Busy:
    """A trainer that commits three steps with all that goes with them, and is asked to turn a knob, whenever it is called."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        labels, probe, self.extra = parts("plane", 16, 4, rng)
        self.writer: RunWriter = create_run(
            folder, CONFIG, Knobs(), labels=labels, probe=probe, facts={"device": "cpu"}
        )
        self.writer.db.execute("PRAGMA synchronous = OFF")
        self.commits, self.busy, self.called, self.every = 0, False, 0, 1

    def __call__(self) -> None:
        self.called += 1
        if self.busy or self.called % self.every:
            return
        self.busy, self.commits = True, self.commits + 1
        writer, first = self.writer, self.writer.step + 1
        run = Run(writer.folder)
        turn = run.turn(who="me", noise=(first % 100) / 100)
        asked = run.command("step", who="me")
        run.close()
        rows = np.full((3, COLUMNS), first, np.float32)
        experts = np.zeros((1, 16, 2), np.uint8)
        shot = {"experts": experts, "gates": np.ones((1, 16, 2), np.float16), **self.extra}
        full = {"clean_gates": np.ones((1, 16, 4), np.float16), "coactivation": np.ones((1, 4, 4), np.float32),
                "w_gate": np.ones((1, 8, 4), np.float16), "specialisation_class": np.ones((1, 2, 4), np.float32)}  # fmt: skip
        writer.thinned = 0.0  # it thins at each commit
        writer.commit(
            Batch(first, rows, [(first + 2, {"loss": 1.0, "accuracy": 0.5}, None)],
                  [(first + 2, "probe", shot), (first + 2, "full", full)], [(turn, first)], [(asked, first, "done")], "training")
        )  # fmt: skip
        self.busy = False


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    trainer = Busy(tmp_path / "runs" / "a")
    for _ in range(5):
        trainer()
    query, read_tip = File.query, checked_module.read_tip

    def then_commit(act: Callable[..., Any]) -> Callable[..., Any]:
        def both(*arguments: Any) -> Any:
            result = act(*arguments)
            trainer()
            return result

        return both

    monkeypatch.setattr(File, "query", then_commit(query))
    monkeypatch.setattr(checked_module, "read_tip", then_commit(read_tip))
    yield trainer
    trainer.busy = True
    trainer.writer.finish("stopped")


def even(run: Run) -> None:
    """The table of all statistics: each of its columns as long as that of the steps."""
    columns = statistics(run)
    assert {len(values) for values in columns.values()} == {len(columns["step"])}
    assert table(columns)


def of_one_step(run: Run) -> None:
    numbers = ending(run)
    assert numbers["loss"] == numbers["step"] - 2  # the rows of a block hold its first step


def watch(run: Run) -> None:
    feed = Feed(run)
    for _ in range(3):
        feed.refresh(now=True)
        assert feed.problem == ""
        steps, loss = feed.history("loss")
        assert len(steps) == len(loss) == feed.steps()[1]
        assert feed.snapshot(step=3) is not None


def export_all(run: Run) -> None:
    """Every figure's numbers: columns of one figure that go by steps end at the same step, the one in the stamp."""
    out = run.path.parent.parent / "out"
    with Named("a").open(run.path.parent) as source:
        export(source, out, ("csv",))
        parts_of(source, lambda *one: one)
        last = source.steps()[1]
    stamps = json.loads((out / "export.json").read_text())
    assert {figure["Step"] for figure in stamps.values() if "Step" in figure} == {str(last)}
    for path in out.glob("*.csv"):
        heading, *lines = (line.split(",") for line in path.read_text().splitlines())
        if "steps" in heading:
            steps = [int(line[heading.index("steps")]) for line in lines if line[heading.index("steps")]]
            # Saturation is of its own steps, each a multiple of churn_every.
            assert steps[-1:] == [last] or (path.stem == "saturation" and max(steps, default=0) <= last), path


def whole(lines: list[str]) -> None:
    assert lines == []


READERS: dict[str, tuple[int, Callable[[Run], Any]]] = {  # at which of all reads there is a commit: each, each third …
    "verify": (3, lambda run: whole(verify(run))),
    "look over": (1, lambda run: whole(run.look_over())),
    "read": (3, read),
    "list": (1, lambda run: whole([one.problem for one in list_runs(run.path.parent, room=True) if one.problem])),
    "ending": (1, of_one_step),
    "script": (1, script_of),
    "statistics": (3, even),
    "feed": (1, watch),
    "fingerprint": (1, fingerprint),
    "fork": (1, lambda run: branch_off(run, 12, {"k": 1}, run.path.parent / "b")),
    "export": (20, export_all),
}


@pytest.mark.parametrize("name", READERS)
def test_a_commit_between_any_two_reads_makes_nothing_false(busy: Busy, name: str) -> None:
    run = open_run(busy.writer.folder)
    before = busy.commits
    busy.every, act = READERS[name]
    act(run)
    assert busy.commits > before + 1
    assert run.damage == []
    run.close()
