"""Routing: which expert takes which token of the probe batch, and what moved since the last look?"""

from moe_core.dashboard import controls

controls.page(
    "routing",
    {
        "bytes": ["probe_text", "tokens_by_expert", "churn"],
        "images": ["digit_images", "probe_gates", "tokens_by_expert", "churn"],
        "rows": ["probe_rows", "probe_gates", "tokens_by_expert", "churn"],
        "points": ["regions", "probe_gates", "tokens_by_expert", "churn"],
    },
)
