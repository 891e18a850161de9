"""What a rank does whose torchrun was killed: it has a minute to end its run. A checkpoint that takes longer is cut, and harms nothing."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.parallel.parent import torchrun_has_ended
from moe_core.training import checkpoint
from tests.parallel.test_live import until

ROOT = Path(__file__).parents[2]
# A rank that has written a checkpoint of step 1, and is in the middle of that of step 2 for as long as it lives.
RANK = """
import os, signal, sys, time, torch
from pathlib import Path
from moe_core.parallel import parent
from moe_core.training import checkpoint
parent.EVERY, parent.UNTIL_EXIT = 0.05, 0.5
signal.signal(signal.SIGTERM, lambda *_: None)
folder = Path(sys.argv[1])
checkpoint.write(folder, 1, {"step": 1})
def save(state, file):
    file.write(b"half of it")
    file.flush()
    (folder / "writes").touch()
    time.sleep(600)
torch.save = save
parent.watch_parent(os.getppid())
checkpoint.write(folder, 2, {"step": 2})
"""


def test_a_checkpoint_that_is_cut_leaves_those_before_it_whole(tmp_path: Path) -> None:
    command = ["sh", "-c", '"$@" & echo $!; wait', "sh", sys.executable, "-c", RANK, str(tmp_path)]
    torchrun = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert torchrun.stdout
    rank = int(torchrun.stdout.readline())
    try:
        until((tmp_path / "writes").exists)
        torchrun.kill()
        torchrun.wait()
        torchrun.stdout.read()  # to its end: the rank has ended
    finally:
        torchrun.stdout.close()
        if Path(f"/proc/{rank}").exists():
            os.kill(rank, signal.SIGKILL)
    assert list(tmp_path.glob("*.tmp"))
    (path,) = checkpoint.list_checkpoints(tmp_path).values()
    assert checkpoint.read(path) == {"step": 1}
    checkpoint.write(tmp_path, 2, {"step": 2})
    assert not list(tmp_path.glob("*.tmp"))


def test_a_rank_whose_torchrun_died_while_it_loaded_torch_ends() -> None:
    """It would wait for the other ranks for ever, and nobody would miss it."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    rank = "import sys, time; from moe_core.parallel.parent import watch_parent; watch_parent(int(sys.argv[1])); time.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", rank, gone.stdout.strip()], cwd=ROOT, timeout=50)
    assert ended.returncode == -signal.SIGTERM


def begun_as_rank(port: int) -> "subprocess.Popen[str]":
    """A rank as torchrun starts it, though nobody started it so."""
    told = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "1", "WORLD_SIZE": "2"}
    env = {**os.environ, **told, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-X", "importtime", "-m", "moe_core", "train"]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_a_rank_whose_torchrun_died_before_it_could_ask_for_it_ends() -> None:
    """Its parent is another process by then. Before torch is loaded, and before it waits for the other ranks."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    rank = begun_as_rank(port)
    _, said = rank.communicate(timeout=50)
    assert rank.returncode == 2
    assert said.splitlines()[-1] == f"moe: torchrun's store at localhost:{port} is gone; start again"
    assert "torch.distributed" not in said


def test_a_rank_whose_torchrun_is_there_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with socket.create_server(("localhost", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        for kept_by_torchrun in ("True", "False"):
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", kept_by_torchrun)
            assert not torchrun_has_ended()
    assert not torchrun_has_ended()  # a rank is to make the store
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert torchrun_has_ended()
