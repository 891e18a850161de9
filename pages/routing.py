"""Routing: which expert takes which token of the probe batch, and what moved since the last look?"""

from moe_core.dashboard import controls

controls.page(
    "routing",
    {
        "text": ["probe_text", "tokens_by_expert", "churn"],
        "digits": ["digit_images", "probe_gates", "tokens_by_expert", "churn"],
        "plane": ["regions", "probe_gates", "tokens_by_expert", "churn"],
    },
)
