"""A frame of the live route in bytes: a JSON header that refers to arrays, and the arrays, each once.

The length of the header comes first (uint32), then the header, padded to 8 bytes, then the arrays.
"""

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np


class Arrays:
    """The arrays of a frame, each sent once however many traces share it."""

    def __init__(self) -> None:
        self.places: dict[int, dict[str, Any]] = {}
        self.kept: list[np.ndarray] = []  # so that no id is used again while the frame is made
        self.parts: list[bytes] = []
        self.size = 0

    def plain(self, value: Any) -> Any:
        """value with arrays replaced by references, and numbers that JSON lacks by null."""
        if isinstance(value, dict):
            return {key: self.plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(inner) for inner in value]
        if isinstance(value, np.ndarray):
            return self.refer(value) if value.dtype.kind in "fiub" and value.size else self.plain(value.tolist())
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def refer(self, array: np.ndarray) -> dict[str, Any]:
        if id(array) not in self.places:
            # Steps may pass 2^24 and need doubles; everything else is drawn in floats.
            kind = (
                "f8"
                if array.dtype.kind in "iu" and array.dtype.itemsize > 4
                else "u1"
                if array.dtype == np.uint8
                else "f4"
            )
            data = np.ascontiguousarray(array, "<" + kind).tobytes()
            data += bytes(-len(data) % 8)
            self.places[id(array)] = {"$array": [kind, self.size, *array.shape]}
            self.kept.append(array)
            self.parts.append(data)
            self.size += len(data)
        return self.places[id(array)]

    def frame(self, header: dict[str, Any]) -> bytes:
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 4) % 8)
        return b"".join([struct.pack("<I", len(text)), text, *self.parts])


def fingerprint(spec: Any) -> bytes:
    """A hash of a spec, so that what did not change is not sent."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                digest.update(f"{key}:".encode())
                add(inner)
        elif isinstance(value, (list, tuple)):
            digest.update(b"[")
            for inner in value:
                add(inner)
        elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
            digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            digest.update(repr(value).encode())

    add(spec)
    return digest.digest()
