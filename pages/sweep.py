"""Sweep: which knobs give the best quality at which balance?"""

from moe_core.dashboard import new_sweep, sweeps

sweep = sweeps.choose()
if sweep is None:
    new_sweep.new()
else:
    outcomes = sweeps.status(sweep)
    sweeps.table(sweep, outcomes)
    sweeps.charts(sweep, outcomes)
