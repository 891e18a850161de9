"""A run's config, starting knobs and description: read from its record, or, of a run that has no description, derived from
its Config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from moe_core.runs.columns import check_columns
from moe_core.runs.statistics import Deal, deal_at
from moe_core.schema import (
    STRATEGIES,
    Column,
    Config,
    Description,
    Knobs,
    KnobValues,
    describe,
    from_dict,
    from_json,
    measured_in,
    probe_kind,
)

KNOBS = {f.name for f in fields(Knobs)}


class Identity(NamedTuple):
    """config: None for a run that this version's trainer cannot train."""

    config: Config | None
    started: KnobValues
    description: Description


def identity_of(about: Mapping[str, Any], columns: list[Column], probe: Mapping[str, Any]) -> Identity:
    """The identity of a run. ValueError, or another error of a bad value, for settings that are not valid.

    For a run that this version could have trained, the description is derived again, so that it has every knob of today.
    What a later version or another program recorded keeps its own description.
    """
    measures = tuple(measured_in(columns))
    if "description" in about and not ours(about):
        description = from_json(about["description"], measures)
        check_columns(columns, description.experts)
        shown = probe_kind(probe)
        # Tokens of a vocabulary lie in the array that bytes lie in.
        named = description.probe == "tokens" and shown == "bytes"
        if description.probe not in (shown, "none") and not named:  # its arrays are not there
            description = replace(description, probe=shown or "none")
        return Identity(None, description.starts, description)
    config, started = from_dict(Config, about["config"]), from_dict(Knobs, about["knobs"])
    if config.groups > 1 and config.num_experts % config.groups:
        raise ValueError(f"its {config.num_experts} experts are not in {config.groups} equal groups")
    check_columns(columns, [config.num_experts] * config.layers)
    return Identity(config, started, describe(config, started, probe_kind(probe), measures))


def ours(about: Mapping[str, Any]) -> bool:
    """Whether our trainer recorded a run that has a description, with knobs and strategies that this version knows."""
    described = about["description"]
    knobs = described["knobs"]
    return (
        described["origin"] == "trained"
        and "config" in about
        and knobs.keys() <= KNOBS
        and set(knobs["strategy"]["choices"]) <= STRATEGIES.keys()
    )


def changed_by(session: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a session changed: the number of steps in all, and the paths of the data."""
    changed: dict[str, Any] = {"steps": int(session["steps"])}
    if "data" in session:
        changed["data"] = str(session["data"])
    if "text" in session:
        changed["text"] = tuple(str(path) for path in session["text"])
    return changed


def read_time(value: Any) -> float:
    """Seconds since 1970, as a record has them. ValueError for NaN and infinity."""
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"a time must be a finite number of seconds, got {value}")
    return seconds


MOST = 1000  # numbers of ranks that a fork's parent may have had, one after the other
MOST_RANKS = 4096  # groups that a record may tell of, and ranks of a group


def deals_of(about: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> tuple[Deal, ...]:
    """How many ranks trained a run from which step on, and over how many its experts were dealt: by the facts of its beginning, or,
    of a fork, what it has of its parent, and then by each session. Where nothing valid is said: by one rank. Empty if all are so."""
    parent = about.get("parent")
    if parent:
        known = parent.get("deals")
        entries = known if isinstance(known, list) and len(known) <= MOST else []
        given = {entry[0]: entry[1:] for entry in entries if isinstance(entry, list) and entry and is_count(entry[0])}
    else:
        given = {1: parts_of(about["facts"].get("ranks"))}
    given |= {session["step"] + 1: parts_of(session.get("ranks")) for session in sessions}
    deals = list[Deal]()
    for first, parts in sorted(given.items()):
        deal = deal_from(first, parts)
        if deal[1:] != deal_at(deals, first)[1:]:
            deals.append(deal)
    return tuple(deals)


def deal_from(first: int, parts: Sequence[Any]) -> Deal:
    """How ranks trained from a step on, by the numbers that parts_of() gives: by one rank where they are not valid."""
    valid = len(parts) == 2 and all(is_count(part) and part <= MOST_RANKS for part in parts)
    return Deal(first, *parts) if valid else Deal(first)


def parts_of(ranks: Any) -> list[Any]:
    """The numbers of groups and of ranks in each, as a record has them."""
    return [ranks.get("data"), ranks.get("expert")] if isinstance(ranks, dict) else []


def is_count(value: Any) -> bool:
    """Whether this is a number of ranks, or of a step."""
    return type(value) is int and 0 < value < 2**53


# What the facts of a record say, which another program may have written


def versions_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The versions of the programs that recorded a run, by name; none where its facts do not say."""
    versions = facts.get("versions")
    return versions if isinstance(versions, dict) else {}


def version_of(facts: Mapping[str, Any]) -> str:
    """The version of MoEscope that recorded a run, "another" where its facts do not say."""
    return str(versions_of(facts).get("moescope", "another"))[:40]


def threads_of(facts: Mapping[str, Any], config: Config) -> int:
    """The CPU threads that a run was trained with; its setting, 0 where that leaves them to the machine, if its facts do
    not say."""
    threads = facts.get("threads")
    return threads if type(threads) is int and threads > 0 else config.threads
