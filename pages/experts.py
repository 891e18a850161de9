"""Experts: what does each expert do, and with whom?"""

from moe_core.dashboard import experts

experts.page()
