"""Arrays to bytes and back: the blocks of steps, the snapshots, and the chain that makes damage visible."""

import hashlib
import json
import struct
import zlib
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.limits import read_json

Array = NDArray[np.generic]
HEADER = struct.Struct("<qii")  # first step, rows, columns
LARGEST = 1 << 28  # bytes that a blob may unpack to, whatever it claims
START = bytes(16)  # what the first link of a chain follows


def pack_rows(rows: NDArray[np.float32]) -> bytes:
    """(n, C) float32 rows, the bytes of equal weight side by side, so that zlib finds what repeats."""
    shuffled = np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(-1, 4).T
    return zlib.compress(shuffled.tobytes(), 1)


def unpack_rows(data: bytes, count: int, columns: int) -> NDArray[np.float32]:
    """The rows that pack_rows packed; ValueError if the bytes are not that many."""
    size = 4 * count * columns
    flat = _inflate(data, size)
    return np.frombuffer(flat, np.uint8).reshape(4, -1).T.copy().view("<f4").reshape(count, columns)


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Named arrays in one blob: a JSON header, then their bytes, compressed."""
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, list(a.shape)] for name, a in plain.items()]).encode()
    body = b"".join(a.tobytes() for a in plain.values())
    return struct.pack("<II", len(header), len(body)) + header + zlib.compress(body, 1)


def unpack_arrays(data: bytes) -> dict[str, Array]:
    """What pack_arrays packed; ValueError if it is damaged. Object arrays are refused."""
    try:
        header_size, body_size = struct.unpack_from("<II", data)
        named = read_json(data[8 : 8 + header_size])
        body, at = _inflate(data[8 + header_size :], body_size), 0
        arrays: dict[str, Array] = {}
        for name, kind, shape in named:
            dtype = np.dtype(kind)
            if dtype.hasobject:
                raise ValueError("an array of objects")
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize
    except (struct.error, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"a damaged blob of arrays: {error}") from None
    return arrays


def _inflate(data: bytes, size: int) -> bytes:
    """The `size` bytes that the data unpack to. ValueError, before more is unpacked, if they are not so many."""
    if not 0 <= size <= LARGEST:
        raise ValueError(f"damaged data: no blob unpacks to {size} bytes")
    inflater = zlib.decompressobj()
    try:
        flat = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged data: {error}") from None
    if len(flat) != size or not inflater.eof:
        raise ValueError(f"damaged data: wanted {size} bytes, got {len(flat)}")
    return flat


def link(previous: bytes, *parts: object) -> bytes:
    """The next link of a chain: a hash of the last one and of what is added. 16 bytes."""
    digest = hashlib.blake2b(previous, digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def with_sum(values: Mapping[str, object]) -> dict[str, object]:
    """Values to be written as JSON beside a record, with a checksum over them."""
    return {**values, "sum": _sum_of(values)}


def without_sum(record: dict[str, object], names: Collection[str]) -> dict[str, object]:
    """The values that with_sum() was given. ValueError if they were changed, or have names other than these. Earlier
    versions wrote no checksum."""
    kept = record.get("sum")
    plain = {name: value for name, value in record.items() if name != "sum"}
    if plain.keys() - set(names) or ("sum" in record and kept != _sum_of(plain)):
        raise ValueError("it is not what was written")
    return plain


def _sum_of(values: Mapping[str, object]) -> str:
    return link(START, json.dumps(values, sort_keys=True)).hex()
