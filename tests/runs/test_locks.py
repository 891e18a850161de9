"""Whether another process lives: by the lock that it holds, and by what it was started as."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.runs import locks
from moe_core.runs.locks import is_locked, is_ours, started, stat_words
from moe_core.runs.measuring import is_rank


def test_a_file_is_locked_for_as_long_as_somebody_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    assert not is_locked(path)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert is_locked(path)
    (tmp_path / "link").symlink_to(path)
    assert not is_locked(tmp_path / "link")  # never followed: it could lead out of the runs
    os.close(handle)
    assert not is_locked(path)


@pytest.fixture(
    params=[
        ["moe_core", "bench"],
        ["/usr/bin/moescope", "bench"],
        ["moe_core"],
        ["train", "bench"],
        ["my-moescope", "bench"],
    ]
)
def process(request: pytest.FixtureRequest):
    """A process that does nothing, with these words on its command line."""
    code = "import time; print(flush=True); time.sleep(60)"
    started = subprocess.Popen([sys.executable, "-c", code, *request.param], stdout=subprocess.PIPE)
    assert started.stdout
    started.stdout.readline()  # until it runs, its command line is none
    yield started.pid, request.param[0] in ("moe_core", "/usr/bin/moescope") and "bench" in request.param
    started.kill()
    started.communicate()


def test_only_a_process_that_was_started_as_ours_is_signalled(process: tuple[int, bool]) -> None:
    pid, ours = process
    assert is_ours(pid, "train", "bench") == ours
    assert not is_ours(pid, "train-like", "fork")
    for other in (0, -1, 1, os.getpid()):
        assert not is_ours(other, "train", "bench")


@pytest.mark.parametrize("words", [["moe_core.benchmarks.one_rank"], ["moe_core", "bench"]])
def test_a_rank_of_a_measurement_is_known_by_its_program(words: list[str]) -> None:
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        if Path("/proc/self").exists():
            assert is_rank(process.pid) == (len(words) == 1)
        process.kill()
    assert not is_rank(process.pid)


def test_without_proc_a_process_is_taken_at_its_word_as_long_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "Path", lambda path: tmp_path / path.lstrip("/"))
    with subprocess.Popen(["sleep", "60"]) as process:
        assert is_ours(process.pid, "train")
        assert is_rank(process.pid)
        process.kill()
    assert not is_ours(process.pid, "train")
    assert not is_rank(process.pid)
    for other in (0, -1, 1):
        assert not is_rank(other)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc")
def test_what_the_system_says_of_a_process_is_read_behind_its_name(tmp_path: Path) -> None:
    """The name may hold what looks like the words behind it."""
    odd = tmp_path / "a) Z 1"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([odd, "60"])
    try:
        assert stat_words(process.pid)[0] in "RSD"
        assert stat_words(process.pid)[1] == str(os.getpid())
        assert int(started(process.pid)) >= int(started(os.getpid())) > 0
    finally:
        process.kill()
        process.wait()
    assert stat_words(process.pid)[0] == started(process.pid) == ""
