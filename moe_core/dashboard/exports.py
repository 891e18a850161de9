"""What the Export page does: a preview at exact pixels, files made beside the page, and a download when they are there.

Long work runs in a thread of its own with its own reader of the run; the page looks at it twice a second and can stop
it. Each browser tab has its own work, so no tab waits for another.
"""

import base64
import io
import shutil
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from moe_core.dashboard import controls
from moe_core.export import FORMATS, Look, chosen, export, rendered
from moe_core.export.animation import animate
from moe_core.export.files import write
from moe_core.export.look import check, size_of
from moe_core.export.replay import replay
from moe_core.export.report import write_report
from moe_core.figures.catalog import FIGURES
from moe_core.figures.theme import THEMES
from moe_core.runs import Run, open_run

SIZES = {
    "Paper column, 480 × 300": (480, 300),
    "Paper page, 900 × 500": (900, 500),
    "Slide, 960 × 540": (960, 540),
    "Own size": None,
}
MIME = {
    "png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf", "html": "text/html", "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet", "gif": "image/gif", "mp4": "video/mp4", "zip": "application/zip",
}  # fmt: skip


class Stopped(Exception):
    """Raised inside the work when a person has cancelled it."""


class Work:
    """One piece of long work, seen by the page and done by a thread."""

    def __init__(self, name: str, run: Path, make: Callable[[Run, Path, Callable[[int, int], None]], Path]) -> None:
        self.name, self.path, self.make = name, run, make
        self.done, self.of, self.error = 0, 1, ""
        self.file: Path | None = None
        self.stop = threading.Event()
        self.folder = Path(tempfile.mkdtemp(prefix="moescope-"))
        weakref.finalize(self, shutil.rmtree, self.folder, True)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def progress(self, done: int, of: int) -> None:
        if self.stop.is_set():
            raise Stopped
        self.done, self.of = done, max(of, 1)

    def run(self) -> None:
        try:
            run = open_run(self.path)
            try:
                self.file = self.make(run, self.folder, self.progress)
            finally:
                run.close()
        except Stopped:
            self.error = "Cancelled. Nothing was kept."
        except (ValueError, OSError) as error:
            self.error = str(error)
        except Exception as error:
            # The page would wait for ever for a thread that died without a word.
            self.error = f"This did not work: {type(error).__name__}: {error}"
            raise

    @property
    def busy(self) -> bool:
        return self.thread.is_alive()


def page() -> None:
    """The Export page: choices left, preview right, long work below. Without a run, the cards that start one."""
    run = controls.frame()
    if run is None:
        return
    try:
        body(run)
    finally:
        run.close()


def body(run: Run) -> None:
    if not run.steps()[1]:
        st.info("This run has no recorded step yet. Its figures can be exported as soon as it trains.")
        return
    left, right = st.columns([1, 2], gap="large")
    with left:
        figures, format, look = choices(run)
    with right:
        preview(run, figures, format, look)
    st.divider()
    documents(run, look)


def choices(run: Run) -> tuple[list[str], str, Look]:
    """What to export, and how it is to look."""
    names = chosen(run, None)
    asked = [name for name in st.query_params.get("figures", "").split(",") if name in names]
    key = f"export-figures-{run.id}"
    if key not in st.session_state:
        st.session_state[key] = asked or names[:1]

    def link() -> None:
        st.query_params["figures"] = ",".join(st.session_state[key])

    figures = st.multiselect("Figures", names, key=key, format_func=lambda name: FIGURES[name].title, on_change=link)
    format = (
        st.segmented_control("Format", FORMATS, default="png", required=True, key="export-format", wrap=True) or "png"
    )
    size_name = st.selectbox("Size", list(SIZES), key="export-size")
    size = SIZES[size_name]
    if size is None:
        width, height = st.columns(2)
        size = (
            int(width.number_input("Width, px", 120, 8000, 640, key="export-width")),
            int(height.number_input("Height, px", 120, 8000, 400, key="export-height")),
        )
    theme_at, font_at, scale_at = st.columns(3)
    theme = theme_at.selectbox("Theme", list(THEMES), key="export-theme")
    font = font_at.number_input("Font, px", 6, 48, 13, key="export-font")
    scale = scale_at.number_input("PNG scale", 0.5, 8.0, 2.0, 0.5, key="export-scale")
    title = st.text_input("Title", placeholder="the figure's own", key="export-title")
    layer = named(run, "layer", run.config.layers) or 1
    if run.config.layers > 1:
        layer = (
            st.segmented_control(
                "Layer",
                list(range(1, run.config.layers + 1)),
                default=layer,
                required=True,
                key=f"export-layer-{run.id}",
            )
            or layer
        )
    bare_at, caption_at = st.columns(2)
    bare = bare_at.checkbox("No title", key="export-bare")
    caption = caption_at.checkbox("Caption", key="export-caption")
    step = named(run, "step", run.steps()[1])
    look = Look(size, float(scale), theme, "" if bare else title or None, float(font), caption, layer - 1, step)
    return figures, format, look


def named(run: Run, name: str, highest: int) -> int | None:
    """The layer or step that the link names, counted from 1; None where it names none that there is."""
    text = st.query_params.get(name, "")
    return int(text) if text.isdigit() and 1 <= int(text) <= highest else None


def preview(run: Run, figures: list[str], format: str, look: Look) -> None:
    """The first figure as it will be, its size in pixels and bytes, and the download of one or all."""
    if not figures:
        st.info("Choose a figure at the left.")
        return
    try:
        check(run, look)
        picture = made(str(run.path), run.steps()[1], figures[0], "png", look)
        file = picture if format == "png" else made(str(run.path), run.steps()[1], figures[0], format, look)
    except ValueError as error:
        st.error(str(error))
        return
    width, height = size_of(figures[0], look)
    # One CSS pixel of the page for each of the figure's, whatever the PNG's scale.
    data = base64.b64encode(picture).decode()
    alt = FIGURES[figures[0]].title
    st.html(
        f'<div style="overflow:auto"><img alt="{alt}" style="width:{width}px;max-width:none" src="data:image/png;base64,{data}"></div>'
    )
    pixels = f", {round(width * look.scale):,} × {round(height * look.scale):,} pixels" if format == "png" else ""
    when = "" if look.step is None else f" As it stood at step {look.step:,}."
    st.caption(f"{alt}: {width:,} × {height:,} px{pixels}, {kilobytes(len(file))} as {format}.{when}")
    name = f"{run.id}-{figures[0]}.{format}"
    if len(figures) == 1:
        st.download_button("Export", file, name, MIME[format], type="primary", key="export-one", on_click="ignore")
    else:
        task(
            f"Export {len(figures)} figures",
            run,
            f"figures-{format}",
            primary=True,
            make=folder_of(figures, format, look),
        )


@st.cache_data(max_entries=64, show_spinner="Drawing")
def made(path: str, last: int, name: str, format: str, look: Look) -> bytes:
    """One figure in one format; kept for as long as the run has no further step."""
    run = open_run(Path(path))
    try:
        return rendered(run, name, format, look)
    finally:
        run.close()


def folder_of(figures: list[str], format: str, look: Look) -> Callable[[Run, Path, Callable[[int, int], None]], Path]:
    """All files in one zip, dates left out so that the same files give the same bytes."""

    def make(run: Run, folder: Path, progress: Callable[[int, int], None]) -> Path:
        files = export(run, folder / "files", (format,), figures, look, progress)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
        return write(folder / f"{run.id}-figures.zip", packed.getvalue())

    return make


def documents(run: Run, look: Look) -> None:
    """Report, replay and animation: a button each, or its progress."""
    report, again, moving = st.columns(3, gap="large")
    with report:
        st.markdown("**Report**")
        st.caption("Settings, changes, every figure and table, samples of text.")
        kind = st.segmented_control(
            "Report as", ("html", "pdf"), default="html", required=True, key="report-kind", label_visibility="collapsed"
        )
        task("Make report", run, f"report-{kind}", make=lambda r, f, p: write_report(r, f / f"{r.id}-report.{kind}", p))
    with again:
        st.markdown("**Replay**")
        st.caption("One page that plays the run anywhere, without a server.")
        task("Make replay", run, "replay", make=lambda r, f, p: replay(r, f / f"{r.id}-replay.html", look.layer, p))
    with moving:
        st.markdown("**Animation**")
        st.caption("A figure over the run, with the size and theme chosen above.")
        name = st.selectbox(
            "Figure",
            chosen(run, None),
            key="animate-figure",
            index=1,
            format_func=lambda n: FIGURES[n].title,
            label_visibility="collapsed",
        )
        kind = st.segmented_control(
            "Animation as",
            ("gif", "mp4"),
            default="gif",
            required=True,
            key="animate-kind",
            label_visibility="collapsed",
        )
        task(
            "Make animation",
            run,
            f"animation-{name}-{kind}",
            make=lambda r, f, p: animate(r, name, f / f"{r.id}-{name}.{kind}", look, 10.0, p),
        )


def task(label: str, run: Run, key: str, make: Callable[..., Path], primary: bool = False) -> None:
    """A button; while its work is under way a bar and Cancel; then the file, or why there is none."""
    place = f"work-{key}-{run.id}"
    path = run.path

    def begin() -> None:
        st.session_state[place] = Work(label, path, make)

    # Only work under way is looked at again by itself.
    busy = place in st.session_state and st.session_state[place].busy

    @st.fragment(run_every=0.5 if busy else None, key=f"watch-{place}")
    def watch() -> None:
        work: Work | None = st.session_state.get(place)
        if (work is not None and work.busy) != busy:
            st.rerun()  # it began or ended: the fragment's clock is set by the page
        if work is not None and busy:
            st.progress(min(1.0, work.done / work.of), f"{work.done} of {work.of}")
            st.button("Cancel", key=f"cancel-{place}", on_click=work.stop.set, disabled=work.stop.is_set())
            return
        st.button(label, key=f"begin-{place}", on_click=begin, type="primary" if primary else "secondary")
        if work is None:
            return
        if work.error:
            st.warning(work.error)
        elif work.file:
            data = work.file.read_bytes()
            kind = work.file.suffix[1:]
            st.download_button(
                f"Download, {kilobytes(len(data))}",
                data,
                work.file.name,
                MIME[kind],
                key=f"get-{place}",
                on_click="ignore",
            )

    watch()


def kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} KB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
