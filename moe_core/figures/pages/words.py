"""The balance of a layer in words: Balanced, Uneven, Collapsed, Not learning or One expert; in training, and without noise."""

import math

from moe_core.figures.off import off_words
from moe_core.figures.pages.tile import number
from moe_core.figures.reading import HeldOut, on_at, rows_until, value_at
from moe_core.runs.source import Source
from moe_core.runs.statistics import DERIVED, derive, measured_by
from moe_core.schema import BALANCED, COLLAPSED, untaught

NOT_LEARNING = "Not learning"
NOTHING = "Nothing selected"
ONE = "One expert"
ALONE = (NOT_LEARNING, ONE)  # words that an evaluation adds nothing to
WHY_NOT = "the load is even, but the task's gradient on the gate is 0: it learns nothing about tokens"


def learns(source: Source, layer: int, step: int) -> bool:
    """Whether a layer's gate gets a gradient from the task at a step; True for a run that did not measure it."""
    if not {"task_gradient", "grad_norm"} <= set(source.description.measures):
        return True
    return not untaught(value_at(source, "task_gradient", layer, step), value_at(source, "grad_norm", layer, step))


def word_at(source: Source, layer: int, step: int, over: int = 1) -> str:
    """The balance of a layer in a word: at a step, or as a mean over the last `over` steps up to it. Instead of balanced it says that a gate
    learns nothing, or that it has only one expert to choose, since such a gate is always balanced."""
    word = balance_word(value_at(source, source.description.balance, layer, step, over))
    if word == "Balanced" and measured_by(source.description, "counts") and not selected(source, layer, step, over):
        return NOTHING
    if word == "Balanced" and on_at(source, layer, [step])[0].sum() == 1:
        return ONE
    return NOT_LEARNING if word == "Balanced" and not learns(source, layer, step) else word


def selected(source: Source, layer: int, step: int, over: int) -> bool:
    """Whether any expert of a layer was selected in the last steps up to this one: zeros are even too."""
    _, counts_nE = rows_until(source, "counts", layer, step, over)
    return not len(counts_nE) or bool(counts_nE.any())


def balance_word(cv: float) -> str:
    """Balanced, Uneven or Collapsed, by the coefficient of variation of the load or the selections; "" for NaN."""
    if math.isnan(cv):
        return ""
    return "Balanced" if cv < BALANCED else "Uneven" if cv <= COLLAPSED else "Collapsed"


def balance_words(training: str, held_out: HeldOut | None) -> str:
    """The word for the balance, in training and in evaluation: "Balanced" if both are, else "Balanced in training" or
    "Balanced in training, uneven without noise". training: the word for the balance in training, "" if there is none."""
    if training in ALONE:
        return training
    if held_out is None or not held_out.since or held_out.few or not training:
        return training and f"{training} in training"
    other = balance_word(held_out.cv)
    return training if other == training else f"{training} in training, {other.lower()} {held_out.where}"


def held_out_line(held_out: HeldOut | None, training: str) -> str:
    """The balance of the last evaluation in a line: "without noise 0.47, uneven". An evaluation from before the last turn is
    shown with its step instead of a word.

    training: the word for the balance in training. For a gate that learns nothing, or has one expert, no second word is added.
    """
    if held_out is None:
        return ""
    if training in ALONE:
        return f"{held_out.where} {number(held_out.cv)}"
    then = balance_word(held_out.cv).lower() if held_out.since else f"step {held_out.step:,}"
    then = "by few rows" if held_out.few else then
    return f"{held_out.where} {number(held_out.cv)}, {then}"


def off_note(source: Source, layer: int, step: int, stat: str) -> str:
    """Which experts a statistic leaves out since they are off, and its value with them; "" where all are on."""
    on_E = on_at(source, layer, [step])[0]
    if on_E.all():
        return ""
    _, stored = rows_until(source, DERIVED[stat][0], layer, step, 1)
    whole = float(derive(stat, {DERIVED[stat][0]: stored})[-1]) if len(stored) else math.nan
    return f"{off_words(on_E)}, left out; of all {len(on_E)} it would be {number(whole)}"
