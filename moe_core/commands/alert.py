"""--on-alert: the user's own command, called with each new finding as JSON on its standard input.

The command is split into words as a shell would split them, and run without a shell: no word of a finding is ever part of
a command line. It runs beside the training, which neither waits for it nor ends with it.
"""

import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Any

AT_ONCE = 4  # commands that may run at the same time; further findings are left out, with a message
PATIENCE = 60.0  # seconds after which a command is ended
FAREWELL = 5.0  # seconds that a training waits at its end for commands that still run


class Alarm:
    """Calls the command. say is called once, with one line, when something goes wrong with it."""

    def __init__(self, command: str, say: Callable[[str], None]):
        self.words, self.say = words_of(command), say
        self.free = threading.BoundedSemaphore(AT_ONCE)
        self.threads: list[threading.Thread] = []
        self.guard, self.complained = threading.Lock(), False

    def call(self, finding: dict[str, Any]) -> None:
        """Start the command with a finding. Returns at once."""
        if not self.free.acquire(blocking=False):
            self.complain(f"{AT_ONCE} of its calls still run, so a finding was left out")
            return
        thread = threading.Thread(target=self._run, args=(json.dumps(finding) + "\n",), name="on-alert", daemon=True)
        self.threads = [t for t in self.threads if t.is_alive()] + [thread]
        thread.start()

    def close(self) -> None:
        """Wait a moment for the commands that still run."""
        for thread in self.threads:
            thread.join(FAREWELL)

    def _run(self, text: str) -> None:
        try:
            process = subprocess.run(
                self.words,
                input=text,
                text=True,
                stdout=subprocess.DEVNULL,  # stdout belongs to the training's own events
                stderr=subprocess.DEVNULL,
                timeout=PATIENCE,
                start_new_session=True,  # Ctrl-C ends the training, not the command
            )
            if process.returncode:
                self.complain(f"it ended with status {process.returncode}")
        except subprocess.TimeoutExpired:
            self.complain(f"it took more than {PATIENCE:g} s and was ended")
        except OSError as error:
            self.complain(error.strerror or str(error))
        finally:
            self.free.release()

    def complain(self, problem: str) -> None:
        """Report a problem, the first only: a command that fails once fails for every finding."""
        with self.guard:
            if self.complained:
                return
            self.complained = True
        self.say(f"--on-alert {shlex.join(self.words)}: {problem}")


def words_of(command: str) -> list[str]:
    """The command's words. ValueError if there are none, or if the first is not a program that can be run."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--on-alert cannot be split into words ({error}): {command!r}; check its quotes") from None
    if not words or shutil.which(words[0]) is None:
        given = words[0] if words else ""
        raise ValueError(
            f"--on-alert needs a program that can be run, got {given!r}; give its path, then its arguments"
        )
    return words
