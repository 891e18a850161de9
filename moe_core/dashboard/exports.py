"""What the Export page does: a preview at exact pixels, files made beside the page, and a download when they are there.

The page looks twice a second at work that takes long (jobs.py). Each browser tab has its own, so no tab waits for another.
"""

import base64
import contextlib
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from moe_core.dashboard import controls, links
from moe_core.dashboard.configure import whole_field
from moe_core.dashboard.gate import looks, only_looking
from moe_core.dashboard.jobs import Work
from moe_core.dashboard.links import OWN, SIZES
from moe_core.dashboard.style_file import style_file
from moe_core.export import FORMATS, Look, chosen, rendered
from moe_core.export.look import check, size_of
from moe_core.export.panels import KINDS as PANELS
from moe_core.export.panels import MOST, panels
from moe_core.export.replay import not_measured
from moe_core.export.sizes import PX, Sized, on_paper, size_of_words
from moe_core.export.sources import WHOLE, Named
from moe_core.figures.catalog import FIGURES
from moe_core.figures.needs import many_layers
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.theme import LOOKS
from moe_core.runs import StoreError, runs_folder
from moe_core.runs.room import bytes_text

BOUND: dict[str, Any] = {"bind": "query-params"}  # a widget whose key is a word of the link and holds its value
MIME = {
    "png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf", "html": "text/html", "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet", "gif": "image/gif", "mp4": "video/mp4", "zip": "application/zip",
}  # fmt: skip


def page() -> None:
    """The Export page: choices left, preview right, long work below. Without a run, the cards that start one."""
    sweep = links.word("sweep")
    run = controls.frame(choose=not sweep)
    if run is not None:
        run.close()
    if sweep:
        body(Named(sweep=sweep))
    elif run is not None:
        body(asked(str(run.path.absolute())))


def asked(run: str) -> Named:
    """The run, with the other runs and the choices that its link names; those that do not fit it are left out."""
    others = [str(runs_folder().absolute() / name) for name in links.word("with") or []]
    options = {name: str(links.word(name)) for name in ("align", "pinned", *WHOLE) if links.word(name)}
    fits = []
    for i in range(len(others)):
        with contextlib.suppress(ValueError), Named(run, (*fits, others[i])).open():
            fits.append(others[i])
    kept = []
    for option in options.items():
        with contextlib.suppress(ValueError), Named(run, (), (option,)).open():
            kept.append(option)
    return Named(run, tuple(fits), tuple(kept))


def body(what: Named) -> None:
    try:
        with what.open() as source:
            if not what.sweep and not source.steps()[1]:
                st.info("This run has no recorded step yet. Its figures can be exported as soon as it trains.")
                return
            for line in [] if what.sweep else source.look_over():
                st.warning(line)
            left, right = st.container(key="export-row").columns([1, 2], gap="large")
            with left:
                figures, format, look, columns = choices(source)
            with right:
                preview(what, source, figures, format, look, columns)
            if not what.sweep:
                st.divider()
                documents(what, source, look)
    except StoreError as error:
        st.error(str(error))


def choices(run: Any) -> tuple[list[str], str, Look, int]:
    """What to export, how it is to look, and how many panels stand beside each other, 0 for a file a figure."""
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
    sized, columns = chosen_size(), 0
    if len(figures) > 1 and format in PANELS:
        columns = rounded_field("Panels of one file beside each other (0: a file each)", 0, MOST, 0, "panels")
    size = sized.of_panels(len(figures), columns) if columns else sized.size
    theme_at, font_at, scale_at = st.columns(3)
    theme = theme_at.selectbox("Theme", list(LOOKS), key="theme", **BOUND)
    if sized.paper:
        font = PX["pt"] * font_at.number_input("Type, pt", 4.5, 36.0, 8.0, 0.5, "%g", key="type", **BOUND)
    else:
        font = font_at.number_input("Font, px", 6.0, 48.0, 13.0, 0.5, "%g", key="font", **BOUND)
    scale = scale_at.number_input("PNG scale", 0.5, 8.0, 2.0, 0.5, key="scale", **BOUND)
    smooth = rounded_field("Mean over, steps", 1, 1_000_000, 1, "smooth")
    title = st.text_input("Title", max_chars=200, placeholder="the figure's own", key="title", **BOUND)
    sweep = isinstance(run, SweepResults)
    layer = layer_of(run) if len(run.description.layers) > 1 and not sweep else 1
    bare_at, caption_at = st.columns(2)
    bare = bare_at.checkbox("No title", key="bare", **BOUND)
    caption = caption_at.checkbox("Caption", key="caption", **BOUND)
    step = None if sweep else named("step", run.steps()[1])
    style_file()
    words = "" if bare else title or None
    look = Look(size, float(scale), theme, words, float(font), caption, layer - 1, step, smooth)
    return figures, format or "png", look, columns


def chosen_size() -> Sized:
    """One of the usual sizes, or one's own in px, inches or mm. It is written into the link here: a bound field would write its label."""
    st.session_state["size"] = links.word("size") or next(iter(SIZES))

    def link() -> None:
        st.query_params["size"] = st.session_state["size"]

    unit = st.selectbox("Size", [*SIZES, *OWN], key="size", format_func=(SIZES | OWN).get, on_change=link)
    if unit in SIZES:
        return size_of_words(unit)
    wide, high = st.columns(2)
    if unit == "px":
        with wide:
            width: float = rounded_field("Width, px", 120, 8000, 640, "width")
        with high:
            height: float = rounded_field("Height, px", 120, 8000, 400, "height")
    else:
        usual = (3.25, 2.0) if unit == "in" else (85.0, 55.0)
        width = wide.number_input(f"Width, {unit}", 0.5, 2000.0, usual[0], key="wide", **BOUND)
        height = high.number_input(f"Height, {unit}", 0.5, 2000.0, usual[1], key="high", **BOUND)
    return Sized((width * PX[unit], height * PX[unit]), unit != "px")


def rounded_field(label: str, low: int, high: int, start: int, key: str) -> int:
    """A field for a whole number. Another number is rounded in the field, so that the link, which the field writes, has a whole one."""

    def rounded() -> None:
        st.session_state[key] = float(round(st.session_state[key]))

    limits = {"min_value": float(low), "max_value": float(high)}
    return int(whole_field(label, start, key=key, on_change=rounded, **limits, **BOUND))


def layer_of(run: Any) -> int:
    """The layer that the link names, else the first; the chooser writes the link, which the panel writes too."""
    key = f"export-layer-{run.id}"
    st.session_state[key] = named("layer", len(run.description.layers)) or 1

    def go() -> None:
        st.query_params["layer"] = str(st.session_state[key])

    names = [layer.name for layer in run.description.layers]
    numbers = range(1, len(names) + 1)
    if many_layers(run):
        return int(st.selectbox("Layer", numbers, format_func=lambda n: names[n - 1], key=key, on_change=go))
    return int(st.segmented_control("Layer", numbers, required=True, key=key, on_change=go) or 1)


def title_of(name: str) -> str:
    """A figure's title; those of the Compare page say so, since some have the title of a run's own figure."""
    compared = " of the runs compared" if FIGURES[name].page == "compare" else ""
    return FIGURES[name].title + compared


def named(name: str, highest: int) -> int | None:
    """The layer or step that the link names, counted from 1; None if it names none, or one that does not exist."""
    value = links.word(name)
    return value if value and value <= highest else None


def preview(what: Named, source: Any, figures: list[str], format: str, look: Look, columns: int) -> None:
    """A figure as it will be, chosen if there are several, or all as panels; its size in pixels and bytes; the download of one or all."""
    if not figures:
        st.info("Choose a figure at the left.")
        return
    name, among = figures[0], ""
    if len(figures) > 1 and not columns:
        name = st.selectbox(f"Preview, one of {len(figures)} figures", figures, key="previewed", format_func=title_of)
        among = f"Figure {figures.index(name) + 1} of {len(figures)}. "
    picture_at, caption_at, button_at = st.empty(), st.empty(), st.empty()
    # Disabled first: until the new file is drawn, the button would still download the last one.
    button_at.button("Export", disabled=True, key="export-none", type="primary")
    try:
        check(source, look)
        shown = tuple(figures) if columns else name
        picture = draw_once(what, progress_of(source), shown, "png", look, columns)
        file = picture if format == "png" else draw_once(what, progress_of(source), shown, format, look, columns)
    except ValueError as error:
        picture_at.error(str(error))
        button_at.empty()
        return
    width, height = size_of(name, look)
    # One CSS pixel of the page for each of the figure's, whatever the PNG's scale; smaller where the page has no room.
    data = base64.b64encode(picture).decode()
    alt = f"{len(figures)} panels" if columns else title_of(name)
    picture_at.html(
        f'<img alt="{alt}" style="width:{width}px;max-width:100%;height:auto" src="data:image/png;base64,{data}">'
    )
    pixels = f", {round(width * look.scale):,} × {round(height * look.scale):,} pixels" if format == "png" else ""
    more = "" if look.step is None else f" As it stood at step {look.step:,}."
    others = [] if what.sweep else [run.name for run in source.others]
    more += links.literal(f" Beside {source.name}: {', '.join(others)}.") if others else ""
    paper = f" On paper {on_paper(width)} × {on_paper(height)} in, with type of {look.font / PX['pt']:.3g} pt."
    drawn = f"{among}{alt}: {round(width):,} × {round(height):,} px{pixels}, {bytes_text(len(file))} as {format}."
    caption_at.caption(drawn + paper + more)
    if columns or len(figures) == 1 or looks():  # who only looks gets them one by one
        file_name = f"{source.id}-{'panels' if columns else name}.{format}"
        button_at.download_button(
            "Export", file, file_name, MIME[format], type="primary", key="export-one", on_click="ignore"
        )
    else:
        button_at.empty()
        words = ["export", *words_of(what, look), "--format", format, "--figure", *figures]
        task(f"Export {len(figures)} figures", words, f"{source.id}-{format}-figures.zip", primary=True)
    if look.step is not None:
        # A link, not a button: it reloads the panel beside, which then goes to the last step too.
        rest = {name: value for name, value in st.query_params.items() if name != "step"}
        st.html(f'<a class="moe-export" href="./export?{escape(urlencode(rest))}">As it stands at the last step</a>')


@st.cache_data(max_entries=64, show_spinner="Drawing")
def draw_once(
    what: Named, progress: tuple[Any, ...], names: str | tuple[str, ...], format: str, look: Look, columns: int
) -> bytes:
    """One figure in one format, or several as panels; kept until there is more to draw. progress: as progress_of() gives it, part of the cache's key."""
    with what.open() as source:
        return (
            rendered(source, names, format, look)
            if isinstance(names, str)
            else panels(source, names, format, look, columns)
        )


def progress_of(source: Any) -> tuple[Any, ...]:
    """What changes when there is more to draw: which of a sweep's runs have ended, or each run's last step and its name."""
    if isinstance(source, SweepResults):
        return tuple(bool(result.ended) for result in source.results)
    return tuple((run.steps()[1], run.name) for run in (source, *source.others))


def words_of(what: Named, look: Look | None = None) -> list[str]:
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
    words += ["--smooth", str(look.smooth)] if look.smooth > 1 else []
    return words + ["--caption"] * look.caption


def documents(what: Named, source: Any, look: Look) -> None:
    """Report, replay and animation: a button each, or its progress."""
    if only_looking("Reports, replays and animations are left to the teacher."):
        return
    report, again, moving = st.columns(3, gap="large")
    with report:
        st.markdown("**Report**")
        st.caption("Settings, changes, every figure and table.")
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
        if missing := not_measured(source):
            st.caption(f"Not for this run: it does not measure {', '.join(missing)}.")
        else:
            task("Make replay", words, f"{source.id}-replay.html")
    with moving:
        st.markdown("**Animation**")
        st.caption("A figure over the run, with the size and theme chosen above.")
        names = chosen(source, None)
        if not names:
            return
        name = st.selectbox(
            "Figure", names, key="animate-figure", index=min(1, len(names) - 1), format_func=title_of,
            label_visibility="collapsed",
        )  # fmt: skip
        kind = st.segmented_control(
            "Animation as", ("gif", "mp4"), default="gif", required=True, key="animate-kind", label_visibility="collapsed"
        )  # fmt: skip
        words = ["export", *words_of(what, look), "--animate", name]
        task("Make animation", words, f"{source.id}-{name}.{kind}")


def task(label: str, words: Sequence[str], name: str, primary: bool = False) -> None:
    """A button; while its work is under way a progress bar and Cancel; then the file, or the error."""
    place = f"work-{name}"

    def begin() -> None:
        st.session_state[place] = Work(words, name)

    # The page draws itself again only while work is under way.
    busy = place in st.session_state and st.session_state[place].busy

    @st.fragment(run_every=0.5 if busy else None, key=f"watch-{place}")
    def watch() -> None:
        work: Work | None = st.session_state.get(place)
        if (work is not None and work.busy) != busy:
            st.rerun()  # the work began or ended, and only the page can start or stop the fragment's clock
        if work is not None and busy:
            st.progress(min(1.0, work.done / work.of), work.progress)
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
