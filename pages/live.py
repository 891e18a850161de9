"""Live: is the load even, and what did turning a knob do to it?"""

from moe_core.dashboard import controls

FIGURES = ["load_share", "balance_now", "balance", "loss", "knobs"]

controls.page("live", dict.fromkeys(("text", "digits", "plane"), FIGURES))
