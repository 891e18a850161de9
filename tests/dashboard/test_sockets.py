"""The sockets of a real server: many viewers, some that never speak, and thousands of messages that no page sends."""

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from moe_core.dashboard import live, log
from moe_core.dashboard.address import LOOKS, TOKEN, TURNS
from moe_core.dashboard.gate import LOOKING, REFUSED
from moe_core.dashboard.guard import HEADERS
from moe_core.dashboard.messages import Refused
from moe_core.dashboard.stcore import LONGEST, checked_message
from moe_core.runs import COMMANDS, open_run
from tests.dashboard.test_messages import BAD, garbled
from tests.figures.record import record
from tests.server import Server, ask

LOOK = {"theme": "light", "page": "live", "layer": 0, "sizes": {"loss": [300, 200]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "runs").mkdir()
    record(folder / "runs" / "a", E=4, L=2)
    server = Server(folder / "runs", log=folder / "log")
    yield server
    server.kill()


def socket(server: Server, path: str = "/moescope/live/a", **more: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}{path}", origin=server.url, max_size=None, **more)  # type: ignore[arg-type]


def look(viewer: ClientConnection) -> dict[str, Any]:
    """Say what is looked at, and take a frame's header."""
    viewer.send(json.dumps(LOOK))
    return header_of(viewer.recv(timeout=60))


def header_of(frame: str | bytes) -> dict[str, Any]:
    assert isinstance(frame, bytes)
    return json.loads(frame[4 : 4 + int.from_bytes(frame[:4], "little")])  # type: ignore[no-any-return]


def closing(viewer: ClientConnection) -> tuple[int, str]:
    """With which code and words the server closes."""
    with suppress(ConnectionClosed):
        for _ in viewer:
            pass
    assert viewer.close_code
    return viewer.close_code, viewer.close_reason or ""


def test_thirty_look_at_one_run_beside_forty_sockets_that_never_speak(server: Server) -> None:
    with ExitStack() as open_:
        for _ in range(40):
            open_.enter_context(socket(server))
        viewers = [open_.enter_context(socket(server)) for _ in range(30)]
        assert {look(viewer)["last"] for viewer in viewers} == {60}


def test_each_reason_to_close_has_its_words(server: Server, tmp_path: Path) -> None:
    for run in ("nobody", "x" * 400, "%2e%2e", "%C3%A9" * 90):
        with socket(server, f"/moescope/live/{run}") as viewer:
            assert closing(viewer) == (4404, "there is no such run")
    (server.runs / "linked").symlink_to(tmp_path)
    strange = "run linked is refused: its run.db is not a plain file; do not trust this folder"
    for code, words in ((4404, "there is no such run"), (4400, strange)):
        with socket(server, "/moescope/live/linked") as viewer:
            viewer.send(json.dumps(LOOK))
            assert closing(viewer) == (code, words)
        (tmp_path / "run.db").mkdir(exist_ok=True)
    (server.runs / "linked").unlink()
    with socket(server) as viewer:
        viewer.send(b"\0")
        assert closing(viewer) == (4400, "a message must be text, got bytes")
    with socket(server) as viewer:
        viewer.send('{"command": "pause"}')
        assert closing(viewer) == (
            4400,
            "the first message must say which page, layer and step are shown, got a deed; send a view first",
        )
    with socket(server) as viewer:
        look(viewer)
        viewer.send(json.dumps(LOOK | {"theme": "é" * 200}))
        code, reason = closing(viewer)
        assert (code, reason[:20]) == (4400, "theme must be like l")


class Silent(SimpleNamespace):
    """As much of a WebSocket as is asked of one that never speaks, or says what is looked at."""

    closed = (0, "")

    async def accept(self) -> None: ...

    async def receive(self) -> dict[str, Any]:
        if not self.speaks:
            await asyncio.sleep(60)
        return {"type": "websocket.receive", "text": json.dumps(LOOK)}

    async def close(self, code: int, reason: str) -> None:
        self.closed = code, reason


def test_too_many_viewers_and_silence_are_two_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    monkeypatch.setattr(live, "GREETING", 0.01)
    monkeypatch.setattr(live, "viewers", {live.Viewer() for _ in range(live.MOST)})
    (tmp_path / "a").mkdir()
    for speaks, code, words in ((False, 4408, "no message came"), (True, 4429, "128 pages look at runs")):
        viewer: Any = Silent(path_params={"run": "a"}, headers={"moescope-role": "turns"}, speaks=speaks)
        asyncio.run(live.stream(viewer))
        assert viewer.closed[0] == code
        assert words in viewer.closed[1]


def test_a_class_of_many_keeps_no_teacher_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    monkeypatch.setattr(live, "viewers", {live.Viewer(looks=True) for _ in range(live.MOST)})
    (tmp_path / "a").mkdir()
    for role, code in (("looks", 4429), ("turns", 4404), ("", 4429)):  # 4404: it came in, and there is no trainer
        viewer: Any = Silent(path_params={"run": "a"}, headers={"moescope-role": role}, speaks=True)
        asyncio.run(live.stream(viewer))
        assert viewer.closed[0] == code


def test_three_thousand_messages_that_no_page_sends_leave_no_traceback(server: Server) -> None:
    draw = random.Random(2)
    before = [(change.name, change.value) for change in open_run(server.runs / "a").knob_changes()]
    for i in range(1000):
        with socket(server) as viewer:
            if i % 2:
                look(viewer)
            for text in (draw.choice(BAD), garbled(draw), garbled(draw)):
                if i % 50 == 0:
                    viewer.close_socket()  # away without a word
                    break
                try:
                    viewer.send(text if draw.random() < 0.9 else text.encode(errors="replace"))
                except ConnectionClosed:
                    break
    rerun = BackMsg()
    rerun.rerun_script.query_string = "font=" + "9" * 400 + "&run=" + "x" * 400 + "&layer=%ff&step=" + "1" * 5000
    rerun.rerun_script.widget_states.widgets.add(id="x", string_value="y" * 1000)
    for data in (
        "{}",
        "x" * 70_000,
        b"",
        b"\0",
        b"\xff" * 100,
        b"\x08\x01",
        rerun.SerializeToString(),
        rerun.SerializeToString()[:40],
    ):
        with socket(server, "/_stcore/stream") as page:
            page.send(data)
            with suppress(ConnectionClosed):  # it may be closed by now
                page.send(data)
            time.sleep(0.2)
    with socket(server) as viewer:
        assert look(viewer)["last"] == 60  # it serves on
    said = server.said()
    assert "Traceback" not in said
    assert "never retrieved" not in said
    assert "message refused: " in said
    assert len(said) < 100_000
    assert [(change.name, change.value) for change in open_run(server.runs / "a").knob_changes()] == before


def test_a_line_of_a_kind_is_written_once_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "_noted", {})
    for _ in range(1000):
        log.note("one", "x\n\x1b[31m" + "y" * 1000)
        log.note("two", "z")
    assert [record.message.partition(":")[0] for record in caplog.records] == ["one", "two"]
    assert all(len(record.message) < 320 and record.message.isprintable() for record in caplog.records)


def test_every_answer_forbids_to_frame_it(server: Server) -> None:
    paths = [
        "/", "/experts", "/live?run=a", "/nothing/here", "/moescope/runs", "/moescope/mount.js", "/moescope/nothing", "/moescope/plotly.min.js",
        "/_stcore/health", "/_stcore/host-config", "/_stcore/stream", "/media/none.png", "/static/js/none.js", "/favicon.png", "/..%2f", "//x",
    ]  # fmt: skip
    for path in paths:
        _, headers, _ = ask(server.port, path)
        assert {name.decode(): value.decode() for name, value in HEADERS}.items() <= headers.items(), path
    _, headers, _ = ask(server.port, "/", Host="rebind.evil.com")
    assert headers["x-frame-options"] == "DENY"


def test_live_leads_to_the_first_page_wherever_it_is_served(server: Server) -> None:
    assert ask(server.port, "/live?run=a")[1]["location"] == "./?run=a"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that others may reach, below a path."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "runs").mkdir()
    record(folder / "runs" / "a", E=4, L=2)
    server = Server(folder / "runs", "--server.address", "0.0.0.0", "--server.baseUrlPath", "lab/moe", log=folder / "log", MOE_ALLOW="hub.example.org")  # fmt: skip
    yield server
    server.kill()


def test_beyond_this_machine_everything_lies_behind_a_token_that_the_terminal_shows(guarded: Server) -> None:
    token = guarded.token()
    assert f"http://127.0.0.1:{guarded.port}/lab/moe/?{TOKEN}={token}" in guarded.said()
    assert "At hub.example.org, append" in guarded.said()
    assert "External URL" not in guarded.said()
    cookie = f"moescope-{guarded.port}={token}"
    for path in ("/lab/moe/", "/lab/moe/moescope/runs", "/lab/moe/moescope/link.js", "/lab/moe/_stcore/health", "/"):
        assert ask(guarded.port, path)[0] == 401
    for path in ("/lab/moe/", "/lab/moe/moescope/runs", "/lab/moe/moescope/link.js", "/lab/moe/_stcore/health"):
        assert ask(guarded.port, path, Cookie=cookie)[0] == 200
        assert ask(guarded.port, path, Cookie=cookie, Host="hub.example.org")[0] == 200
        assert ask(guarded.port, path, Cookie=cookie, Host="rebind.evil.com")[0] == 403
    status, headers, _ = ask(guarded.port, f"/lab/moe/experts?run=a&{TOKEN}={token}")
    assert (status, headers["set-cookie"].partition(";")[0]) == (200, cookie)
    for path in ("/lab/moe/moescope/live/a", "/lab/moe/_stcore/stream"):
        with pytest.raises(Exception, match="403"):
            socket(guarded, path)
        with socket(guarded, path, additional_headers={"Cookie": cookie}) as viewer:
            if path.endswith("a"):
                assert look(viewer)["last"] == 60


def test_who_only_looks_is_sent_all_and_turns_nothing(guarded: Server) -> None:
    (token,) = re.findall(rf"learn\?{TOKEN}=([\w-]+)", guarded.said())[:1]
    headers = {"Cookie": f"moescope-{guarded.port}={token}", "MoEscope-Role": "turns", "X-Forwarded-For": "127.0.0.1"}
    before = (guarded.runs / "a" / "run.db").read_bytes()
    with socket(guarded, "/lab/moe/moescope/live/a", additional_headers=headers) as viewer:
        header = look(viewer)
        assert (header["panel"]["looking"], header["panel"]["obeys"], header["banner"]["fork"]) == (LOOKING, [], 0)
        deeds: list[dict[str, Any]] = [{"turn": {"noise": 0.5}}, {"fork": 40}, {"go_on": True, "steps": 90}]
        for nth, deed in enumerate([*deeds, *({"command": name} for name in COMMANDS)], 1):
            viewer.send(json.dumps(deed | {"nth": nth}))
            while header["answer"].get("nth") != nth:
                viewer.send(json.dumps(LOOK | {"drawn": header["seq"]}))
                header = header_of(viewer.recv(timeout=20))
            assert header["answer"] == {"nth": nth, "error": REFUSED}
    assert (guarded.runs / "a" / "run.db").read_bytes() == before
    assert [path.name for path in guarded.runs.iterdir()] == ["a"]
    for name in ("clear_cache", "set_run_on_save", "file_urls_request"):
        message = BackMsg()
        getattr(message, name).SetInParent() if name == "file_urls_request" else setattr(message, name, True)
        with socket(guarded, "/lab/moe/_stcore/stream", additional_headers=headers) as page:
            page.send(message.SerializeToString())
            assert closing(page) == (1002, f"{REFUSED} Got {name}.")


def test_who_only_looks_sends_no_message_above_1_mb() -> None:
    message = BackMsg()
    message.rerun_script.page_script_hash = "a" * (LONGEST + 1024)
    sent = {"type": "websocket.receive", "bytes": message.SerializeToString()}
    assert checked_message(sent, TURNS) == sent
    with pytest.raises(Refused, match=r"wanted at most 1,024 KB, got 1,025 KB"):
        checked_message(sent, LOOKS)


def test_a_setting_that_is_no_address_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the server ended"):
        Server(tmp_path, log=tmp_path / "log", MOE_ALLOW="*")
    said = (tmp_path / "log").read_text()
    assert "moe: MOE_ALLOW lists addresses" in said
    assert "Traceback" not in said
