"""A file appears whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path


def write(path: Path, content: str | bytes) -> Path:
    """Write beside the file and rename, so that nobody ever reads half of it."""
    return write_parts(path, [content.encode() if isinstance(content, str) else content])


def write_parts(path: Path, parts: Iterable[bytes]) -> Path:
    """The same for content that is made as it is written."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; move it away, or give another name")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            for part in parts:
                file.write(part)
        beside.replace(path)
    except OSError as error:
        error.filename = str(path)  # the one that was asked for
        raise
    finally:
        beside.unlink(missing_ok=True)
    return path


def folder_for(out: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there; ValueError for a file in its place."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder, or move the file away")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
