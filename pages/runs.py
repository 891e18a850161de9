"""Runs: what trains now, and which of all runs are worth keeping?"""

from moe_core.dashboard import managing

managing.page()
