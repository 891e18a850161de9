"""What a class costs: `python benchmarks/viewers.py`.

So many viewers, who only look, open a lesson while its run trains. Each is what a browser is to the server, without one: Streamlit's
socket, whose page reads the lesson's check once a second, and the socket of the live route, which takes a frame, acknowledges
it DRAWING seconds later and waits for the next. Once all have opened the page it is measured for --seconds: the server's share of a
core, each viewer's frames and checks a second, KB of a frame, and the time from a turn of a knob to a frame that has it. All of it
shares the machine's cores with the trainer and with this program. Prints one JSON line. --lesson: which; --quick: the short form.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.dashboard import cpu_seconds
from moe_core.commands.common import count_flag, seconds_flag
from moe_core.dashboard.address import TOKEN
from moe_core.dashboard.learn import first_of
from moe_core.lessons import LESSONS
from moe_core.runs import Run, open_run, start
from tests.browser.conftest import end_trainers
from tests.server import Server

DRAWING = 0.05  # seconds that a browser takes to draw a frame of a lesson's charts
APART = 0.5  # seconds between two that open the page
WARM = 5.0  # seconds after the last, before it is measured


class Viewer:
    """One page of the class: its frames, their bytes, and how often its check was read."""

    def __init__(self, server: Server, cookie: str, lesson: int, run: str) -> None:
        self.at, self.headers = f"ws://127.0.0.1:{server.port}", {"Cookie": cookie}
        self.origin: Any = server.url
        self.lesson, self.run = lesson, run
        self.frames = self.bytes = self.checks = 0
        self.step = 0

    def socket(self, path: str) -> Any:
        return connect(self.at + path, origin=self.origin, additional_headers=self.headers, max_size=None)

    async def look(self) -> None:
        """The live route's socket: a frame, its acknowledgement, the next."""
        sizes = {name: [600, 250] for name in LESSONS[self.lesson - 1].figures}
        told = {"theme": "light", "page": "learn", "layer": 0, "sizes": sizes}
        async with self.socket(f"/moescope/live/{self.run}") as socket:
            await socket.send(json.dumps(told))
            while True:
                frame = await socket.recv()
                header = json.loads(frame[4 : 4 + int.from_bytes(frame[:4], "little")])
                self.frames, self.bytes, self.step = self.frames + 1, self.bytes + len(frame), header["last"]
                await asyncio.sleep(DRAWING)
                await socket.send(json.dumps(told | {"drawn": header["seq"]}))

    async def read(self) -> None:
        """Streamlit's socket: the page, and its fragments each time that a browser's clock for them rings."""
        async with self.socket("/_stcore/stream") as socket:
            clocks: dict[str, asyncio.Task[None]] = {}
            page = await self.ask(socket)
            try:
                while True:
                    message = ForwardMsg.FromString(await socket.recv())
                    kind = message.WhichOneof("type")
                    if kind == "navigation":  # the whole page is drawn, and tells its clocks anew
                        page = message.navigation.page_script_hash
                        stop(clocks)
                    elif kind == "auto_rerun":
                        rerun = message.auto_rerun
                        ring = self.ring(socket, page, rerun.fragment_id, rerun.interval)
                        clocks[rerun.fragment_id] = asyncio.create_task(ring)
                    elif kind == "script_finished":
                        self.checks += 1
            finally:
                stop(clocks)

    async def ask(self, socket: ClientConnection, page: str = "", fragment: str = "") -> str:
        message = BackMsg()
        rerun = message.rerun_script
        rerun.query_string, rerun.page_script_hash = f"lesson={self.lesson}&run={self.run}", page
        rerun.page_name, rerun.fragment_id, rerun.is_auto_rerun = "" if page else "learn", fragment, bool(fragment)
        await socket.send(message.SerializeToString())
        return page

    async def ring(self, socket: ClientConnection, page: str, fragment: str, interval: float) -> None:
        with suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(interval)
                await self.ask(socket, page, fragment)


def stop(clocks: dict[str, "asyncio.Task[None]"]) -> None:
    for clock in clocks.values():
        clock.cancel()
    clocks.clear()


async def turns(run: Run, viewer: Viewer, seconds: float) -> list[float]:
    """Seconds from each turn of a knob, at most one a second, until a viewer is shown a step that has it."""
    took: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        run.turn("benchmark", {"w_importance": (0.02, 0.03)[len(took) % 2]})
        while (step := run.knob_changes()[-1].step) is None or viewer.step < step:
            await asyncio.sleep(0.01)
        took.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))
    return took


async def measure(server: Server, run: Run, count: int, lesson: int, warm: float, seconds: float) -> dict[str, Any]:
    (token,) = re.findall(rf"learn\?{TOKEN}=([\w-]+)", server.said())[:1]
    viewers = [Viewer(server, f"moescope-{server.port}={token}", lesson, run.id) for _ in range(count)]
    tasks = []
    for viewer in viewers:
        tasks += [asyncio.create_task(viewer.look()), asyncio.create_task(viewer.read())]
        await asyncio.sleep(APART)
    await asyncio.sleep(warm)
    for task in tasks:
        if task.done():
            task.result()  # why it ended
    for viewer in viewers:
        viewer.frames = viewer.bytes = viewer.checks = 0
    cpu, began, steps = cpu_seconds([server.process.pid]), time.monotonic(), run.steps()[1]
    delays = await turns(run, viewers[-1], seconds)
    took = time.monotonic() - began
    rates = sorted(viewer.frames / took for viewer in viewers)
    result = {
        "viewers": count,
        "server_cpu_percent": round(100 * (cpu_seconds([server.process.pid]) - cpu) / took),
        "frames_per_s": round(statistics.median(rates), 2),
        "slowest_frames_per_s": round(rates[0], 2),
        "kb_per_frame": round(sum(v.bytes for v in viewers) / 1000 / max(1, sum(v.frames for v in viewers)), 1),
        "checks_per_s": round(sum(viewer.checks for viewer in viewers) / took / count, 2),
        "turn_to_frame_ms": round(1000 * statistics.median(delays)),
        "steps_per_s": round((run.steps()[1] - steps) / took, 1),
    }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=count_flag, default=30)
    parser.add_argument("--lesson", type=int, default=6)
    parser.add_argument("--seconds", type=seconds_flag, default=20.0)
    parser.add_argument(
        "--quick", action="store_true", help="two viewers of lesson 1 for a second, to see that it works"
    )
    given = parser.parse_args(arguments)
    count, lesson, warm, seconds = given.viewers, given.lesson, WARM, given.seconds
    if given.quick:
        count, lesson, warm, seconds = 2, 1, 1.5, 1.0
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        runs.mkdir()
        os.environ["MOE_RUNS"] = str(runs)
        server = Server(runs, log=Path(folder) / "log", MOE_ALLOW="class.example.org")
        try:
            config, knobs, _ = first_of(LESSONS[lesson - 1])
            name = start(config, knobs, who=f"lesson {lesson}")
            until = time.monotonic() + 60
            while not (runs / name / "run.db").exists() or not open_run(name).steps()[1]:
                assert time.monotonic() < until, "the trainer does not begin"
                time.sleep(0.2)
            run = open_run(name)
            print(json.dumps(asyncio.run(measure(server, run, count, lesson, warm, seconds))))
        finally:
            server.kill()
            end_trainers(runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
