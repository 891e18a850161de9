"""How a long run is written, opens and zooms: `python benchmarks/long_run.py --steps 1000000`, or of many layers
`python benchmarks/long_run.py --layers 48 --experts 128 --steps 20000`.

Writes a synthetic run (balanced, with one collapse of three steps) without training, then reads it as the dashboard does: what
a step takes to write, on the disk and to read, the time to the first frame, to a whole history, of a zoomed range, of a past step and of
another layer, and the memory that the reader holds. The selections are drawn at random; importance and load are as noisy as those
of a run, so that they pack as badly. What a million steps take is told from a step, by `of_a_million`.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.benchmarks.results import check_place, keep
from moe_core.commands.common import count_flag
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.viewer import Viewer
from moe_core.runs import Batch, RunWriter, begin, create_run, open_run
from moe_core.runs.estimate import CELL
from moe_core.schema import Config, Knobs, layout

BLOCK = 25  # steps a block, as at 250 steps/s and ten commits a second; a trainer that nobody watches makes larger ones
COLLAPSE = 3  # steps that the collapse lasts
MILLION = 1_000_000
DRAWN = 16 << 20  # bytes of rows that are drawn, and then written again and again: drawing takes longer than writing


def drawn(config: Config, block: int) -> np.ndarray:
    """(n, C) rows as a balanced run has them; n is a multiple of the block."""
    columns, rng = layout(config.layers, config.num_experts), np.random.default_rng(0)
    width = sum(column.width for column in columns)
    steps = block * max(2, min(64, DRAWN // (4 * width * block)))
    rows = rng.normal(1.0, 0.05, (steps, width)).astype(np.float32)
    fair = config.tokens * Knobs().k / config.num_experts
    for column in columns:
        own = rows[:, column.start : column.start + column.width]
        if column.stat == "counts":
            own[:] = rng.poisson(fair, own.shape)
        elif column.stat in ("load", "importance"):
            own[:] = fair * rng.gamma(20, 1 / 20, own.shape)
    return rows


def batches(config: Config, steps: int, block: int) -> Iterator[Batch]:
    """All that a trainer would commit. The collapse begins after 37 % of the steps."""
    rows_of_all, at = drawn(config, block), int(0.37 * steps)
    loads = [c for c in layout(config.layers, config.num_experts) if c.stat in ("load", "importance", "counts")]
    shape = (config.layers, 256, 2)
    probe = {"experts": np.zeros(shape, np.uint8), "gates": np.full(shape, 0.5, np.float16)}
    many = len(rows_of_all) // block
    for first in range(1, steps + 1, block):
        rows = rows_of_all[(first // block) % many * block :][: min(block, steps + 1 - first)]
        if first <= at + COLLAPSE and first + block > at:
            rows = rows.copy()
            for row in range(max(at, first) - first, min(at + COLLAPSE, first + block) - first):
                for column in loads:
                    rows[row, column.start : column.start + column.width] = 0.0
                    rows[row, column.start] = config.num_experts
        snapshots = [(first, "probe", probe)] if first % 5000 == 1 else []
        yield Batch(first, rows, snapshots=snapshots, state="training" if first == 1 else None)


def write(folder: Path, config: Config, steps: int, block: int) -> dict[str, float]:
    """A whole run; what a step takes to write, and on the disk."""
    writer: RunWriter = create_run(folder, config, Knobs(), probe={"tokens": np.zeros(256, np.uint8)})
    writer.db.execute("PRAGMA synchronous = OFF")  # this file need not survive a crash
    began, busy = time.perf_counter(), time.process_time()
    for batch in batches(config, steps, block):
        writer.commit(batch)
    busy, took = time.process_time() - busy, time.perf_counter() - began
    writer.finish("finished")
    size = (folder / "run.db").stat().st_size
    return {
        "bytes_per_step": size / steps,
        "bytes_estimated": CELL * sum(column.width for column in layout(config.layers, config.num_experts)),
        "write_ms_per_step": 1000 * took / steps,
        "write_cpu_ms_per_step": 1000 * busy / steps,
    }


def read(folder: Path) -> dict[str, float]:
    """What a page of that run costs: seconds, and the MB that the reader holds."""
    sizes = {"selection_share": [620, 335], "balance_now": [320, 335], "balance": [620, 224], "loss": [320, 224]}
    look = {"theme": "light", "page": "live", "layer": 0, "sizes": sizes}

    def frame(**more: object) -> float:
        viewer.hear(json.dumps(look | more))
        start = time.perf_counter()
        viewer.frame()
        return time.perf_counter() - start

    began = now()
    feed = Feed(open_run(folder, limit=0.25))
    viewer = Viewer()
    viewer.feed = feed
    frame()
    results = spent("first_frame", began) | {"behind": feed.behind}
    results |= taken_in("whole", feed, began)
    results["whole_frame_s"] = frame(theme="dark")
    steps, cv = feed.history("cv_load", 0, bins=300)
    results["highest_cv"], results["rows_drawn"] = float(cv.max()), len(steps)
    last = feed.last
    for share in (0.5, 0.1, 0.01, 0.001):
        low = int(0.37 * last - share * last / 2)
        span = [low, low + max(1, int(share * last))]
        results[f"zoom_{share}_s"], results[f"zoom_{share}_again_s"] = frame(span=span), frame(span=span, theme="dark")
    results["past_step_s"] = frame(step=last // 3)
    other = len(feed.description.layers) - 1
    began = now()
    frame(layer=other)
    results |= spent("other_layer", began) | {"other_layer_behind": feed.behind}
    results |= taken_in("other_layer_whole", feed, began)
    held = [one.size for one in feed.series.values()] + [rows.nbytes for rows in feed._ranges.values()]
    results["held_MB"] = (sum(held) + feed.recent.nbytes) / 1e6
    feed.run.close()
    return results


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def spent(name: str, began: tuple[float, float]) -> dict[str, float]:
    """Seconds since then, and how many of them the processor was busy for this process: beside other programs only those compare."""
    wall, busy = now()
    return {f"{name}_s": wall - began[0], f"{name}_cpu_s": busy - began[1]}


def taken_in(name: str, feed: Feed, began: tuple[float, float]) -> dict[str, float]:
    """The same until every history that the page asked for is whole."""
    while feed.behind:
        feed.catch_up()
    return spent(name, began)


def of_a_million(steps: int, results: dict[str, float]) -> dict[str, float]:
    """What a million such steps take by what these took: bytes and the reading of a whole history grow with the steps, frames do not."""
    found = {"million_GB": results["bytes_per_step"] * MILLION / 1e9}
    for name, frame, behind in (
        ("whole", "first_frame", "behind"),
        ("other_layer_whole", "other_layer", "other_layer_behind"),
    ):
        if results[behind]:  # what the frame has not taken in of the past
            past = results[f"{name}_cpu_s"] - results[f"{frame}_cpu_s"]
            found[f"million_{name}_cpu_s"] = past / (steps * results[behind]) * MILLION
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=count_flag, default=MILLION)
    parser.add_argument("--layers", type=count_flag, default=Config.layers)
    parser.add_argument("--experts", type=count_flag, default=Config.num_experts)
    parser.add_argument("--block", type=count_flag, default=BLOCK, help="steps a commit; 1: as of a run of slow steps")
    parser.add_argument(
        "--together", action="store_true", help="all layers in one piece, as earlier versions stored them"
    )
    parser.add_argument("--quick", action="store_true", help="5,000 steps, to see that it works")
    parser.add_argument("--run", type=Path, help="a run that was written before, to be read again")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="add the figures to this file's, with the machine described"
    )
    given = parser.parse_args(arguments)
    if given.out:
        check_place(given.out)
    steps = min(given.steps, 5_000) if given.quick else given.steps
    config = Config(layers=given.layers, num_experts=given.experts)
    if given.together:
        begin.APART = 1 << 30
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run or Path(scratch) / "long"
        written = {} if (folder / "run.db").exists() else write(folder, config, steps, given.block)
        results: dict[str, Any] = written | read(folder)
    results["peak_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    results |= of_a_million(steps, results) if written and steps < MILLION else {}
    sizes = {
        "steps": steps,
        "layers": given.layers,
        "experts": given.experts,
        "block": given.block,
        "together": given.together,
    }
    row = sizes | {name: float(f"{value:.4g}") for name, value in results.items()}
    print(json.dumps(row))
    if given.out:
        before = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
        keep(given.out, [one for one in before if any(one.get(name) != sizes[name] for name in sizes)] + [row])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
