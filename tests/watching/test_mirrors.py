"""also=: TensorBoard's event file is read back; wandb and trackio are stand-ins with the calls that theirs have."""

import logging
import queue
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.runs import open_run
from moe_core.watching import Live, watch
from moe_core.watching.mirrors import Mirrors
from tests.watching.test_counting import Model
from tests.watching.test_live import sgd, train


class Service(types.ModuleType):
    """What wandb and trackio are called by: init() gives a run, which takes what is logged."""

    def __init__(self, name: str, run: Any = None) -> None:
        super().__init__(name)
        self.run, self.begun = run, []

    def init(self, **said: Any) -> "ServiceRun":
        self.begun.append(said)
        self.made = ServiceRun()
        return self.made


class ServiceRun:
    def __init__(self, broken: bool = False) -> None:
        self.logged: list[tuple[dict[str, float], dict[str, Any]]] = []
        self.defined: list[tuple[str, str | None]] = []
        self.finished, self.broken = False, broken

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, metrics: dict[str, float], **said: Any) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.logged.append((metrics, said))

    def finish(self) -> None:
        self.finished = True


def watched(folder: Path, also: Any, steps: int = 6) -> Live:
    model = Model()
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, also=also, runs=folder)
    train(live, model, optimizer, steps)
    live.close()
    return live


def test_an_event_file_holds_what_the_record_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    run = open_run("a", tmp_path)
    names = {"cv_counts", "max_vio", "dead_experts"}
    layers = [layer.name for layer in run.description.layers]
    assert set(events.Tags()["scalars"]) == {"moescope/loss"} | {f"moescope/{name}" for name in names} | {
        f"moescope/{name}/{layer}" for name in names for layer in layers
    }
    last = events.Scalars("moescope/loss")[-1]
    assert (last.step, last.value) == (6, pytest.approx(run.history("loss")[1][-1]))
    for point in events.Scalars("moescope/cv_counts"):
        each = [run.history("cv_counts", layer)[1][point.step - 1] for layer in layers]
        assert point.value == pytest.approx(np.mean(each))
    assert events.Scalars(f"moescope/max_vio/{layers[1]}")[-1].value == pytest.approx(run.history("max_vio", 1)[1][-1])


def test_router_margin_and_confidence_are_mirrored_where_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")
    from tests.watching.families import build
    from tests.watching.test_taps import batch

    model = build("mixtral")  # before the stand-in, since accelerate looks for the real one
    monkeypatch.setitem(sys.modules, "trackio", service := Service("trackio"))
    with watch(model, "a", also="trackio", runs=tmp_path) as live:
        for _ in range(3):
            live.step(loss=model(input_ids=batch(), labels=batch()).loss)
    values = service.made.logged[-1][0]
    run = open_run("a", tmp_path)
    for stat in ("router_margin", "confidence"):
        each = [run.history(stat, layer)[1][-1] for layer in range(3)]
        assert values[f"moescope/{stat}"] == pytest.approx(np.mean(each))
        assert values[f"moescope/{stat}/{run.description.layers[2].name}"] == pytest.approx(each[2])


def test_a_run_of_wandb_that_goes_on_keeps_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ServiceRun()
    monkeypatch.setitem(sys.modules, "wandb", service := Service("wandb", theirs))
    watched(tmp_path, ["wandb"])
    assert service.begun == []
    assert ("moescope/*", "moescope/step") in theirs.defined
    assert {tuple(said.items()) for _, said in theirs.logged} == {(("commit", False),)}
    assert theirs.logged[-1][0]["moescope/step"] == 6
    assert not theirs.finished


def test_without_one_a_run_of_its_own_is_begun_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, Service(name))
    watched(tmp_path, ["wandb", "trackio"])
    wandb, trackio = sys.modules["wandb"], sys.modules["trackio"]
    for service in (wandb, trackio):
        (said,) = service.begun
        assert (said["project"], said["name"]) == ("moescope", "a")
        assert said["config"]["optimizer"] == "SGD"
        assert service.made.finished
    assert wandb.made.logged[-1][1] == {"commit": True}
    assert trackio.made.logged[-1][1] == {"step": 6}
    assert "moescope/loss" in trackio.made.logged[-1][0]


def test_a_mirror_that_fails_is_said_once_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Service("wandb", ServiceRun(broken=True)))
    monkeypatch.setitem(sys.modules, "trackio", service := Service("trackio"))
    monkeypatch.setattr("moe_core.watching.recorder.FLUSH", 0.0)
    with caplog.at_level(logging.WARNING):
        live = watched(tmp_path, ["wandb", "trackio"])
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["wandb gets nothing more of this run: no network"]
    assert len(service.made.logged) > 1
    assert (live.problem, open_run("a", tmp_path).steps()) == ("", (1, 6))


def test_a_mirror_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    class Hung(ServiceRun):
        def log(self, metrics: dict[str, float], **said: Any) -> None:
            free.wait(20)

    monkeypatch.setitem(sys.modules, "wandb", Service("wandb", Hung()))
    monkeypatch.setattr("moe_core.watching.recorder.FLUSH", 0.0)
    monkeypatch.setattr("moe_core.watching.mirrors.WAITING", 3)
    monkeypatch.setattr("moe_core.watching.mirrors.LAST", 0.2)
    live = watched(tmp_path, "wandb", steps=30)
    assert (live.problem, open_run("a", tmp_path).steps()) == ("", (1, 30))
    free.set()
    live.recorder.mirrors.queue.put(None)
    assert live.recorder.mirrors.thread is not None
    live.recorder.mirrors.thread.join(5)


def test_the_end_waits_once_for_a_service_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.watching.mirrors.LAST", 0.5)
    mirrors, free = Mirrors(()), threading.Event()
    mirrors.queue = queue.Queue(1)
    mirrors.queue.put((1, {}))  # so that the end finds no room either
    mirrors.thread = threading.Thread(target=free.wait, args=(20,), daemon=True)
    mirrors.thread.start()
    began = time.monotonic()
    mirrors.close()
    took = time.monotonic() - began
    free.set()
    assert 0.5 <= took < 0.9


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="also takes tensorboard, wandb, trackio, got 'neptune'"):
        watch(Model(), "a", also="neptune", runs=tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="also='wandb' needs wandb: pip install wandb"):
        watch(Model(), "a", also="wandb", runs=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="also='tensorboard' needs tensorboard: pip install tensorboard"):
        watch(Model(), "a", also=["tensorboard"], runs=tmp_path)
    assert list(tmp_path.iterdir()) == []
