"""Compare: what did the one thing change that sets these runs apart?"""

from moe_core.dashboard import compare

compare.page()
