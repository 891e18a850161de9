"""Starting and stopping a trainer, and the command line that it is started with."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from moe_core.__main__ import parser
from moe_core.commands.train import settings_of
from moe_core.runs import StoreError, flags, is_alive, new_id, start, stop, wait_ready
from moe_core.schema import PRESETS, Config, Knobs

SMALL = Config.for_task("plane", num_experts=4, tokens=64, threads=1)


@pytest.mark.parametrize(
    "config", [Config(), SMALL, Config(text=("a b", "-c"), steps=7), *(Config.for_task(task) for task in PRESETS)]
)
def test_the_flags_say_the_same_as_the_settings(config: Config) -> None:
    config = replace(config, text=tuple(path for path in config.text if not path.startswith("-")))
    knobs = Knobs(noise=0.1 + 0.2, k=3, lr=1e-5)
    assert settings_of(parser().parse_args(["train", *flags(config, knobs)])) == (config, knobs)


def test_ids_are_new(tmp_path: Path) -> None:
    ids = {new_id(tmp_path, Config()) for _ in range(200)}
    assert len(ids) == 200
    assert all(name.startswith("text-") for name in ids)


def test_a_trainer_is_started_found_and_stopped(tmp_path: Path) -> None:
    run = wait_ready(start(SMALL, Knobs(), tmp_path), 60, tmp_path)
    try:
        until = time.monotonic() + 60
        while run.steps()[1] < 5 and time.monotonic() < until:
            time.sleep(0.05)
        assert run.steps()[1] >= 5
        assert run.state == "training"
    finally:
        stop(run)
    assert not is_alive(run.path)
    assert run.state == "stopped"
    stop(run)  # twice is fine


def test_a_trainer_that_cannot_start_says_why(tmp_path: Path) -> None:
    run_id = start(replace(SMALL, device="cuda:77"), Knobs(), tmp_path)
    with pytest.raises(StoreError, match="did not start: moe: device 'cuda:77' is not on this machine"):
        wait_ready(run_id, 60, tmp_path)
