"""The findings of the doctor's checks."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class CheckFinding(NamedTuple):
    """layer: the path of a router's module, "" for the whole model. level: "bug"; "note" for what cannot be otherwise or
    may be meant; "not checked" where a check could not be carried out. A check that does not apply to the model gives no finding."""

    rule: str
    layer: str
    did: str
    saw: str
    means: str
    write: str
    level: str = "bug"


def not_checked(rule: str, why: str) -> CheckFinding:
    """Says that a check could not be carried out."""
    return CheckFinding(
        rule, "", "tried this check", why, "whether your model has this fault is not known", "", "not checked"
    )


def by_layer(seen: Mapping[str, str], routers: int, finding: CheckFinding) -> Iterator[CheckFinding]:
    """A finding for each layer with what was seen there; only one if all routers show it, or more than three."""
    if len(seen) == routers > 1 or len(seen) > 3:
        layer, saw = next(iter(seen.items()))
        yield finding._replace(saw=f"in {len(seen)} of {routers} routers; in {layer}: {saw}")
        return
    for layer, saw in seen.items():
        yield finding._replace(layer=layer, saw=saw)
