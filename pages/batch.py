"""Batch: how many tokens does an expert see, and what does a small batch cost?"""

from moe_core.dashboard import batch

batch.page()
