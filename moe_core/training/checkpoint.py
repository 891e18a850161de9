"""Everything that a bit-for-bit resume needs, in a file that is either whole or not there."""

import copy
import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch

from moe_core.recording.committer import NO_ROWS
from moe_core.runs import Batch
from moe_core.runs.branch import checkpoint_step
from moe_core.runs.limits import first_word, open_plain, zip_parts
from moe_core.runs.room import no_room
from moe_core.schema import Knobs, first_line, from_dict

T = TypeVar("T")
NEWEST = 2  # kept whatever their size: if one is damaged there is another
OLDER = 10  # kept beside them, further apart the older they are
BUDGET = 1 << 30  # bytes that the older ones may take


def state_of(trainer: Any) -> dict[str, Any]:
    """Everything that the coming steps depend on: tensors and plain values. The tensors are the trainer's own, not
    copies."""
    random = {"cuda": torch.cuda, "mps": torch.mps}.get(trainer.device.type)
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "measured": [float(x) for x in trainer.measured],
        "step": trainer.step,  # which gives the data's place too: a batch is a function of seed and step
        "torch_random": torch.get_rng_state(),
        "device_random": random.get_rng_state() if random else None,
        "knobs": asdict(trainer.knobs),
        "telemetry": trainer.telemetry.state(),
        "window": trainer.window.state(),
        "probe": trainer.probe.last,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def writing(trainer: Any, command: int | None) -> Callable[[], None]:
    """What writes the trainer's present state, for the committing thread, once all steps before are in the record.

    command: the id of the command that asked for it, which is then answered.
    """
    step, state = trainer.step, copy.deepcopy(state_of(trainer))  # the next step changes the tensors in place

    def write_and_answer() -> None:
        try:
            result = write(trainer.writer.follow(), step, state).name
        except (OSError, RuntimeError) as error:  # torch raises the disk's error as a RuntimeError
            if no_room(error, trainer.folder) and not trainer.stopping:
                raise
            result = f"not written: {first_line(getattr(error, 'strerror', None) or error)}"
            trainer.notify({"event": "note", "note": f"the checkpoint of step {step} was {result}"})
        if command is not None:
            trainer.writer.commit(Batch(step, NO_ROWS, acks=[(command, step, result)]))

    return write_and_answer


def restore(trainer: Any, state: dict[str, Any]) -> None:
    """Set a fresh trainer to a state that state_of() gave."""
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.step = trainer.checkpointed = trainer.compared = state["step"]
    trainer.measured = state.get("measured", [])
    torch.set_rng_state(state["torch_random"])
    if state["device_random"] is not None:
        {"cuda": torch.cuda, "mps": torch.mps}[trainer.device.type].set_rng_state(state["device_random"])
    trainer.knobs = from_dict(Knobs, state["knobs"])
    trainer.telemetry.restore(state["telemetry"])
    trainer.window.restore(state["window"], trainer.step, trainer.data, trainer.device)
    trainer.probe.last = state["probe"] and [x.to(trainer.device) for x in state["probe"]]


def name_of(step: int) -> str:
    return f"checkpoint-{step:09d}.pt"


def write(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a state (tensors and plain values only) as folder/checkpoint-STEP.pt with its SHA-256 beside it, and thin older
    ones. If the process is killed at any moment, each file with such a name is whole."""
    clean(folder)
    path = folder / name_of(step)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        # The sum goes first: a checkpoint without one would be refused, a sum without a checkpoint harms nobody.
        _write_text(path.with_name(path.name + ".sha256"), f"{_sha256(temporary)}  {path.name}\n")
        os.replace(temporary, path)
    except BaseException:
        clean(folder)  # on a full disk half a checkpoint would take the room that the record needs
        raise
    _sync(folder)
    sizes = {at: file.stat().st_size for at, file in list_checkpoints(folder).items()}
    for old in sorted(set(sizes) - steps_to_keep(sizes)):
        (folder / name_of(old)).unlink()
        (folder / (name_of(old) + ".sha256")).unlink(missing_ok=True)
    return path


def steps_to_keep(sizes: dict[int, int]) -> set[int]:
    """Which of the checkpoints (step -> bytes) to keep: the newest two, and of the older ones fewer with age.

    While there are too many, the one whose neighbours are closest for its age is removed. So what a fork must train again is
    at most a share of the steps since then, and a fork near the start trains from step 1.
    """
    steps = sorted(sizes)
    while (older := steps[:-NEWEST]) and (len(older) > OLDER or sum(sizes[step] for step in older) > BUDGET):
        before = dict(zip(older, [0, *older], strict=False))
        after = dict(itertools.pairwise(steps))
        steps.remove(min(older, key=lambda step: (after[step] - before[step]) / (steps[-1] - step)))
    return set(steps)


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step, the newest first. read() checks whether one is whole."""
    named = ((checkpoint_step(path), path) for path in folder.glob("checkpoint-*.pt"))
    return dict(sorted(((step, path) for step, path in named if step is not None), reverse=True))


def restore_newest(
    folder: Path, step: int, restore: Callable[[dict[str, Any]], T], tell: Callable[[str], None]
) -> T | None:
    """What restore() returns for the newest checkpoint at or before a step that it accepts; None if it accepts none.

    Damaged ones, and those that restore() refuses, are skipped, and tell() gets the reason.
    """
    for at, path in list_checkpoints(folder).items():
        if at > step:
            continue
        try:
            return restore(read(path))
        except Exception as error:  # a file of another run or version may hold anything, and torch raises anything
            own = isinstance(error, ValueError) and path.name in str(error)
            problem = str(error) if own else f"{path.name} does not fit this run ({type(error).__name__}: {error})"
            tell(f"{first_line(problem)[:300]}; it is skipped")
    return None


def read(path: Path) -> dict[str, Any]:
    """The state that write() was given. ValueError if the file has changed since, from which torch would load wrong
    numbers."""
    beside = path.with_name(path.name + ".sha256")
    try:
        wanted, file = first_word(beside), open_plain(path)
    except (OSError, ValueError):
        raise ValueError(
            f"no checkpoint at {path} with its .sha256 beside it; give one that `checkpoint` wrote"
        ) from None
    with file:
        if wanted != hashlib.file_digest(file, "sha256").hexdigest():
            raise ValueError(
                f"{path.name} is damaged: its SHA-256 is not the one written beside it; use an older checkpoint"
            )
        if may_unpack_larger(file):  # a hostile file may have the right SHA-256
            raise ValueError(f"{path.name} unpacks to more bytes than it has; do not trust this file")
        file.seek(0)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state


def may_unpack_larger(file: BufferedReader) -> bool:
    """Whether a file may unpack to more bytes than it has. Those of torch.save cannot: each part is in the archive once, not
    compressed."""
    try:
        parts = zip_parts(file)
    except ValueError:
        return True
    return sum(part.file_size for part in parts) > os.fstat(file.fileno()).st_size


def clean(folder: Path) -> None:
    """Remove the unfinished files of a killed writer."""
    for leftover in folder.glob("checkpoint-*.tmp"):
        leftover.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
