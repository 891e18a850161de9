"""Export: a figure for a paper, a report for a colleague, a replay for a class."""

from moe_core.dashboard import exports

exports.page()
