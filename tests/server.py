"""A cold server on a free port, as a person starts one, for tests that ask it over the network of this machine."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Server:
    """`streamlit run app.py` with its runs in a folder of its own. flags: of streamlit; variables: of its environment."""

    kills = 0  # of any server, so far
    folder = ROOT  # where it is started

    def __init__(self, runs: Path, *flags: str, log: Path | None = None, **variables: str) -> None:
        self.runs, self.flags, self.log, self.variables = runs, flags, log, variables
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def words(self) -> list[str]:
        """Its command line, without the flags."""
        settings = ["--server.headless", "true", "--server.port", str(self.port)]
        return [sys.executable, "-m", "streamlit", "run", "app.py", *settings]

    def start(self) -> None:
        with open(self.log or os.devnull, "ab") as log:
            self.process = subprocess.Popen(
                [*self.words(), *self.flags], cwd=self.folder, env={**os.environ, "MOE_RUNS": str(self.runs), **self.variables},
                stdout=log, stderr=log if self.log else None,
            )  # fmt: skip
        until = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it is there: 401 is an answer too."""
        try:
            ask(self.port, "/_stcore/health")
        except OSError:
            return False
        return True

    def kill(self) -> None:
        Server.kills += 1
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """What it wrote on the terminal so far."""
        assert self.log
        return self.log.read_text(errors="replace")

    def token(self) -> str:
        """The one that it asks for."""
        match = re.search(r"\?moe_token=([\w-]+)", self.said())
        assert match, self.said()
        return match.group(1)


def ask(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in small letters) and body of a GET at this machine. Headers by name, _ standing for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
