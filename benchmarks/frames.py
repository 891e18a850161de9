"""How long the server works on one frame of Live: `python benchmarks/frames.py`.

A viewer of a page of 1280 x 800 px looks at a run that gets ten more steps between two frames: of 2 layers of 16 experts,
48 of 128, and 61 of 256. Median, longest and bytes of a frame, and how long the layers' two figures took of it: to read
and to draw. Prints one JSON line.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.viewer import Viewer
from moe_core.figures.catalog import FIGURES, offered, on_page
from moe_core.figures.theme import LIGHT
from moe_core.runs import Batch, open_run
from moe_core.runs.source import At
from tests.figures.many_layers import rows_of, start_layers

SHAPES = {"2x16": [16] * 2, "48x128": [128] * 48, "61x256": [256] * 61}
SIZES = {"layers": (608, 404), "layers_spread": (328, 404), "balance_now": (328, 300), "loss": (328, 200)}


def asked(figures: list[str]) -> str:
    """What the page says of itself: its charts that stand in the window, as wide as they do there."""
    return json.dumps({"theme": "light", "page": "live", "layer": 1, "sizes": {name: SIZES.get(name, (608, 300)) for name in figures}})  # fmt: skip


def measure(folder: Path, experts_L: list[int], steps: int, frames: int) -> dict[str, float]:
    """A run of `steps` steps, then `frames` frames with ten more steps before each."""
    writer, rows = start_layers(folder, experts_L), rows_of(experts_L, steps + 10 * frames)
    for first in range(0, steps, 10):
        writer.commit(Batch(first + 1, rows[first : first + 10], state="training"))
    feed, viewer = Feed(open_run(folder)), Viewer()
    viewer.feed = feed
    viewer.hear(asked(on_page(feed, "live")))
    began = time.perf_counter()
    viewer.frame()
    took, sizes, first = list[float](), list[int](), time.perf_counter() - began
    for step in range(steps, steps + 10 * frames, 10):
        writer.commit(Batch(step + 1, rows[step : step + 10], state="training"))
        feed.looked, began = 0.0, time.perf_counter()
        frame = viewer.frame()
        took.append(time.perf_counter() - began)
        sizes.append(len(frame or b""))
    writer.finish("finished")
    return {
        "first_ms": round(1000 * first),
        "median_ms": round(1000 * statistics.median(took), 1),
        "longest_ms": round(1000 * max(took), 1),
        "kb": round(statistics.median(sizes) / 1000, 1),
        "layers_ms": round(1000 * layers_seconds(feed), 1),
        "rows_mb": round(feed.recent.nbytes / 1e6, 1),
    }


def layers_seconds(feed: Feed) -> float:
    """The median time that reading and drawing the figures over all layers takes; 0 where they are not offered."""
    took = []
    for _ in range(9):
        began = time.perf_counter()
        for name in ("layers", "layers_spread"):
            if offered(feed, name):
                entry = FIGURES[name]
                entry.draw.spec(**entry.read(feed, At(1)), theme=LIGHT, size=SIZES[name])
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few frames of the two smaller runs, to see that it works")
    quick = parser.parse_args(arguments).quick
    shapes = {"2x16": SHAPES["2x16"], "6x16": [16] * 6} if quick else SHAPES
    with tempfile.TemporaryDirectory() as runs:
        results = {
            name: measure(Path(runs) / name, experts_L, 60 if quick else 400, 3 if quick else 30)
            for name, experts_L in shapes.items()
        }
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
