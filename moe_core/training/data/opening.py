"""The one place where a person's file is opened: its bytes, unpacked if they are gzip, whatever its name says."""

import gzip
import io
import zlib
from pathlib import Path

GZIP = b"\x1f\x8b"


def content_of(path: Path, flag: str) -> bytes:
    """All of a file; ValueError, one line, if it is no file, cannot be read, or is damaged gzip. flag: what named it."""
    given = f"{flag} {str(path)!r}"
    if not path.is_file():
        raise ValueError(f"{given} is not a file; give the path of one")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{given} cannot be read: {error.strerror}") from None
    if not content.startswith(GZIP):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            return packed.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{given} is damaged gzip ({error}); pack it again") from None
