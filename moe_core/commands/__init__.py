"""The commands, a module a family: each has declare(), which adds its parsers. A new family is a module and a line here."""

from moe_core.commands import (
    ablate,
    bench,
    branch,
    dashboard,
    data,
    export,
    notes,
    simulate,
    sweep,
    talk,
    train,
    watch_demo,
)

FAMILIES = (dashboard, train, data, talk, notes, branch, sweep, export, ablate, bench, simulate, watch_demo)
