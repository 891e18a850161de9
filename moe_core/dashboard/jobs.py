"""Long work of a page as a process of its own: the same command that a person would give, which the page can end at any moment."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path

from moe_core.dashboard.gate import deed
from moe_core.export.files import write
from moe_core.folders import ABOVE
from moe_core.runs import NO_WORDS, last_words
from moe_core.schema import left_text


class Work:
    """One piece of long work, done by a process of its own and seen by the page.

    words: a command of `python -m moe_core`; name: of the file that it writes, or, if it ends in .zip, of the archive of the
    folder that it writes. The folder is removed with the object, and with it whatever an ended process left half done.
    """

    @deed
    def __init__(self, words: Sequence[str], name: str) -> None:
        self.done, self.of, self.error, self.began = 0, 1, "", time.monotonic()
        self.file: Path | None = None
        self.stopped = False
        self.folder = Path(tempfile.mkdtemp(prefix="moescope-"))
        self.target = self.folder / name.removesuffix(".zip")
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moe_core", *words, "--out", str(self.target), "--json"], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True, cwd=ABOVE,
            )  # fmt: skip
        weakref.finalize(self, end, self.process, self.folder)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        """Follow the process: its progress, then its file or its error."""
        assert self.process.stdout
        with self.process.stdout as output:
            for event in map(json.loads, output):
                if event["event"] == "progress":
                    self.done, self.of = event["done"], max(event["of"], 1)
        if self.process.wait() and not self.stopped:
            words = last_words(self.folder, "log")
            self.error = (
                words.removeprefix("moe: ")
                if words != NO_WORDS
                else "The export's process was ended from outside, without a message; try again."
            )
        if self.stopped:
            self.error = "Cancelled. Nothing was kept."
        elif not self.error:
            self.file = zipped(self.target) if self.target.is_dir() else self.target

    def cancel(self) -> None:
        """Kill the process, and every process that it has started."""
        self.stopped = True
        end(self.process, self.folder)

    @property
    def progress(self) -> str:
        """How far it is, and the time left: "12 of 60, about 8 s left"."""
        left = left_text(time.monotonic() - self.began, self.done, self.of - self.done)
        return f"{self.done} of {self.of}" + (f", {left}" if left else "")

    @property
    def busy(self) -> bool:
        return self.thread.is_alive()


def end(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill a process, if it still runs, with every process that it has started, and remove its folder."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def zipped(folder: Path) -> Path:
    """Pack all files of a folder in one archive; without dates, so that the same files give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return write(folder.with_name(f"{folder.name}.zip"), packed.getvalue())
