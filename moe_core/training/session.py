"""A trainer's session in a run: it is built, trains, and ends with its state in the record, whatever happens.

`train` begins a run; training/again.py resumes one.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_core.recording.committer import NO_ROWS
from moe_core.runs import Batch, RunWriter, create_run, new_id, runs_folder, whole_paths
from moe_core.runs.database import DamagedError
from moe_core.schema import Config, Knobs, check, first_line, layout, stats_of_ranks
from moe_core.training.data import load
from moe_core.training.data.identity import identity
from moe_core.training.loop import Notify, Trainer
from moe_core.training.machine import choose_device, choose_threads, facts_of


def train(
    config: Config,
    knobs: Knobs,
    runs: str | Path | None = None,
    run_id: str | None = None,
    notify: Notify = lambda event: None,
    script: Sequence[tuple[int, str, float | str]] = (),
    joined: Any = None,
) -> tuple[Path, str]:
    """Train until config.steps or a stop; returns (the run's folder, "finished", "stopped" or "failed").

    ValueError, before anything is written, for settings or data that cannot be used.
    script: knobs to turn, as (step of effect, knob, value), beside whatever people turn.
    notify is called with the events that `--json` prints, each after what it reports is committed. joined: the ranks that
    train together, this one being the first (parallel/session.py).
    """
    config, knobs = check(whole_paths(config), knobs)
    device = joined.device if joined else choose_device(config.device)
    data = load(config)
    if data.taken:
        notify({"event": "data", "taken": list(data.taken)})
    if joined:
        joined.ranks.check(config.num_experts, len(data.batch(1).inputs))
    threads = config.threads or 1 if joined else choose_threads(config, data, knobs, device)
    torch.set_num_threads(threads)
    folder = runs_folder(runs) / (run_id or new_id(runs_folder(runs), config.task))
    named = {"feature": list(data.features_named)} if data.features_named else {}
    taken = {"taken": list(data.taken)} if data.taken else {}
    writer = create_run(
        folder,
        config,
        knobs,
        labels=data.labels | named,
        probe=data.probe()[1],
        facts=facts_of(device, threads) | taken | {"data": identity(data)} | (joined.facts if joined else {}),
        script=script,
        ranks=joined.ranks.size if joined else 1,
    )
    begun = {"event": "start", "run": folder.name, "path": str(folder), "device": str(device), "threads": threads}
    notify(begun | {"ranks": joined.ranks.size if joined else 1})
    make = joined.make if joined else Trainer
    columns = layout(config.layers, config.num_experts, stats_of_ranks(joined.ranks.size if joined else 1))
    return conduct(
        lambda: make(config, knobs, data, device, writer, notify, script, columns), Trainer.run, writer, notify, joined
    )


def conduct(
    make: Callable[[], Trainer], work: Callable[[Trainer], str], writer: RunWriter, notify: Notify, joined: Any = None
) -> tuple[Path, str]:
    """Build a trainer, let it work, and write the state in which that ended into the record, whatever happens. joined: as train() has
    it."""
    trainer, state, error = None, "failed", ""
    with contextlib.ExitStack() as signals:
        try:
            trainer = make()
            # To the end: when ranks fail, torchrun sends the first one a signal while it writes that into the record.
            signals.enter_context(_stopping_at_signals(trainer))
            ended = work(trainer)
            trainer.write_checkpoint()
            trainer.committer.settle()  # while it waits for room, a stop is obeyed
            trainer.flush()
            if joined:
                joined.dismiss()
            state = ended
        except Exception as failure:
            kind = "" if isinstance(failure, DamagedError) else f"{type(failure).__name__}: "
            error = f"{kind}{first_line(failure)}"
            if trainer is not None:
                with contextlib.suppress(Exception):  # the failure itself is what is reported
                    keep_whole_steps(trainer)
        if trainer is not None:
            error = trainer.committer.close() or error  # the disk's error, and not a later one that it caused
        if error:
            notify({"event": "error", "error": error})
        if problem := writer.finish("failed" if error else state, error=error):
            notify({"event": "error", "error": problem})
            error = error or problem
    return writer.folder, "failed" if error else state


def keep_whole_steps(trainer: Trainer) -> None:
    """After a failure: hand over the steps that were trained to their end since the last flush, and of the one that failed
    nothing: a turn that it took is taken again when the run is resumed."""
    first, rows_nC = (0, NO_ROWS) if trainer.replaying else trainer.telemetry.take()
    if not len(rows_nC):
        return
    last, collected = first + len(rows_nC) - 1, trainer.collected
    kept = {
        name: [one for one in collected[name] if one[at] <= last]
        for name, at in (("evals", 0), ("applied", 1), ("acks", 1))
    }
    trainer.committer.put(Batch(first, rows_nC, **kept))


def ending_signals() -> list[signal.Signals]:
    """The signals that tell a process to end: SIGTERM, SIGINT (Ctrl-C), and SIGHUP (a terminal that closes), unless nohup has it ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


@contextlib.contextmanager
def _stopping_at_signals(trainer: Trainer):
    """The first of ending_signals() stops the run cleanly after the current step; a Ctrl-C after that interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        trainer.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
