"""The charts of a sweep."""

from moe_core.figures import read_sweep, sweeps
from moe_core.figures.pages.entry import Entry

# In the order in which the page shows them.
FIGURES: dict[str, Entry] = {
    "sweep_balance": Entry("Balance over the grid", sweeps.sweep_balance, read_sweep.read_balance),
    "sweep_quality": Entry("Quality over the grid", sweeps.sweep_quality, read_sweep.read_quality),
    "sweep_pareto": Entry("Quality against balance", sweeps.sweep_pareto, read_sweep.read_pareto),
}
