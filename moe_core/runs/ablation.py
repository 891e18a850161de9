"""What a run loses without each of its experts: a small file beside its record, written whole. No torch.

Shapes: L layers, E experts.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.codec import with_sum, without_sum
from moe_core.runs.database import StoreError, is_plain

NAME = "ablation.json"


class Ablation(NamedTuple):
    """Measured with the weights of one step on the held-out split. loss, and its rise without each expert, in nats.

    rise_LE is NaN for an expert that cannot be left out; share_LE are the shares of all selections on the same split.
    """

    step: int
    loss: float
    rise_LE: NDArray[np.float64]
    share_LE: NDArray[np.float64]


def write_ablation(folder: Path, found: Ablation) -> Path:
    """As folder/ablation.json, in the place of an earlier one; killed at any moment, one of the two is there, whole."""
    told = {"step": found.step, "loss": found.loss, "rise": _plain(found.rise_LE), "share": _plain(found.share_LE)}
    path, temporary = folder / NAME, folder / (NAME + ".tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "x") as file:
        json.dump(with_sum(told), file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read_ablation(folder: Path) -> Ablation | None:
    """What write_ablation wrote, or None if there is none. StoreError if the file is not one."""
    try:
        if os.path.lexists(folder / NAME) and not is_plain(folder / NAME):
            raise ValueError("it is no plain file")
        told: Any = without_sum(json.loads((folder / NAME).read_text()), ("step", "loss", "rise", "share"))
        rise_LE, share_LE = _array(told["rise"]), _array(told["share"])
        if rise_LE.ndim != 2 or rise_LE.shape != share_LE.shape:
            raise ValueError("its tables are not of one size")
        return Ablation(int(told["step"]), float(told["loss"]), rise_LE, share_LE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"{NAME} of {folder.name} cannot be read ({error}); run `ablate` again") from None


def _plain(values_LE: NDArray[np.float64]) -> list[list[float | None]]:
    """JSON has no NaN: null stands for it."""
    return [[value if math.isfinite(value) else None for value in row] for row in values_LE.tolist()]


def _array(rows: Any) -> NDArray[np.float64]:
    return np.array([[math.nan if value is None else float(value) for value in row] for row in rows], np.float64)
