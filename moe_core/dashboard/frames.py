"""A frame of the live route in bytes: a JSON header that refers to arrays, and the arrays.

First comes the length of the header (uint32), then the header, padded to 8 bytes, then the arrays of each figure, one figure after
the other. The header says under `from` at which byte the arrays of a figure begin.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """A part of a frame: its JSON with references to its arrays, and the arrays, each once however many traces share it."""

    text: bytes
    arrays: bytes


def packed(value: Any) -> Part:
    """A value of plain types and arrays as a part. NaN and infinity become null outside of arrays of numbers."""
    try:
        return _packed(value)
    except ValueError:
        return _packed(finite(value))


def _packed(value: Any) -> Part:
    places: dict[int, dict[str, Any]] = {}
    arrays: list[bytes] = []
    size = 0

    def refer(other: Any) -> Any:
        nonlocal size
        if isinstance(other, np.generic):
            return other.item()
        if other.dtype.kind not in "fiub" or not other.size:
            return other.tolist()
        if id(other) not in places:
            # Steps may pass 2^24 and need doubles; everything else is drawn in floats.
            wide = other.dtype.kind in "iu" and other.dtype.itemsize > 4
            kind = "f8" if wide else "u1" if other.dtype == np.uint8 else "f4"
            data = np.ascontiguousarray(other, "<" + kind).tobytes()
            data += bytes(-len(data) % 8)
            places[id(other)] = {"$array": [kind, size, *other.shape]}
            arrays.append(data)
            size += len(data)
        return places[id(other)]

    text = json.dumps(value, default=refer, allow_nan=False, separators=(",", ":")).encode()
    return Part(text, b"".join(arrays))


def finite(value: Any) -> Any:
    """value with None for NaN and infinity, which JSON lacks; arrays of numbers stay as they are."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiub":
        return finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def framed(header: Mapping[str, Any], parts: Mapping[str, Part], figures: Mapping[str, Part]) -> bytes:
    """A frame: the header's values and the parts by their names, which have no arrays, and under "figures" those of `figures`."""
    head = packed(header)
    assert not any(part.arrays for part in (head, *parts.values())), "only figures have arrays"
    begin, size = {}, 0
    for name, part in figures.items():
        begin[name], size = size, size + len(part.arrays)

    def joined(named: Mapping[str, Part]) -> bytes:
        return b",".join(json.dumps(name).encode() + b":" + part.text for name, part in named.items())

    text = b'{"from":%s,"figures":{%s},' % (json.dumps(begin).encode(), joined(figures))
    text += b"".join([joined(parts), b"," if parts else b"", head.text[1:]])
    text += b" " * (-(len(text) + 4) % 8)
    return b"".join([struct.pack("<I", len(text)), text, *(part.arrays for part in figures.values())])
