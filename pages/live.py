"""Live: is the load even, and what did turning a knob do to it?"""

from moe_core.dashboard import controls
from moe_core.figures.reading import KINDS

FIGURES = ["load_share", "balance_now", "balance", "loss", "knobs"]

controls.page("live", dict.fromkeys(KINDS, FIGURES))
