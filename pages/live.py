"""Live: is the load even, and what did turning a knob do to it?"""

from moe_core.dashboard import controls

controls.page("live", {task: ["load_share", "balance_now", "balance", "loss"] for task in ("text", "digits", "plane")})
