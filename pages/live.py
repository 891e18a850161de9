"""Live: is the load even, and what did turning a knob do to it?"""

from moe_core.dashboard import controls

controls.page("live")
