"""How much a run's held-out loss rises without each of its experts: a small file beside the record. No torch.

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
from moe_core.runs.database import StoreError
from moe_core.runs.limits import SIDE, read_json, read_side

NAME = "ablation.json"
KEYS = ("step", "loss", "rise", "share")


class Ablation(NamedTuple):
    """Measured with the weights of one step on the held-out split. loss, and its rise without each expert, in nats.

    rise_LE is NaN for an expert that cannot be left out; share_LE are the shares of all selections on the same split.
    """

    step: int
    loss: float
    rise_LE: NDArray[np.float64]
    share_LE: NDArray[np.float64]


def write_ablation(folder: Path, ablation: Ablation) -> Path:
    """Write folder/ablation.json, replacing an earlier one. If the process is killed, either the old or the new file is
    there, whole."""
    values = (ablation.step, ablation.loss, _plain(ablation.rise_LE), _plain(ablation.share_LE))
    path, temporary = folder / NAME, folder / (NAME + ".tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "x") as file:
        json.dump(with_sum(dict(zip(KEYS, values, strict=True))), file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read_ablation(folder: Path) -> Ablation | None:
    """What write_ablation wrote, or None if there is none. StoreError if the file is not one."""
    try:
        record: Any = without_sum(read_json(read_side(folder / NAME, SIDE)), KEYS)
        rise_LE, share_LE = _array(record["rise"]), _array(record["share"])
        if rise_LE.ndim != 2 or rise_LE.shape != share_LE.shape:
            raise ValueError("its tables differ in size")
        return Ablation(int(record["step"]), float(record["loss"]), rise_LE, share_LE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreError(f"{NAME} of {folder.name} cannot be read ({error}); run `ablate` again") from None


def _plain(values_LE: NDArray[np.float64]) -> list[list[float | None]]:
    """The rows as lists, with None in place of NaN, which JSON does not have."""
    return [[value if math.isfinite(value) else None for value in row] for row in values_LE.tolist()]


def _array(rows: Any) -> NDArray[np.float64]:
    return np.array([[math.nan if value is None else float(value) for value in row] for row in rows], np.float64)
