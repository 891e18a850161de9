"""A figure over the run as a GIF or an MP4: each frame is the figure at a recorded step."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.export.files import write
from moe_core.export.look import Look, check, laid_out, spec_of
from moe_core.export.stamp import caption_of, figure_facts
from moe_core.export.svg import to_png
from moe_core.figures.catalog import FIGURES
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.reading import last_step
from moe_core.runs.source import Source

FRAMES = 120  # most frames of an animation
LAST = 1.5  # seconds for which the last frame is shown
Progress = Callable[[int, int], None]


def animate(
    run: Source | SweepResults,
    name: str,
    out: str | os.PathLike[str],
    look: Look,
    seconds: float = 10.0,
    progress: Progress = lambda done, of: None,
) -> Path:
    """Write FILE.gif or FILE.mp4. MP4 needs imageio-ffmpeg, which is not among the requirements; without it, ValueError."""
    from moe_core.export import chosen

    path = Path(out)
    (name,) = chosen(run, [name])
    check(run, look)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"an animation's name must end in .gif or .mp4, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} in; make it first")
    if not 0.5 <= seconds <= 600:
        raise ValueError(f"an animation takes between 0.5 and 600 seconds, got {seconds:g}")
    encode = gif if path.suffix.lower() == ".gif" else mp4
    if encode is mp4:
        ffmpeg()
    if isinstance(run, SweepResults):
        raise ValueError(f"{name} shows how runs ended, and does not change over steps; export it as a picture")
    steps = steps_of(run, name)
    if not len(steps):
        raise ValueError(
            f"an animation needs recorded steps, and {run.id} has none yet; let it train, then export again"
        )
    return write(
        path,
        encode(list(frames(run, name, steps, look, progress)), seconds, figure_facts(run, name, look)),
    )


def steps_of(run: Source, name: str) -> np.ndarray[Any, Any]:
    """The steps of the frames, all recorded: those of the snapshots if the figure shows a snapshot, else evenly spread."""
    shots = np.asarray(run.snapshots(), np.int64)
    if FIGURES[name].page not in ("live", "compare") and len(shots):
        steps = shots
    else:
        steps = np.arange(1, last_step(run) + 1)
    if len(steps) > FRAMES:
        steps = steps[np.unique(np.round(np.linspace(0, len(steps) - 1, FRAMES)).astype(int))]
    return steps


def frames(run: Source, name: str, steps: np.ndarray[Any, Any], look: Look, progress: Progress) -> Iterator[Any]:
    """A picture a step, with the step below it."""
    from PIL import Image

    looks = [replace(look, step=step, caption=True) for step in steps.tolist()]
    specs = [spec_of(run, name, here) for here in looks]
    hold_axes([spec["layout"] for spec, _ in specs])
    for i, (here, (spec, zoom)) in enumerate(zip(looks, specs, strict=True)):
        progress(i, len(steps))
        sheet = laid_out(spec, zoom, name, here, caption_of(figure_facts(run, name, here)))
        picture = Image.open(io.BytesIO(to_png(sheet, scale=look.scale * zoom))).convert("RGB")
        # Both encoders want every frame of one size, and MP4 an even one.
        even = (picture.width // 2 * 2, picture.height // 2 * 2)
        yield picture.crop((0, 0, *even))
    progress(len(steps), len(steps))


def hold_axes(layouts: Sequence[dict[str, Any]]) -> None:
    """Give every frame the same axes, wide enough for all: with axes of their own, a bar that grows could seem to shrink."""
    for name in {name for layout in layouts for name in layout if re.fullmatch(r"[xy]axis\d*", name)}:
        axes = [layout[name] for layout in layouts if "range" in layout.get(name, {})]
        if not axes:
            continue
        widest = dict(max(axes, key=lambda axis: abs(axis["range"][1] - axis["range"][0])))
        low, high = min(min(axis["range"]) for axis in axes), max(max(axis["range"]) for axis in axes)
        rising = widest["range"][0] <= widest["range"][1]
        held = {word: widest[word] for word in ("tickvals", "ticktext", "dtick", "nticks") if word in widest}
        for axis in axes:
            axis |= held | {"range": [low, high] if rising else [high, low]}


def gif(pictures: list[Any], seconds: float, facts: dict[str, str]) -> bytes:
    """A GIF in one palette, taken from first, middle and last frame, so that no colour flickers."""
    from PIL import Image

    width, height = pictures[0].size
    some = [pictures[0], pictures[len(pictures) // 2], pictures[-1]]
    together = Image.new("RGB", (width, height * len(some)))
    for i, picture in enumerate(some):
        together.paste(picture, (0, i * height))
    palette = together.quantize(colors=255, dither=Image.Dither.NONE)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    each = max(20, round(1000 * seconds / len(pictures) / 10) * 10)  # a GIF counts in hundredths of a second
    times = [each] * (len(flat) - 1) + [max(each, round(1000 * LAST))]
    file = io.BytesIO()
    comment = "; ".join(f"{name}: {value}" for name, value in facts.items()).encode()
    flat[0].save(
        file, "GIF", save_all=True, append_images=flat[1:], duration=times, loop=0, optimize=False, comment=comment
    )
    return file.getvalue()


def ffmpeg() -> str:
    """The path of ffmpeg, which makes an MP4; ValueError if it is not installed."""
    import shutil

    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        program = shutil.which("ffmpeg")
    if not program:
        raise ValueError("an MP4 needs ffmpeg, which is not installed; `pip install imageio-ffmpeg`, or write a .gif")
    return program


def mp4(pictures: list[Any], seconds: float, facts: dict[str, str]) -> bytes:
    """H.264, in a form that every browser plays."""
    import subprocess
    import tempfile

    rate = max(1.0, len(pictures) / seconds)
    width, height = pictures[0].size
    metadata = [
        f"{k.lower()}={v}"
        for k, v in (("Title", facts["Title"]), ("Comment", "; ".join(f"{k}: {v}" for k, v in facts.items())))
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made.mp4"
        words = [
            ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate:.6g}", "-i", "-",
            "-an", "-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-fflags", "+bitexact",
            "-flags:v", "+bitexact", "-metadata", metadata[0], "-metadata", metadata[1], str(file),
        ]  # fmt: skip
        data = b"".join(picture.tobytes() for picture in pictures)
        process = subprocess.run(words, input=data, capture_output=True, check=False)
        if process.returncode:
            raise ValueError(f"ffmpeg could not make the MP4: {process.stderr.decode(errors='replace').strip()[-200:]}")
        return file.read_bytes()
