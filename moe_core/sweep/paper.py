"""Table 6 of the paper, shown beside a sweep of the paper's two loss weights."""

from moe_core.schema import Config, Knobs

# Shazeer et al. 2017, appendix A, Table 6: MoE-256, k = 4. (w_importance, w_load): what it measured. Its perplexity is of
# words, ours of bytes, so the one never stands in the other's column.
PAPER = {
    (0.0, 0.0): {"perplexity_per_word": 39.8, "cv_importance": 3.04, "cv_load": 3.01, "max_over_mean_load": 17.80},
    (0.2, 0.0): {"perplexity_per_word": 35.6, "cv_importance": 0.06, "cv_load": 0.17, "max_over_mean_load": 1.47},
    (0.0, 0.2): {"perplexity_per_word": 35.7, "cv_importance": 0.22, "cv_load": 0.04, "max_over_mean_load": 1.15},
    (0.1, 0.1): {"perplexity_per_word": 35.6, "cv_importance": 0.06, "cv_load": 0.05, "max_over_mean_load": 1.14},
    (0.01, 0.01): {"perplexity_per_word": 35.7, "cv_importance": 0.48, "cv_load": 0.11, "max_over_mean_load": 1.37},
    (1.0, 1.0): {"perplexity_per_word": 35.7, "cv_importance": 0.03, "cv_load": 0.02, "max_over_mean_load": 1.07},
}
PAPER_EXPERTS, PAPER_K = 256, 4
PER_WORD = "perplexity_per_word"


def paper_text(name: str, value: float) -> str:
    """One of its figures as the paper prints it: 39.8, 3.04, 17.80."""
    return f"{value:.1f}" if name == PER_WORD else f"{value:.2f}"


def paper_row(config: Config, knobs: Knobs) -> dict[str, float]:
    """What the paper measured with these weights of its two losses; {} if it did not, or if anything but its losses balances
    the load."""
    its_own = knobs.strategy == "paper" and config.groups < 2 and not knobs.autobalance
    return PAPER.get((knobs.w_importance, knobs.w_load), {}) if its_own else {}
