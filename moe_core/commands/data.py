"""data: how a person's own files are read, without training. The start page asks this command too."""

import argparse
import json
from dataclasses import fields
from typing import Any

from moe_core.commands.common import add
from moe_core.commands.terminal import plain
from moe_core.commands.train import add_settings
from moe_core.schema import Config, parse_setting


def declare(commands: Any) -> None:
    look = add(
        commands, "data", data_command, "say how your own data would be read; train nothing", run=False, extra="train"
    )
    add_settings(look, Config)


def data_command(arguments: argparse.Namespace) -> int:
    given = {f.name: getattr(arguments, f.name) for f in fields(Config) if getattr(arguments, f.name) is not None}
    settings = {name: parse_setting(Config, name, value) for name, value in given.items()}
    settings.setdefault("task", "digits" if settings.get("data") else "text")
    config = Config.for_task(**settings)
    from moe_core.training.data import load

    data = load(config)
    taken = list(data.taken) or [f"the built-in data of the {config.task} task"]
    if arguments.json:
        shape = {
            "features": data.features,
            "classes": data.classes,
            "labels": {n: len(v) for n, v in data.labels.items()},
        }
        print(json.dumps({"event": "data", "task": config.task, **shape, "taken": taken}))
    else:
        print(plain("\n".join(taken), keep="\n"))
    return 0
