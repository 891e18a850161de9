"""The table that a sweep ends in: a row for each cell with mean and spread over its seeds, and the highest values that
are possible. The terminal, the page, CSV and JSON all show this table.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from moe_core.schema import (
    AHEAD,
    BALANCE,
    BALANCE_STEPS,
    HELD_OUT_BALANCE,
    LOOKS_AHEAD,
    METRICS,
    STAT,
    Config,
    Knobs,
    describe,
    experts_per_token,
    looks_ahead,
    switched_off,
    value_text,
    with_unit,
)
from moe_core.sweep.paper import PAPER_EXPERTS, PAPER_K, PER_WORD, paper_row, paper_text
from moe_core.sweep.plan import Plan, Sweep
from moe_core.sweep.standing import Result

Row = dict[str, Any]
METRIC_NAMES = {name for metrics in METRICS.values() for name, *_ in metrics}


def measures(plan: Plan) -> dict[str, str]:
    """The measures of a row, held-out metrics first: name and label."""
    held_out = {name: with_unit(label, unit) for name, label, unit, _ in METRICS[plan.config.task]}
    without_noise = {name: with_unit(label, unit) for name, label, unit in HELD_OUT_BALANCE}
    return held_out | {name: STAT[name].label for name in BALANCE} | without_noise


def ceilings(num_experts: int, chosen: int) -> dict[str, float]:
    """The highest that each balance figure can be, where each token is sent to so many experts.

    Load: the same experts get every token; with two levels of gates too, since a primary gate can send all tokens to the
    same groups and each of these to the same experts in it. Importance: one of them has all the gate weight, and with
    two levels all of its group's in turn, so that how many are chosen does not matter.
    """
    return {
        "cv_importance": math.sqrt(num_experts - 1),
        "cv_load": math.sqrt(num_experts / chosen - 1),
        "max_over_mean_load": num_experts / chosen,
        "cv_held_out": math.sqrt(num_experts / chosen - 1),
        "max_over_mean_held_out": num_experts / chosen,
    }


def most_on(config: Config, knobs: Knobs) -> int:
    """Experts that are switched on in the layer that has most of them."""
    return config.num_experts - min(map(len, switched_off([config.num_experts] * config.layers, knobs.off)))


def rows(sweep: Sweep, outcomes: Sequence[Result]) -> list[Row]:
    """One row a cell: what it sets, None where its strategy does not read a knob; the mean over its finished runs of each measure
    and, under NAME_spread, their sample standard deviation (None of one run); whether its held-out metrics are comparable
    with those of other strategies; ceilings under NAME_ceiling; the paper's Table 6 under paper_NAME where the weights
    are its and the measure is the task's; how many runs there are and count; their ids.
    """
    plan, table = sweep.plan, []
    trained = plan.trained
    names = measures(plan)
    for i, cell in enumerate(plan.cells):
        own = [result for result in outcomes if result.job.cell == trained[i]]
        counted = [result.ended for result in own if result.ended]
        config, knobs = plan.config_of(cell), plan.knobs_of(cell)
        row: Row = {name: cell.get(name) for name in plan.swept} | {"runs": len(own), "finished": len(counted)}
        for name in names:
            recorded = [(ended["eval"] if name in METRIC_NAMES else ended).get(name) for ended in counted]
            values = [float(value) for value in recorded if value is not None]
            row[name] = statistics.fmean(values) if values else None
            row[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        row["comparable"] = not looks_ahead(describe(config, knobs), knobs)
        highest = ceilings(most_on(config, knobs), experts_per_token(describe(config, knobs), knobs))
        row |= {f"{name}_ceiling": value for name, value in highest.items()}
        shown = {*names, PER_WORD} if "perplexity" in names else set(names)
        row |= {f"paper_{name}": value for name, value in paper_row(config, knobs).items() if name in shown}
        table.append({**row, "ids": [result.job.run_id for result in own]})
    return table


# In words


def figure(value: float) -> str:
    """A measure in a table: three decimals below 10, two above, and 0 where it is just that."""
    return "0" if value == 0 else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def measured(row: Row, name: str) -> str:
    """A row's mean of a measure with its spread, marked if it does not compare; a dash where nothing is known."""
    if row[name] is None:
        return value_text(None)
    spread = row[f"{name}_spread"]
    mark = f" {AHEAD}" if name in METRIC_NAMES and not row["comparable"] else ""
    return figure(row[name]) + ("" if spread is None else f" ±{figure(spread)}") + mark


def beside(row: Row, name: str) -> str:
    """The paper's figure of a measure in a row, as the paper prints it; "" where it has none."""
    value = row.get(f"paper_{name}")
    return "" if value is None else paper_text(name, value)


def paper_columns(table: Sequence[Row]) -> dict[str, str]:
    """What the paper measured that no column of ours has, name and label, where its figures stand beside any row."""
    return {PER_WORD: "perplexity in the paper, per word"} if any(beside(row, PER_WORD) for row in table) else {}


def has_paper(table: Sequence[Row]) -> bool:
    """Whether the paper's figures stand beside any row."""
    return any(name.startswith("paper_") for row in table for name in row)


def ceiling_lines(plan: Plan, table: Sequence[Row]) -> list[tuple[str, dict[str, float]]]:
    """The ceilings of each model that was trained, by its name in words, and last the paper's where its figures stand."""
    lines: dict[str, dict[str, float]] = {}
    for cell in plan.cells:
        knobs, config = plan.knobs_of(cell), plan.config_of(cell)
        levels = f" in {config.groups} groups, k_primary {knobs.k_primary}" if config.groups > 1 else ""
        words = f"ceiling, {most_on(config, knobs)} experts{levels}, k {knobs.k}"
        lines[words] = ceilings(most_on(config, knobs), experts_per_token(describe(config, knobs), knobs))
    if has_paper(table):
        lines[f"ceiling in the paper, {PAPER_EXPERTS} experts, k {PAPER_K}"] = ceilings(PAPER_EXPERTS, PAPER_K)
    return list(lines.items())


def notes(plan: Plan, table: Sequence[Row], paper: str) -> list[str]:
    """What a reader of the table must know, a sentence or two each. paper: how the paper's figures are marked in it."""
    sentences = [
        f"Balance: mean of the last {BALANCE_STEPS} steps and all layers; held-out: of the selections in the "
        "last evaluation, which draws no noise."
    ]
    if len(plan.seeds) > 1:
        sentences[0] = f"±: sample standard deviation over seeds. {sentences[0]}"
    if has_paper(table):
        model = f"{PAPER_EXPERTS} experts, k {PAPER_K}"
        sentences.append(
            f"{paper}: the paper's Table 6 (another task, {model}); compare the shape, beside the ceilings."
        )
    if differ := [name for name in ("num_experts", "k_primary", "k") if name in plan.swept]:
        sentences.append(f"Ceilings differ with {listed(differ)}: a row's own are those of its {listed(differ)}.")
    if not all(row["comparable"] for row in table):
        sentences.append(
            f"{AHEAD} {LOOKS_AHEAD}. Compare such a number only with others that were routed the same way."
        )
    if plan.unread:
        sentences.append(unread_text(plan.unread))
    if plan.trained != tuple(range(len(plan.cells))):
        sentences.append("paper trains as none where its losses weigh 0, so both rows show the same runs.")
    return sentences


def unread_text(unread: Mapping[str, Sequence[str]]) -> str:
    """Which swept knobs which strategies do not read, as a plan's `unread` has it, in a line."""
    strategies: dict[str, list[str]] = {}
    for strategy, names in unread.items():
        strategies.setdefault(listed(names), []).append(strategy)
    listing = "; ".join(f"{names} by {listed(by)}" for names, by in strategies.items())
    return f"What would train the same is trained once. Not read: {listing}."


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
