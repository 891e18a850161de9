"""What a rank does whose torchrun was killed: it has a minute to end its run. A checkpoint that takes longer is cut, and harms nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from moe_core.training import checkpoint
from tests.parallel.test_live import until

ROOT = Path(__file__).parents[2]
# A rank that has written a checkpoint of step 1, and is in the middle of that of step 2 for as long as it lives.
RANK = """
import os, signal, sys, time, torch
from pathlib import Path
from moe_core.parallel import alive
from moe_core.training import checkpoint
alive.EVERY, alive.PATIENT = 0.05, 0.5
signal.signal(signal.SIGTERM, lambda *_: None)
folder = Path(sys.argv[1])
checkpoint.write(folder, 1, {"step": 1})
def save(state, file):
    file.write(b"half of it")
    file.flush()
    (folder / "writes").touch()
    time.sleep(600)
torch.save = save
alive.watch_parent(os.getppid())
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
    rank = "import sys, time; from moe_core.parallel.alive import watch_parent; watch_parent(int(sys.argv[1])); time.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", rank, gone.stdout.strip()], cwd=ROOT, timeout=50)
    assert ended.returncode == -signal.SIGTERM
