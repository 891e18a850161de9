"""Routing: which expert takes which token of the probe batch, and what moved since the last look?"""

from moe_core.dashboard import controls

controls.page("routing")
