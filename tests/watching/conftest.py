"""What all tests of watching have in common."""

import pytest

from moe_core.watching import live


@pytest.fixture(autouse=True)
def looks_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of half a millisecond would be over before a turn is read."""
    monkeypatch.setattr(live, "LOOK", 0.0)
