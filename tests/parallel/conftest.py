"""Three ranks that only give signs of life, and how an exchange of theirs fails."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import distributed

from moe_core.parallel import alive as alive_module
from moe_core.parallel import trainer
from moe_core.parallel.alive import Alive

# An exchange that failed: after a rank waited for too long, and because a connection broke.
LATE = RuntimeError("[gloo/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation to complete")
BROKEN = RuntimeError("[gloo/pair.cc:536] Connection closed by peer [127.0.0.1]:4711")


class Gone:
    """A store that nobody answers for any more."""

    def __getattr__(self, name: str) -> Any:
        raise distributed.DistNetworkError("Connection reset by peer")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Alive]]:
    """Three of one store, quick to lose patience with each other."""
    for module in (alive_module, trainer):
        monkeypatch.setattr(module, "SILENT", 0.4)
    monkeypatch.setattr(alive_module, "EVERY", 0.1)
    store = distributed.HashStore()
    all_of_them = [Alive(store, rank, 3) for rank in range(3)]
    yield all_of_them
    for one in all_of_them:
        one.end()
