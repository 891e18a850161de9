"""Rows that a run's experts multiply where their tokens come from 1, 2 and 4 devices: a measurement by several ranks (`bench ranks`) in
processes of their own, whose output file in the run's folder holds the results, shows the progress and is the lock.

Shapes: m numbers of devices measured so far, L layers; 3: the least, the mean and the most of the experts.
"""

import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.measuring import earlier_file, earlier_in, read_printed, start_bench, stop_measuring

NAME = "devices.jsonl"
DEVICES = (1, 2, 4)
MOST = 1e15  # rows, or rows a second
STARTING = "The ranks start"


class OnDevices(NamedTuple):
    """What was measured so far.

    devices_m (m,); own_mL3, all_mL3 (m, L, 3): the rows of an expert in a step, from one device's batch and from all; per_second_mL (m, L): rows
    a second through the experts of one device, forward and backward, NaN until that is measured. k_L, experts_L (L,), tokens, step: what it was
    measured of. wanted: the numbers of devices that there will be; problem: why the latest measurement ended early, "" if it did not;
    earlier: this is the whole result before it; progress: how far the latest is, from 0 to 1, and in words.
    """

    devices_m: NDArray[np.int64]
    own_mL3: NDArray[np.float64]
    all_mL3: NDArray[np.float64]
    per_second_mL: NDArray[np.float64]
    k_L: NDArray[np.int64]
    experts_L: NDArray[np.int64]
    tokens: int
    step: int
    wanted: tuple[int, ...]
    running: bool
    problem: str
    pid: int
    machine: str
    earlier: bool = False
    progress: tuple[float, str] = (0.05, STARTING)

    @property
    def done(self) -> bool:
        """Whether all of it is there."""
        return (
            bool(self.wanted)
            and self.devices_m.tolist() == [*self.wanted]
            and bool(np.isfinite(self.per_second_mL).all())
        )


def how_far(latest: OnDevices) -> tuple[float, str]:
    """How far a measurement is, from 0 to 1, and in words."""
    done, of = len(latest.devices_m), len(latest.wanted)
    if not latest.tokens:
        return 0.05, STARTING
    of_step = f" after step {latest.step:,}" if latest.step else ""
    words = f"Counting rows{of_step}: {done} of {of} done" if done < of else "Timing the products"
    return min(1.0, (1 + done) / (of + 2)), words


def nothing_on_devices(layers: int = 0) -> OnDevices:
    """Nothing measured."""
    counts, none_L = np.empty((0, layers, 3)), np.zeros(layers, np.int64)
    return OnDevices(
        np.empty(0, np.int64), counts, counts, np.empty((0, layers)), none_L, none_L, 0, 0, (), False, "", 0, ""
    )


def devices_for(num_experts: int) -> list[int]:
    """The numbers of devices over which so many experts can be dealt evenly. ValueError if that is no more than one."""
    found = [devices for devices in DEVICES if num_experts % devices == 0]
    if len(found) < 2:
        raise ValueError(f"experts are dealt over 2 or 4 devices, so their number must be even, got {num_experts}")
    return found


def on_devices(folder: Path, layers: int) -> OnDevices:
    """The measurement of a run so far. A file that is not of as many layers, or is damaged, counts as none, with its problem, and the
    measurement in the other file is shown."""
    path = folder / NAME
    printed, nothing = read_printed(path), nothing_on_devices(layers)
    latest = readable(printed.latest, layers)
    before = readable(earlier_in(path), layers) if printed.earlier or not latest else None
    problem, cannot = printed.problem, "cannot be read; measure again"
    if printed.earlier and not before:
        problem = f"{earlier_file(path).name} {cannot}"
    if printed.latest and not latest:
        problem = f"{NAME} {cannot}"
    found = before or latest or nothing
    return found._replace(
        running=printed.running,
        problem=problem,
        pid=(latest or nothing).pid,
        earlier=found is before,
        progress=how_far(latest or nothing),
    )


def readable(events: list[dict[str, Any]], layers: int) -> OnDevices | None:
    """The events as arrays; None if there are none, or they do not fit, or cannot be."""
    with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError):
        return of_events(events, layers) if events else None
    return None


def of_events(events: list[dict[str, Any]], layers: int) -> OnDevices:
    """The events that `bench ranks --json` prints as arrays. LookupError, TypeError or ValueError if they do not fit, or cannot be."""
    found, own, all_, speeds = nothing_on_devices(layers), dict[int, Any](), dict[int, Any](), dict[int, Any]()
    for event in events:
        if event["event"] == "start":
            found = found._replace(pid=int(event["pid"]), wanted=tuple(map(number_of_devices, event["devices"])))
        elif event["event"] == "model":
            sizes = [np.array(event[name], np.int64).reshape(layers) for name in ("k", "experts")]
            tokens, step = int(event["tokens"]), int(event["step"])
            if (np.concatenate(sizes) < 1).any() or not 1 <= tokens < 2**31 or not 0 <= step < 2**53:
                raise ValueError("k, experts and tokens must be 1 or more")
            found = found._replace(
                k_L=sizes[0],
                experts_L=sizes[1],
                tokens=tokens,
                step=step,
                machine=str(event["machine"])[:200],
            )
        elif event["event"] == "rows":
            devices = number_of_devices(event["devices"])
            own[devices], all_[devices] = event["own"], event["all"]
        elif event["event"] == "speed":
            speeds[number_of_devices(event["devices"])] = event["rows_per_second"]
    many = sorted(own)
    return found._replace(
        devices_m=np.array(many, np.int64),
        own_mL3=counted([own[m] for m in many]).reshape(-1, layers, 3),
        all_mL3=counted([all_[m] for m in many]).reshape(-1, layers, 3),
        per_second_mL=counted([speeds.get(m, [math.nan] * layers) for m in many]).reshape(-1, layers),
    )


def number_of_devices(value: Any) -> int:
    """ValueError for a number of devices on which nothing is measured."""
    if value not in DEVICES:
        raise ValueError(f"devices must be one of {DEVICES}")
    return int(value)


def counted(values: Any) -> NDArray[np.float64]:
    """ValueError for what is neither a rate or number of rows, nor missing."""
    array = np.array(values, np.float64)
    if ((array < 0) | (array > MOST)).any():
        raise ValueError(f"numbers must be between 0 and {MOST:g}")
    return array


def start_on_devices(folder: Path) -> bool:
    """Start the measurement of a run; False if it is under way already."""
    return start_bench(folder / NAME, ["ranks", "--run", str(folder)])


def stop_on_devices(folder: Path) -> bool:
    """Stop a measurement that is under way, with its ranks; what it measured so far is kept. Returns whether all have ended."""
    return stop_measuring(folder / NAME)
