"""How a run routes under given knob values: how many experts a token gets, whether noise is drawn, what looks ahead."""

from moe_core.schema.description import Description, KnobValues
from moe_core.schema.settings import OWN, STRATEGIES, Strategy

UNKNOWN = Strategy("a strategy that this version does not know, or none")
# The knobs that looks_ahead() depends on.
LOOKING = ("strategy", "k", "k_primary", "capacity_factor")


def strategy_of(knobs: KnobValues) -> Strategy:
    """The flags of the strategy in force; UNKNOWN for one that this version does not know."""
    return STRATEGIES.get(name_of(knobs), UNKNOWN)


def name_of(knobs: KnobValues) -> str:
    """The name of the strategy in force; "" for a run without such a knob."""
    return str(getattr(knobs, "strategy", ""))


def weighing(strategy: str, weigh: str) -> str:
    """How the experts of a token are weighed: "kept", so that they sum to 1, or "all", as they are among all experts."""
    return STRATEGIES.get(strategy, UNKNOWN).weigh if weigh == OWN else weigh


def experts_per_token(description: Description, knobs: KnobValues, layer: int = 0) -> int:
    """Experts that each token is sent to: k, or k in each of k_primary groups."""
    own = description.layers[layer]
    k = int(knobs.k) if "k" in description.knobs else own.k
    groups = int(knobs.k_primary) if own.groups > 1 and "k_primary" in description.knobs else 1
    return max(1, min(k * groups, own.experts))


def draws_noise(description: Description, knobs: KnobValues) -> bool:
    """Whether training draws noise, which an evaluation never does: then the two route differently."""
    grouped = any(layer.groups > 1 for layer in description.layers)
    return strategy_of(knobs).noisy and (
        getattr(knobs, "noise", 0) > 0 or (grouped and getattr(knobs, "noise_primary", 0) > 0)
    )


def looks_ahead(description: Description, knobs: KnobValues, training: bool = False) -> bool:
    """Whether a held-out number was computed with later tokens in sight, which matters for a model of sequences only.

    knobs: those in force at the evaluation, whatever the run trained with before: they alone route the held-out split. An
    expert that chooses among all tokens looks ahead, and so does a bounded capacity where a token has several choices, since
    all first choices come before any second one. training: whether it is the loss of a training batch instead, which strict
    balance too routes with the whole batch in sight.
    """
    if not description.sequence:
        return False
    strategy = strategy_of(knobs)
    if strategy.whole if training else not strategy.causal:
        return True
    if not strategy.by_token:
        return False
    factor = getattr(knobs, "capacity_factor", 0.0)
    chosen_L = [experts_per_token(description, knobs, layer) for layer in range(len(description.layers))]
    # Experts that could take every token drop none.
    return any(k > 1 and 0 < factor * k < experts for k, experts in zip(chosen_L, description.experts, strict=True))
