"""The Compare page: its charts and its tiles, the balance of each run, the first large, with its held-out figure.

A balance is a mean over the last steps up to the step that is shown, as in the table below: that of one step says little of a run.
Without a step they show the last one that all runs have. The other runs are read where the charts mark them: at the same step,
or as many steps after their own fork. A tile names its step where it differs from the first run's.
"""

from collections.abc import Callable
from typing import NamedTuple

from moe_core.figures import compare, read_compare
from moe_core.figures.called import LETTERS, cut_apart
from moe_core.figures.needs import Need, balance, compared, loss, reported, stats
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.live import heldout_tile
from moe_core.figures.pages.tile import Tile, number
from moe_core.figures.pages.words import balance_words, held_out_line, word_at
from moe_core.figures.read_compare import last_shared, layer_in, offsets_of, runs_of
from moe_core.figures.reading import held_out_at, last_step, value_at
from moe_core.runs.source import At, Source
from moe_core.schema import BALANCE_STEPS, LOOKS_AHEAD, STAT


class Place(NamedTuple):
    """The step at which a run is read. here: that step; there: the step asked for, which may be beyond the run's last; offset:
    the step that is 0 on the axis; first: the first run's step; last: whether that is the last one that all runs have."""

    here: int
    there: int
    offset: int
    first: int
    last: bool


def place_of(source: Source, number: int, step: int | None) -> tuple[Source, Place, bool]:
    """The run of this number, where it is read, and whether some run is aligned by its fork."""
    runs, offsets = runs_of(source), offsets_of(source)
    shared = offsets[0] + last_shared(runs, offsets)
    first = shared if step is None else min(step, last_step(source))
    there = first - offsets[0] + offsets[number]
    last = last_step(runs[number])
    place = Place(min(there, last), there, offsets[number], first, step is None and min(there, last) < last)
    return runs[number], place, any(offsets)


def run_tile(number_of_run: int) -> Callable[[Source, At], Tile]:
    """The tile of the first run (0), or of one laid over it."""
    return lambda source, at: read_run(source, at, number_of_run)


def read_run(source: Source, at: At, number_of_run: int) -> Tile:
    """A run's balance with its word, and its held-out figure."""
    run, place, forked = place_of(source, number_of_run, at.step)
    layer, letter = layer_in(run, at.layer), LETTERS[number_of_run]
    cv = number(value_at(run, run.description.balance, layer, place.here, BALANCE_STEPS))
    line = held_out_value(run, At(layer, place.here))
    prefixed = line and f"held-out {line}"
    held_out, training = held_out_at(run, layer, place.here), word_at(run, layer, place.here, BALANCE_STEPS)
    name = cut_apart([one.name for one in runs_of(source)], 20)[number_of_run]
    word = balance_words(training, held_out).partition(",")[0]
    whole, without = run.name * (name != run.name), held_out_line(held_out, training)
    mean = mean_until(source, layer, place.here)
    if not number_of_run:
        when = mean + (after_fork(place.here - place.offset) if forked else "")
        lines = (prefixed, when + ", the last of all" * place.last)
        more = "\n".join(filter(None, (whole, without)))
        label = f"A {name}, {STAT[run.description.balance].label}"
        return Tile("run_A", label, cv, word=word, lines=tuple(filter(None, lines)), more=more)
    beyond = ", its last" * (place.there > last_step(run))
    unit = "not begun" if place.here < 1 else "" if place.here == place.first else f"step {place.here:,}{beyond}"
    lines = (word, prefixed if word else line)
    more = "\n".join(filter(None, (whole, mean * (place.here > 0), without)))
    return Tile(f"run_{letter}", f"{letter} {name}", cv, unit, lines=tuple(filter(None, lines)), more=more)


def held_out_value(run: Source, at: At) -> str:
    """The headline on the held-out split; "" for a run that reports nothing there."""
    if not reported(run):
        return ""
    heldout = heldout_tile(run, at)
    # A tile has room for either the unit or "looks ahead".
    end = ", looks ahead" if LOOKS_AHEAD in heldout.lines else f" {heldout.unit}"
    return f"{heldout.value}{end}".strip()


def mean_until(source: Source, layer: int, step: int) -> str:
    """What a tile's balance is of: "mean of 50 steps to 600", after "layer 2" where one of the runs has several."""
    many = any(len(run.description.layers) > 1 for run in runs_of(source))
    of = f"mean of {min(step, BALANCE_STEPS)} steps to {step:,}" if step > 1 else f"step {step}"
    return f"layer {layer + 1}, {of}" if many else of


def after_fork(steps: int) -> str:
    """How far from its fork a run is."""
    return f", {abs(steps):,} {'after' if steps >= 0 else 'before'} the fork"


def beside(number: int) -> Need:
    """At least so many other runs are compared with this one."""
    return lambda source: len(source.others) >= number


# In the order in which the page shows them.
FIGURES: dict[str, Entry] = {
    "compare_balance": Entry("Balance", compare.compare_balance, read_compare.read_balance, (balance,), (compared,)),
    "compare_loss": Entry("Loss", compare.compare_loss, read_compare.read_loss, (loss,), (compared,)),
    "compare_balance_difference": Entry(
        "Difference in balance",
        compare.compare_balance_difference,
        read_compare.read_balance_difference,
        (balance,),
        (compared,),
    ),
    "compare_loss_difference": Entry(
        "Difference in loss",
        compare.compare_loss_difference,
        read_compare.read_loss_difference,
        (loss,),
        (compared,),
    ),
    "compare_selections": Entry(
        "Selections by expert",
        compare.compare_selections,
        read_compare.read_selections,
        (stats("selection_share"),),
        (compared,),
    ),
}

TILES: dict[str, TileEntry] = {
    "run_A": TileEntry(run_tile(0), (balance,)),
    "run_B": TileEntry(run_tile(1), (compared, balance)),
    "run_C": TileEntry(run_tile(2), (beside(2), balance)),
    "run_D": TileEntry(run_tile(3), (beside(3), balance)),
}
