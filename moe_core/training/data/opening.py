"""The one place where a person's file is opened: its bytes, unpacked if they are gzip, whatever its name says."""

import gzip
import io
import zlib
from pathlib import Path

from moe_core.runs.limits import open_plain, read_most, too_large

GZIP = b"\x1f\x8b"


def content_of(path: Path, flag: str, most: int) -> bytes:
    """All of a file, unpacked. flag: what named it.

    ValueError, one line, if it is not a plain file, cannot be read, is damaged gzip, or has more than `most` bytes, packed or
    unpacked.
    """
    given = f"{flag} {str(path)!r}"
    if not path.is_file():
        raise ValueError(f"{given} is not a file; give the path of one")
    try:
        with open_plain(path, follow=True) as file:
            content = read_most(file, most)
        return _unpacked(content, most) if content.startswith(GZIP) else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{given} is damaged gzip ({error}); pack it again") from None
    except OSError as error:
        raise ValueError(f"{given} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{given}: {error}; give a part of it") from None


def _unpacked(content: bytes, most: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        unpacked = packed.read(most + 1)
    if len(unpacked) > most:
        too_large(most)
    return unpacked
