"""Which data a run learns from: a SHA-256 of what the training reads of them, so that other data under the same name are
noticed.

Shapes: N rows, F features.
"""

import hashlib

from torch import Tensor

from moe_core.training.data.points import Points
from moe_core.training.data.text import Text

NAMED = 4  # names in a description


def identity(data: Text | Points) -> dict[str, str]:
    """For the record: `sha256` of the names of its classes or domains and of every row or byte that is trained on or held
    out, in their order; `what` says in a few words what the data are."""
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little") + part)

    for name in data.names:
        add(name.encode())
    for array in arrays_of(data):
        values = array.numpy()
        add(f"{values.dtype.str}{values.shape}".encode())
        digest.update(memoryview(values).cast("B") if values.size else b"")
    return {"sha256": digest.hexdigest(), "what": describe_data(data)}


def arrays_of(data: Text | Points) -> list[Tensor]:
    """What the training reads: each domain's bytes, or rows (N, F) and classes (N,), those held out behind the others."""
    if isinstance(data, Text):
        return [*data.train, *data.held]
    return [data.train_NF, data.train_N, data.held_NF, data.held_N]


def describe_data(data: Text | Points) -> str:
    """The size of the data and the names of their domains or classes."""
    names = ", ".join(data.names[:NAMED]) + (", …" if len(data.names) > NAMED else "")
    if isinstance(data, Text):
        size = sum(len(part) for part in arrays_of(data))
        return f"{size:,} bytes in {len(data.names)} domains ({names})"
    rows = len(data.train_N) + len(data.held_N)
    return f"{rows:,} rows of {data.features} features in {data.classes} classes ({names})"
