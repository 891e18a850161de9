"""What a figure or a tile needs of a run. Where a run has not got it, a page and an export do not offer the figure."""

import math
from collections.abc import Callable

from moe_core.runs.source import Source
from moe_core.runs.statistics import measured_by
from moe_core.schema import STRATEGIES, name_of

FEW_LAYERS = 4  # up to here each layer has a button of its own

Need = Callable[[Source], bool]


def stats(*names: str) -> Need:
    """These statistics, or the stored ones that they follow from, are in the record."""
    return lambda source: all(measured_by(source.description, name) for name in names)


def probe(*kinds: str) -> Need:
    """The run's fixed batch is made of one of these; without a kind: there is such a batch."""
    return lambda source: source.description.probe in kinds if kinds else source.description.probe != "none"


def balance(source: Source) -> bool:
    """The statistic by which a layer is called balanced is in the record."""
    return measured_by(source.description, source.description.balance)


def loss(source: Source) -> bool:
    """The loss of the training batch is in the record."""
    return measured_by(source.description, source.description.training_loss)


def metrics(source: Source) -> bool:
    """Something is reported on a held-out split."""
    return bool(source.description.metrics)


def reported(source: Source) -> bool:
    """Something was reported on a held-out split, or the run is our trainer's, which evaluates by itself."""
    if not metrics(source):
        return False
    name = source.description.metrics[0].name
    return source.description.origin == "trained" or any(name in done.metrics for done in source.evals())


def knobs(source: Source) -> bool:
    """There is a knob to turn."""
    return bool(source.description.knobs)


def turned(source: Source) -> bool:
    """A turn of a knob has taken effect."""
    return any(change.step is not None for change in source.knob_changes())


def measurable(source: Source) -> bool:
    """The throughput of its layer has been measured, or can be, as it is our own layer."""
    return source.description.origin == "trained" or timed(source)


def fixed_batch(source: Source) -> bool:
    """Each step trains on as many tokens as the others."""
    return source.description.tokens > 0


def layers(source: Source) -> bool:
    """There is a layer to go to."""
    return len(source.description.layers) > 1


def many_layers(source: Source) -> bool:
    """There are more layers than a person looks through one by one."""
    return len(source.description.layers) > FEW_LAYERS


def groups(source: Source) -> bool:
    """A layer has experts in groups."""
    return any(layer.groups > 1 for layer in source.description.layers)


def used(flag: str) -> Need:
    """A strategy under which the run trained has this flag of schema.Strategy. So may one that this version does not know."""

    def need(source: Source) -> bool:
        turned = [c.value for c in source.knob_changes() if c.name == "strategy" and c.step is not None]
        names = [name_of(source.started_knobs), *turned]
        known = [STRATEGIES[str(name)] for name in names if name in STRATEGIES]
        return not known or any(getattr(strategy, flag) for strategy in known)

    return need


def windows(source: Source) -> bool:
    """What is counted over the last steps is in the record: who shares tokens with whom, and which classes go where."""
    return source.description.origin == "trained" or len(source.snapshots("full")) > 0


def devices(source: Source) -> bool:
    """Experts were dealt over several ranks, in some of its steps."""
    return any(deal.expert > 1 for deal in source.deals)


def exchanged(source: Source) -> bool:
    """The rows between ranks were counted, by the last ranks that trained it or by earlier ones."""
    ends = [deal.first - 1 for deal in source.deals[1:]]
    snapshots = (source.snapshot(step=end, kind="full") for end in (*ends, None))
    return any(snapshot is not None and "rows_between_ranks" in snapshot[1] for snapshot in snapshots)


def communication(source: Source) -> bool:
    """The share of a step that ranks spend in communication is measured: not on a GPU, whose steps have a gap there."""
    if not measured_by(source.description, "communication"):
        return False
    _, first = source.history("communication", first=1, last=1)
    return not len(first) or math.isfinite(first[0])


def ablated(source: Source) -> bool:
    """`ablate` has measured how much each expert is missed."""
    return source.ablation() is not None


def timed(source: Source) -> bool:
    """The throughput has been measured."""
    return bool(len(source.throughput().tokens))


def even_experts(source: Source) -> bool:
    """What its experts see on 1, 2 and 4 devices has been measured, or can be: they are our trainer's, and can be dealt over two."""
    return dealt(source) or (source.description.origin == "trained" and source.description.layers[0].experts % 2 == 0)


def dealt(source: Source) -> bool:
    """What its experts see on 1, 2 and 4 devices has been measured."""
    return bool(len(source.on_devices().devices_m))


def compared(source: Source) -> bool:
    """Other runs are laid over this one."""
    return bool(source.others)
