"""How a run of a million steps opens and zooms: `python benchmarks/long_run.py --steps 1000000`.

Writes a synthetic run (balanced, with one collapse of three steps) without training, then reads it as the dashboard does:
the time to the first frame, to a whole history, of a zoomed range, and the memory that the reader holds.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.live import Viewer
from moe_core.runs import Batch, create_run, open_run
from moe_core.schema import Config, Knobs, layout

BLOCK = 25  # steps a block: a flush every tenth of a second at 250 steps/s
COLLAPSE = 3  # steps that the collapse lasts


def write(folder: Path, config: Config, steps: int) -> int:
    """A whole run of `steps` steps; returns the step at which its collapse begins."""
    columns = layout(config.layers, config.num_experts)
    width = sum(column.width for column in columns)
    rng = np.random.default_rng(0)
    # One stretch of noise, written again and again: to draw a million rows afresh would take longer than to write them.
    noise = rng.normal(1.0, 0.05, (64 * BLOCK, width)).astype(np.float32)
    probe = {"tokens": np.zeros(256, np.uint8)}
    writer = create_run(folder, config, Knobs(), probe=probe)
    writer.db.execute("PRAGMA synchronous = OFF")  # this file need not survive a crash
    at = int(0.37 * steps)
    loads = [column for column in columns if column.stat in ("load", "importance", "counts")]
    for first in range(1, steps + 1, BLOCK):
        rows = noise[(first // BLOCK) % 64 * BLOCK :][: min(BLOCK, steps + 1 - first)]
        if first <= at + COLLAPSE and first + BLOCK > at:
            rows = rows.copy()
            for row in range(max(at, first) - first, min(at + COLLAPSE, first + BLOCK) - first):
                for column in loads:
                    rows[row, column.start : column.start + column.width] = 0.0
                    rows[row, column.start] = config.num_experts
        snapshots = (
            [
                (
                    first,
                    "probe",
                    {
                        "experts": np.zeros((config.layers, 256, 2), np.uint8),
                        "gates": np.full((config.layers, 256, 2), 0.5, np.float16),
                    },
                )
            ]
            if first % 5000 == 1
            else []
        )
        writer.commit(Batch(first, rows, snapshots=snapshots, state="training" if first == 1 else None))
    writer.finish("finished")
    return at


def read(folder: Path) -> dict[str, float]:
    """Measure what a page of that run costs: seconds, and the MB that the reader holds."""
    sizes = {"selection_share": [620, 335], "balance_now": [320, 335], "balance": [620, 224], "loss": [320, 224]}
    look = {"theme": "light", "page": "live", "layer": 0, "sizes": sizes}

    def frame(**more: object) -> float:
        viewer.hear(json.dumps(look | more))
        start = time.perf_counter()
        viewer.frame()
        return time.perf_counter() - start

    began = time.perf_counter()
    feed = Feed(open_run(folder, limit=0.25))
    viewer = Viewer()
    viewer.feed = feed
    frame()
    results = {"first_frame_s": time.perf_counter() - began}
    while feed.behind:
        feed.catch_up()
    results["whole_s"] = time.perf_counter() - began
    results["whole_frame_s"] = frame(theme="dark")
    steps, cv = feed.history("cv_load", 0, bins=300)
    results["highest_cv"], results["rows_drawn"] = float(cv.max()), len(steps)
    last = feed.last
    for share in (0.5, 0.1, 0.01, 0.001):
        low = int(0.37 * last - share * last / 2)
        span = [low, low + int(share * last)]
        results[f"zoom_{share}_s"], results[f"zoom_{share}_again_s"] = frame(span=span), frame(span=span, theme="dark")
    results["past_step_s"] = frame(step=last // 3)
    held = [a.nbytes for s in feed.series.values() for a in (s.steps, s.values)] + [
        r.nbytes for r in feed._ranges.values()
    ]
    results["held_MB"] = sum(held) / 1e6
    feed.run.close()
    return {name: round(float(value), 3) for name, value in results.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="5,000 steps, to see that it works")
    parser.add_argument("--run", type=Path, help="a run that was written before, to be read again")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run or Path(scratch) / "long"
        began = time.perf_counter()
        if not (folder / "run.db").exists():
            write(folder, Config(), 5_000 if given.quick else given.steps)
        results = {"written_s": time.perf_counter() - began, "MB": (folder / "run.db").stat().st_size / 1e6}
        print(json.dumps({name: round(value, 2) for name, value in results.items()}))
        print(json.dumps(read(folder)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
