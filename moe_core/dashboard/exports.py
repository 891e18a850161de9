"""What the Export page does: a preview at exact pixels, files made beside the page, and a download when they are there.

Long work is a process of its own, the same command that a person would give; the page looks at it twice a second and can
end it at any moment. Each browser tab has its own work, so no tab waits for another.
"""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from moe_core.dashboard import controls, links
from moe_core.dashboard.links import OWN, SIZES
from moe_core.export import FORMATS, Look, chosen, rendered
from moe_core.export.files import write
from moe_core.export.look import check, size_of
from moe_core.export.sources import WHOLE, Source
from moe_core.figures.catalog import FIGURES
from moe_core.figures.read_sweep import Found
from moe_core.figures.theme import THEMES
from moe_core.folders import ABOVE
from moe_core.runs import NO_WORDS, StoreError, last_words, runs_folder
from moe_core.runs.room import bytes_text

BOUND: dict[str, Any] = {"bind": "query-params"}  # a widget whose key is a word of the link and holds its value
MIME = {
    "png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf", "html": "text/html", "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet", "gif": "image/gif", "mp4": "video/mp4", "zip": "application/zip",
}  # fmt: skip


class Work:
    """One piece of long work, done by a process of its own and seen by the page.

    words: a command of `python -m moe_core`; name: of the file that it writes, or, if it ends in .zip, of the archive of the
    folder that it writes. What a process that was ended had begun goes with the folder.
    """

    def __init__(self, words: Sequence[str], name: str) -> None:
        self.done, self.of, self.error = 0, 1, ""
        self.file: Path | None = None
        self.stopped = False
        self.folder = Path(tempfile.mkdtemp(prefix="moescope-"))
        self.made = self.folder / name.removesuffix(".zip")
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moe_core", *words, "--out", str(self.made), "--json"], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True, cwd=ABOVE,
            )  # fmt: skip
        weakref.finalize(self, end, self.process, self.folder)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        """Hear how far it is, and what came of it."""
        assert self.process.stdout
        with self.process.stdout as said:
            for event in map(json.loads, said):
                if event["event"] == "progress":
                    self.done, self.of = event["done"], max(event["of"], 1)
        if self.process.wait() and not self.stopped:
            words = last_words(self.folder, "log")
            self.error = words.removeprefix("moe: ") if words != NO_WORDS else "The process that made it was ended."
        if self.stopped:
            self.error = "Cancelled. Nothing was kept."
        elif not self.error:
            self.file = zipped(self.made) if self.made.is_dir() else self.made

    def cancel(self) -> None:
        """End it at once, and whatever it has started."""
        self.stopped = True
        end(self.process, self.folder)

    @property
    def busy(self) -> bool:
        return self.thread.is_alive()


def end(process: subprocess.Popen[str], folder: Path) -> None:
    """End a process, if it still works, with all that it has started, and remove its folder."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def zipped(folder: Path) -> Path:
    """All files of a folder in one archive, dates left out so that the same files give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return write(folder.with_name(f"{folder.name}.zip"), packed.getvalue())


def page() -> None:
    """The Export page: choices left, preview right, long work below. Without a run, the cards that start one."""
    sweep = links.word("sweep")
    run = controls.frame(choose=not sweep)
    if run is not None:
        run.close()
    if sweep:
        body(Source(sweep=sweep))
    elif run is not None:
        body(asked(str(run.path.absolute())))


def asked(run: str) -> Source:
    """The run with what the link lays over it and chooses in it; what does not fit is left out."""
    others = [str(runs_folder().absolute() / name) for name in links.word("with") or []]
    options = {name: str(links.word(name)) for name in ("align", *WHOLE) if links.word(name)}
    fits = []
    for i in range(len(others)):
        with contextlib.suppress(ValueError), Source(run, (*fits, others[i])).open():
            fits.append(others[i])
    kept = []
    for option in options.items():
        with contextlib.suppress(ValueError), Source(run, (), (option,)).open():
            kept.append(option)
    return Source(run, tuple(fits), tuple(kept))


def body(what: Source) -> None:
    try:
        with what.open() as source:
            if not what.sweep and not source.steps()[1]:
                st.info("This run has no recorded step yet. Its figures can be exported as soon as it trains.")
                return
            for line in [] if what.sweep else source.look_over():
                st.warning(line)
            left, right = st.columns([1, 2], gap="large")
            with left:
                figures, format, look = choices(source)
            with right:
                preview(what, source, figures, format, look)
            if not what.sweep:
                st.divider()
                documents(what, source, look)
    except StoreError as error:
        st.error(str(error))


def choices(run: Any) -> tuple[list[str], str, Look]:
    """What to export, and how it is to look."""
    names = chosen(run, None)
    # A link that names other runs means their comparison.
    first = [name for name in names if FIGURES[name].page == "compare"][:1] or names[:1]
    asked = [name for name in links.word("figures") or [] if name in names]
    key = f"export-figures-{run.id}"
    if key not in st.session_state:
        st.session_state[key] = asked or first

    def link() -> None:
        st.query_params["figures"] = ",".join(st.session_state[key])

    figures = st.multiselect("Figures", names, key=key, format_func=title_of, on_change=link)
    format = st.segmented_control("Format", FORMATS, default="png", required=True, key="format", wrap=True, **BOUND)
    size_name = st.selectbox("Size", [*SIZES, OWN], key="size", **BOUND)
    size = SIZES.get(size_name)
    if size is None:
        width, height = st.columns(2)
        size = (
            int(width.number_input("Width, px", 120, 8000, 640, key="width", **BOUND)),
            int(height.number_input("Height, px", 120, 8000, 400, key="height", **BOUND)),
        )
    theme_at, font_at, scale_at = st.columns(3)
    theme = theme_at.selectbox("Theme", list(THEMES), key="theme", **BOUND)
    font = font_at.number_input("Font, px", 6, 48, 13, key="font", **BOUND)
    scale = scale_at.number_input("PNG scale", 0.5, 8.0, 2.0, 0.5, key="scale", **BOUND)
    title = st.text_input("Title", max_chars=200, placeholder="the figure's own", key="title", **BOUND)
    sweep = isinstance(run, Found)
    layer = layer_of(run) if run.config.layers > 1 and not sweep else 1
    bare_at, caption_at = st.columns(2)
    bare = bare_at.checkbox("No title", key="bare", **BOUND)
    caption = caption_at.checkbox("Caption", key="caption", **BOUND)
    step = None if sweep else named("step", run.steps()[1])
    look = Look(size, float(scale), theme, "" if bare else title or None, float(font), caption, layer - 1, step)
    return figures, format or "png", look


def layer_of(run: Any) -> int:
    """The layer that the link names, else the first; the chooser writes the link, which the panel writes too."""
    key = f"export-layer-{run.id}"
    st.session_state[key] = named("layer", run.config.layers) or 1

    def go() -> None:
        st.query_params["layer"] = str(st.session_state[key])

    layers = list(range(1, run.config.layers + 1))
    return int(st.segmented_control("Layer", layers, required=True, key=key, on_change=go) or 1)


def title_of(name: str) -> str:
    """A figure's title, told apart from another's of the same name."""
    compared = " of the runs compared" if FIGURES[name].page == "compare" else ""
    return FIGURES[name].title + compared


def named(name: str, highest: int) -> int | None:
    """The layer or step that the link names, counted from 1; None where it names none that there is."""
    value = links.word(name)
    return value if value and value <= highest else None


def preview(what: Source, source: Any, figures: list[str], format: str, look: Look) -> None:
    """The first figure as it will be, its size in pixels and bytes, and the download of one or all."""
    if not figures:
        st.info("Choose a figure at the left.")
        return
    shown, told, button = st.empty(), st.empty(), st.empty()
    # Disabled at once: until the new file is made, the button would still give the last one.
    button.button("Export", disabled=True, key="export-none", type="primary")
    try:
        check(source, look)
        picture = made(what, stands(source), figures[0], "png", look)
        file = picture if format == "png" else made(what, stands(source), figures[0], format, look)
    except ValueError as error:
        shown.error(str(error))
        button.empty()
        return
    width, height = size_of(figures[0], look)
    # One CSS pixel of the page for each of the figure's, whatever the PNG's scale.
    data = base64.b64encode(picture).decode()
    alt = title_of(figures[0])
    shown.html(
        f'<div style="overflow:auto" tabindex="0" role="region" aria-label="Preview"><img alt="{alt}" '
        f'style="width:{width}px;max-width:none" src="data:image/png;base64,{data}"></div>'
    )
    pixels = f", {round(width * look.scale):,} × {round(height * look.scale):,} pixels" if format == "png" else ""
    when = "" if look.step is None else f" As it stood at step {look.step:,}."
    others = [run.id for run in getattr(source, "others", ())]
    when += f" Beside {source.id}: {', '.join(others)}." if others else ""
    told.caption(f"{alt}: {width:,} × {height:,} px{pixels}, {bytes_text(len(file))} as {format}.{when}")
    if len(figures) == 1:
        name = f"{source.id}-{figures[0]}.{format}"
        button.download_button("Export", file, name, MIME[format], type="primary", key="export-one", on_click="ignore")
    else:
        button.empty()
        words = ["export", *words_of(what, look), "--format", format, "--figure", *figures]
        task(f"Export {len(figures)} figures", words, f"{source.id}-{format}-figures.zip", primary=True)
    if look.step is not None:
        # A link and no button: the panel beside goes to the last step too.
        rest = {name: value for name, value in st.query_params.items() if name != "step"}
        st.html(f'<a class="moe-export" href="./export?{escape(urlencode(rest))}">As it stands at the last step</a>')


@st.cache_data(max_entries=64, show_spinner="Drawing")
def made(what: Source, stands: tuple[Any, ...], name: str, format: str, look: Look) -> bytes:
    """One figure in one format; kept for as long as what it shows stands as it does."""
    with what.open() as source:
        return rendered(source, name, format, look)


def stands(source: Any) -> tuple[Any, ...]:
    """What changes when there is more to draw."""
    if isinstance(source, Found):
        return tuple(bool(result.ended) for result in source.results)
    return tuple(run.steps()[1] for run in (source, *getattr(source, "others", ())))


def words_of(what: Source, look: Look | None = None) -> list[str]:
    """What is exported, and how it is to look, as flags of the command line."""
    words = [what.sweep or what.run, "--runs", str(runs_folder().absolute())]
    words += ["--with", *what.others] if what.others else []
    align = dict(what.options).get("align")
    words += ["--align", align] if align else []
    chosen = [f"{name}={value}" for name, value in what.options if name != "align"]
    words += ["--choose", *chosen] if chosen else []
    if look is None:
        return words
    words += [
        "--scale",
        str(look.scale),
        "--theme",
        look.theme,
        "--font",
        str(look.font),
        "--layer",
        str(look.layer + 1),
    ]
    words += ["--size", f"{look.size[0]}x{look.size[1]}"] if look.size else []
    words += [f"--title={look.title}"] if look.title is not None else []
    words += ["--at", str(look.step)] if look.step else []
    return words + ["--caption"] * look.caption


def documents(what: Source, source: Any, look: Look) -> None:
    """Report, replay and animation: a button each, or its progress."""
    report, again, moving = st.columns(3, gap="large")
    with report:
        st.markdown("**Report**")
        st.caption("Settings, changes, every figure and table, samples of text.")
        kind = st.segmented_control(
            "Report as", ("html", "pdf"), default="html", required=True, key="report-kind", label_visibility="collapsed"
        )
        words = ["report", what.run, "--runs", str(runs_folder().absolute())]
        task("Make report", words, f"{source.id}-report.{kind}")
    with again:
        st.markdown("**Replay**")
        st.caption("One page that plays the run anywhere, without a server.")
        words = [
            "export",
            what.run,
            "--runs",
            str(runs_folder().absolute()),
            "--format",
            "replay",
            "--layer",
            str(look.layer + 1),
        ]
        task("Make replay", words, f"{source.id}-replay.html")
    with moving:
        st.markdown("**Animation**")
        st.caption("A figure over the run, with the size and theme chosen above.")
        name = st.selectbox(
            "Figure", chosen(source, None), key="animate-figure", index=1, format_func=title_of, label_visibility="collapsed"
        )  # fmt: skip
        kind = st.segmented_control(
            "Animation as", ("gif", "mp4"), default="gif", required=True, key="animate-kind", label_visibility="collapsed"
        )  # fmt: skip
        words = ["export", *words_of(what, look), "--animate", name]
        task("Make animation", words, f"{source.id}-{name}.{kind}")


def task(label: str, words: Sequence[str], name: str, primary: bool = False) -> None:
    """A button; while its work is under way a bar and Cancel; then the file, or why there is none."""
    place = f"work-{name}"

    def begin() -> None:
        st.session_state[place] = Work(words, name)

    # Only work under way is looked at again by itself.
    busy = place in st.session_state and st.session_state[place].busy

    @st.fragment(run_every=0.5 if busy else None, key=f"watch-{place}")
    def watch() -> None:
        work: Work | None = st.session_state.get(place)
        if (work is not None and work.busy) != busy:
            st.rerun()  # it began or ended: the fragment's clock is set by the page
        if work is not None and busy:
            st.progress(min(1.0, work.done / work.of), f"{work.done} of {work.of}")
            st.button("Cancel", key=f"cancel-{place}", on_click=work.cancel, disabled=work.stopped)
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
                f"Download, {bytes_text(len(data))}",
                data,
                work.file.name,
                MIME[kind],
                key=f"get-{place}",
                on_click="ignore",
            )

    watch()
