"""Reads files that others wrote: plain files only, up to a limit, never blocking; and JSON that holds only what JSON should.

A run's folder may have been sent by somebody, and a person may name any file. The sizes below are the largest that make
sense for each; data at their limits train on a machine with 8 GB of memory (docs/decisions.md).
"""

import errno
import json
import math
import os
import select
import stat
import struct
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, NoReturn

from moe_core.runs.locks import OURS
from moe_core.runs.room import bytes_text

# Bytes of the files beside a record.
NOTE = 1 << 10  # a checkpoint's SHA-256, run.tip
SIDE = 4 << 20  # sweep.json, ablation.json, a measurement: the largest that we write has a tenth of it
TAIL = 4 << 10  # the end of a log, of which the last line is shown
# Bytes of a file that a person names.
SCRIPT = 4 << 20  # some 100,000 turns
CSV = 200 << 20  # MNIST as CSV has 0.1 GB; reading one takes 25 times that in memory
NPZ = 1 << 30
VALUES = 1 << 27  # numbers of a table: 1 GB as float64; MNIST has 55 million
DOMAIN = 1 << 28  # one --text
TEXT = 1 << 30  # all of them together
FILES = 100_000  # in one folder of texts

LINE = 10_000  # characters in a line of a script: splitting one into words takes the square of its length
DEEPEST = 32  # levels of nested JSON lists and objects; ours have five
SILENCE = 10.0  # seconds to wait for a pipe that nobody writes to
REASON = 2_000  # characters of why a run failed: an error of a library may be a million


def open_plain(path: Path, follow: bool = False) -> BufferedReader:
    """A plain file, to be read. follow: a link too, as a person means it; in a run's folder it may lead anywhere.

    ValueError for a pipe, a device, a folder or a link; OSError as from open().
    """
    try:
        handle = os.open(path, os.O_RDONLY | (OURS & ~os.O_NOFOLLOW if follow else OURS))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise ValueError("it is not a plain file") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is not a plain file")
    return os.fdopen(handle, "rb")


def read_most(file: IO[bytes], most: int) -> bytes:
    """All of a file. ValueError, before it is read where its size is known, if it has more than `most` bytes."""
    claimed = os.fstat(file.fileno()).st_size if isinstance(file, BufferedReader) else 0
    data = b"" if claimed > most else file.read(claimed + 1)  # asked for more, it would take the memory for it
    if len(data) > claimed:  # it grows, or the system makes it as it is read
        data += file.read(most - claimed)
    if max(claimed, len(data)) > most:
        too_large(most)
    return data


def too_large(most: int) -> NoReturn:
    size = bytes_text(most) if most >= 1000 else f"{most} bytes"
    raise ValueError(f"it has more than {size}")


def read_side(path: Path, most: int) -> bytes:
    """All of a file beside a record. ValueError if it is not a plain file or too large; OSError as from open()."""
    with open_plain(path) as file:
        return read_most(file, most)


def first_word(path: Path) -> str:
    """The first word of a small file beside a record, such as a checkpoint's SHA-256. ValueError and OSError as read_side."""
    return next(iter(read_side(path, NOTE).decode(errors="replace").split()), "")


def read_tail(path: Path, most: int = TAIL) -> bytes:
    """The end of a file beside a record. ValueError if it is not a plain file; OSError as from open()."""
    with open_plain(path) as file:
        file.seek(-min(file.seek(0, os.SEEK_END), most), os.SEEK_END)
        return file.read(most)


def read_given(path: Path, most: int) -> bytes:
    """All bytes of what a person named: a plain file, a link to one, or a pipe, such as `<(command)` is.

    ValueError for another kind, for more than `most` bytes, and for a pipe that nobody writes to; OSError as from open().
    """
    handle = os.open(path, os.O_RDONLY | (OURS & ~os.O_NOFOLLOW))  # or a pipe that nobody writes to would hang here
    with os.fdopen(handle, "rb") as file:
        kind = os.fstat(handle).st_mode
        if stat.S_ISFIFO(kind):
            return _read_pipe(handle, most)
        if not stat.S_ISREG(kind):
            raise ValueError("it is neither a file nor a pipe")
        return read_most(file, most)


def _read_pipe(handle: int, most: int) -> bytes:
    data = bytearray()
    while select.select([handle], [], [], SILENCE)[0]:
        part = os.read(handle, 1 << 16)
        data += part
        if len(data) > most:
            too_large(most)
        if not part:
            return bytes(data)
    raise ValueError(f"it is a pipe, and nobody wrote to it for {SILENCE:g} s")


def read_json(text: str | bytes, finite: bool = True) -> Any:
    """The value of a JSON text. ValueError for text that is not JSON, and for JSON that would fail later: lists nested
    deeper than DEEPEST, a name given twice, whole numbers beyond 64 bits, half a surrogate pair; and, if finite,
    NaN and infinity.
    """

    def real(word: str) -> float:
        value = float(word)
        if finite and not math.isfinite(value):
            raise ValueError(f"{word[:20]} is not a finite number")
        return value

    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text, parse_float=real, parse_constant=real, parse_int=_whole, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError(f"its lists are nested more than {DEEPEST} deep") from None
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair, which JSON allows, cannot be encoded
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"its lists are nested more than {DEEPEST} deep")
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return value


def _whole(word: str) -> int:
    if len(word) > 20 or not -(2**63) <= int(word) < 2**64:
        raise ValueError(f"{word[:20]} is a number beyond 64 bits")
    return int(word)


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is given twice")
    return values


def zip_parts(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """The parts that a zip archive lists; nothing is unpacked. ValueError if it is not one, or its list is too long to read.

    A part unpacks to no more bytes than this says: zipfile, numpy and torch stop there.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16)))
    end = file.read()
    at = end.rfind(b"PK\5\6")  # the record at the end says how long the list is (APPNOTE 4.3.16)
    if at < 0 or len(end) < at + 22 or struct.unpack_from("<I", end, at + 12)[0] > SIDE:
        raise ValueError("it is not a zip archive of a few parts")
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, RuntimeError) as error:
        raise ValueError(f"it is not a zip archive ({error})") from None
