"""Sweep: which knobs give the best quality at which balance?"""

from moe_core.dashboard import sweeps

sweep = sweeps.choose()
if sweep is None:
    sweeps.new()
else:
    found = sweeps.status(sweep)
    sweeps.table(sweep, found)
    sweeps.charts(sweep, found)
