"""A trainer on a disk that fails: `python benchmarks/faults.py --injections 1000`, on Linux with gcc.

The n-th write, fsync or open below a run's folder fails with EIO or ENOSPC, once or from then on (benchmarks/faults.c, loaded
with LD_PRELOAD, reaches SQLite's calls too), in a process forked for it: one that begins a run, one that goes on with one, and one
whose output goes to the run's trainer.log. It counts what must not happen: a traceback, a step or a turn that was acknowledged
and is not in the record, an end without a reason, a process that hangs. Exit status 1 if there was any.
"""

import argparse
import contextlib
import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
KINDS = {"write": 1, "fsync": 2, "open": 3}
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
SCENARIOS = ("train", "resume", "page")
STEPS = 30
SMALL = {"num-experts": 4, "d-model": 8, "d-hidden": 8, "layers": 1, "tokens": 32, "threads": 1, "eval-every": 10}
WORDS = ["--task", "plane", *(word for name, value in SMALL.items() for word in (f"--{name}", str(value)))]
SCRIPT = "8 noise=0.5\n20 k=1 w_load=0.2\n"
LONGEST = 120.0  # seconds after which a process counts as hung
BAD = ("traceback", "step lost", "turn lost", "no reason", "damaged", "hung", "cannot go on")


class Case(NamedTuple):
    scenario: str
    kind: str
    error: str
    lasting: bool
    at: int


def build(folder: Path) -> Path:
    """The library that makes calls fail."""
    library = folder / "faults.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def work(case: Case, runs: Path, faults: Any, steps_log: int) -> int:
    """What a forked process does: a training on a disk that fails. Each committed step is written to `steps_log`."""
    from moe_core.__main__ import main
    from moe_core.recording import committer
    from moe_core.runs import RunWriter, writer
    from moe_core.training import pace

    pace.FLUSH, committer.AGAIN, committer.RETRY, writer.SEAL_FOR = 0.0, 0.05, 0.01, 0.3
    commit = RunWriter.commit

    def acknowledged(self: RunWriter, batch: Any) -> None:
        commit(self, batch)
        if len(batch.rows):
            os.write(steps_log, b"%d\n" % self.step)

    RunWriter.commit = acknowledged  # type: ignore[method-assign]
    folder = runs / "a"
    faults.faults_arm(KINDS[case.kind], case.at, ERRORS[case.error], int(case.lasting), str(folder).encode())
    if case.scenario == "resume":
        return main(["train", "--runs", str(runs), "--resume", "a", "--steps", str(STEPS + 15)])
    script = ["--script", str(runs.parent / "script")]
    return main(["train", "--runs", str(runs), "--run-id", "a", "--steps", str(STEPS), *WORDS, *script])


def fork(case: Case, runs: Path, faults: Any, out: Path, steps_log: Path) -> int:
    """Start a process for one case, its output going to `out`. Returns its id."""
    if child := os.fork():
        return child
    code = 99
    try:
        for path, handles in ((out, (1, 2)), (steps_log, (9,))):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for handle in handles:
                os.dup2(opened, handle)
        code = work(case, runs, faults, 9)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        os.write(9, b"Traceback\n" + traceback.format_exc().encode())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Trial:
    """One case: its process is watched, a knob turned meanwhile, and the record checked afterwards."""

    def __init__(self, case: Case, place: Path, faults: Any, finished: Path | None) -> None:
        self.case, self.faults = case, faults
        shutil.rmtree(place, ignore_errors=True)
        self.runs, self.steps_log, self.folder = place / "runs", place / "steps", place / "runs" / "a"
        self.runs.mkdir(parents=True)
        (place / "script").write_text(SCRIPT)
        self.out = place / "out"
        if case.scenario == "resume" and finished:
            shutil.copytree(finished, self.folder)
        if case.scenario == "page":
            self.folder.mkdir()
            self.out = self.folder / "trainer.log"
        self.turned = 0
        self.outcomes: Counter[str] = Counter()

    def output(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def watch(self) -> int:
        """Wait for the process: lift the fault when it reports a full disk, since it would wait for room for ever."""
        child, until = fork(self.case, self.runs, self.faults, self.out, self.steps_log), time.monotonic() + LONGEST
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                self.outcomes["hung"] += 1
                os.kill(child, signal.SIGKILL)
                until += LONGEST
            if "disk is full; the run goes on by itself" in self.output() or (
                self.case.scenario == "page" and self.waits()
            ):
                self.outcomes["paused"] = 1
                self.faults.faults_lift()
            self.turn()
            time.sleep(0.01)

    def waits(self) -> bool:
        """Whether it has hit a full disk several times and could not report it."""
        return self.case.error == "ENOSPC" and self.faults.faults_hits() > 20

    def turn(self) -> None:
        from moe_core.runs import Run, StoreError

        if self.turned or not self.steps_log.exists() or not self.steps_log.stat().st_size:
            return
        with contextlib.suppress(StoreError):
            run = Run(self.folder)
            self.turned = run.turn("person", lr=0.01)
            run.close()

    def judge(self, code: int) -> None:
        from moe_core.runs import Run, StoreError, verify

        output = self.output() + self.steps_log.read_text()
        self.outcomes["hit"] = int(self.faults.faults_hits() > 0)
        self.outcomes["traceback"] += "Traceback" in output or "Exception ignored" in output
        reported = "moe: " in output
        if not (self.folder / "run.db").exists():
            self.outcomes["refused" if reported or self.case.scenario == "page" else "no reason"] += 1
            return
        try:
            run = Run(self.folder)
            status, last = run.status(), run.steps()[1]
            acknowledged = [int(line) for line in self.steps_log.read_text().split() if line.isdigit()]
            self.outcomes["step lost"] += last < max(acknowledged, default=0)
            self.outcomes["turn lost"] += self.turned > len(run.knob_changes())
            self.outcomes["damaged"] += bool(verify(run))
            run.close()
        except StoreError:
            self.outcomes["damaged"] += 1
            return
        # No write below the folder succeeds any more, and there is no terminal.
        silent = self.case.scenario == "page" and self.case.kind == "write" and self.case.lasting
        if status.state == "finished" and code == 0:
            self.outcomes["finished"] += 1
            self.outcomes["step lost"] += last != (STEPS + 15 if self.case.scenario == "resume" else STEPS)
        elif status.state == "finished":  # a resume that was refused, or an end that could not be recorded
            self.outcomes["refused" if reported else "nowhere to say it" if silent else "no reason"] += 1
        elif status.reason or reported:
            self.outcomes["failed"] += 1
        else:
            self.outcomes["nowhere to say it" if silent else "no reason"] += 1

    def go_on(self, place: Path) -> None:
        """Check that a run that failed can be resumed once the disk works again."""
        case = Case("resume", "write", "EIO", False, 1 << 30)
        child = fork(case, self.runs, self.faults, place / "again", place / "steps")
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            self.outcomes["cannot go on"] += 1


def cases(counts: dict[tuple[str, str], int], injections: int) -> Iterator[Case]:
    """So many cases, all kinds in turn, each kind's n spread evenly over its calls (by the golden ratio)."""
    combined = list(itertools.product(SCENARIOS, KINDS, ERRORS, (False, True)))
    for number in range(injections):
        scenario, kind, error, lasting = combined[number * 7 % len(combined)]
        yield Case(scenario, kind, error, lasting, 1 + int(counts[scenario, kind] * (number * 0.6180339887 % 1)))


def measure(
    injections: int, place: Path, part: int, parts: int
) -> tuple[dict[str, Counter[str]], list[tuple[Case, list[str], str]]]:
    """Run all cases. Returns the outcomes by kind of fault, and each case with a forbidden outcome, with its output."""
    faults = ctypes.CDLL(os.environ["LD_PRELOAD"])
    assert faults.faults_share()
    import torch

    from moe_core.training import again, session  # noqa: F401  # once, before the forks

    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()  # this imports as much again
    counts, finished = {}, place / "finished"
    for scenario, kind in itertools.product(SCENARIOS, KINDS):
        trial = Trial(Case(scenario, kind, "EIO", False, 1 << 30), place / "count", faults, finished)
        assert trial.watch() == 0, trial.output()
        counts[scenario, kind] = faults.faults_seen()
        if not finished.exists():
            shutil.copytree(trial.folder, finished)
    ended: dict[str, Counter[str]] = {}
    bad = []
    for number, case in enumerate(itertools.islice(cases(counts, injections), part, None, parts)):
        trial = Trial(case, place / "trial", faults, finished)
        trial.judge(trial.watch())
        faults.faults_lift()
        if trial.outcomes["failed"] and number % 5 == 0:
            trial.go_on(place)
        row = ended.setdefault(f"{case.kind} {case.error} {'from then on' if case.lasting else 'once'}", Counter())
        row.update(trial.outcomes + Counter({"trials": 1}))
        if wrong := [name for name in BAD if trial.outcomes[name]]:
            bad.append((case, wrong, trial.output()[-2000:] + trial.steps_log.read_text()[-2000:]))
        if number % 10 == 9 or wrong:
            print(f"{number + 1}: {dict(sum(ended.values(), Counter()))} {bad[-1] if wrong else ''}", file=sys.stderr)
    return ended, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=1000)
    parser.add_argument("--part", default="0/1", help="which of how many parts, beside other processes: 0/2, 1/2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as folder:
            loaded = {"LD_PRELOAD": str(build(Path(folder))), "OMP_NUM_THREADS": "1"}
            os.environ |= loaded
            return subprocess.run([sys.executable, __file__, *sys.argv[1:]]).returncode
    with tempfile.TemporaryDirectory() as place:
        ended, bad = measure(arguments.injections, Path(place), *map(int, arguments.part.split("/")))
    names = ("trials", "hit", "finished", "paused", "failed", "refused", "nowhere to say it", *BAD)
    if arguments.json:
        print(json.dumps({"ended": ended, "bad": bad}))
    else:
        print("| fault | " + " | ".join(names) + " |")
        print("|" + "---|" * (len(names) + 1))
        for fault, row in sorted(ended.items()):
            print(f"| {fault} | " + " | ".join(str(row[name]) for name in names) + " |")
        for case, wrong, words in bad:
            print(f"\n{case}: {', '.join(wrong)}\n{words}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
