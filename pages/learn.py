"""Learn: what is a Mixture of Experts, and what does each part of its gate do?"""

from moe_core.dashboard import learn

learn.page()
