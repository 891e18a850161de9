"""Routing: which expert takes which token of the probe batch, and what moved since the last look?"""

from moe_core.dashboard import controls
from moe_core.figures.catalog import shows

CHOICE = ["router_margin", "confidence", "bias_effect"]  # those that this run measures

controls.page(
    "routing",
    {
        "bytes": ["probe_text", "tokens_by_expert", "churn", *CHOICE],
        "images": ["digit_images", "probe_gates", "tokens_by_expert", "churn", *CHOICE],
        "rows": ["probe_rows", "probe_gates", "tokens_by_expert", "churn", *CHOICE],
        "points": ["regions", "probe_gates", "tokens_by_expert", "churn", *CHOICE],
    },
    shown=shows,
)
