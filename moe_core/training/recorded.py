"""The data of a recorded run: loaded again, from their present paths, and compared with the record's fingerprint."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moe_core.runs import Run, StoreError
from moe_core.runs.identity import versions_of
from moe_core.schema import Config
from moe_core.training.data import Data, Text, load
from moe_core.training.data.identity import identity


def config_now(run: Run, moved: Mapping[str, Any]) -> Config:
    """The run's config with the present paths of its data. StoreError if the run has no data of that kind."""
    for name in moved:
        if not getattr(run.config, name):
            raise StoreError(f"{run.id} was not trained on files given by --{name}; leave --{name} out")
    return replace(run.config, **moved)


def load_recorded(run: Run, moved: Mapping[str, Any]) -> tuple[Data, list[str]]:
    """The data that the run was trained on, and notes about them. ValueError if they have changed."""
    config = config_now(run, moved)
    data = with_recorded_names(load(config), run)
    recorded, now = run.facts.get("data"), identity(data)
    if not isinstance(recorded, dict):
        if len(data.names) != len(next(iter(run.labels.values()), data.names)):
            raise StoreError(f"{run.id} was trained on other data: now there are {now['what']}; {advice(run)}")
        return data, [
            "the run was recorded by a version that kept no fingerprint of its data, so whether they are the same is not checked"
        ]
    if recorded.get("sha256") != now["sha256"]:
        before = f"{recorded.get('what')} (SHA-256 {str(recorded.get('sha256'))[:12]})"
        raise StoreError(
            f"{run.id} was trained on other data: {before}, and now there are {now['what']} ({now['sha256'][:12]}); {advice(run)}"
        )
    return data, []


def with_recorded_names(data: Data, run: Run) -> Data:
    """The data, their domains named as in the record: a person's own domain is called after its file, which may be renamed
    since."""
    names = run.labels.get("domain", [])
    return replace(data, names=names) if isinstance(data, Text) and run.config.text and len(names) == len(data.names) else data  # fmt: skip


def advice(run: Run) -> str:
    """What to do about data that are not those of the record."""
    versions = versions_of(run.facts)
    if run.config.text or run.config.data:
        name = "text" if run.config.text else "data"
        return f"give the present path of the same data with --{name}"
    if run.config.task == "text":
        return (
            f"the built-in text is of Python's standard library and scikit-learn, and differs between their versions "
            f"(Python {versions.get('python', 'unknown')} then, {sys.version.split()[0]} now); use the same versions"
        )
    if run.config.task == "digits":
        return "the built-in digits are scikit-learn's; install the version that the run was trained with"
    return f"the points are drawn by NumPy ({versions.get('numpy', 'unknown')} then, {np.__version__} now); use the same version"
