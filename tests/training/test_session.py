"""A trainer's session in this process: a signal ends it as a stop does, and what it was before is as it was again."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from moe_core.runs import open_run, verify
from moe_core.schema import Config, Knobs
from moe_core.training import checkpoint
from moe_core.training.session import train

CONFIG = Config.for_task(
    "plane", num_experts=4, layers=1, tokens=32, d_model=8, d_hidden=8, threads=1, steps=3000, eval_every=5
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_its_step(number: int, tmp_path: Path) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    events: list[dict[str, Any]] = []

    def tell(event: dict[str, Any]) -> None:
        events.append(event)
        if [e["event"] for e in events].count("eval") == 1 and event["event"] == "eval":
            os.kill(os.getpid(), number)

    folder, state = train(CONFIG, Knobs(), tmp_path, notify=tell)
    run = open_run(folder)
    assert state == run.state == "stopped"
    assert 5 <= run.steps()[1] < 3000
    assert list(checkpoint.there(folder)) == [run.steps()[1]]
    assert verify(run) == []
    assert {one: signal.getsignal(one) for one in before} == before
