"""The look chosen on the Export page as a file, and such a file as choices: the same JSON as `export --style` takes."""

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from moe_core.dashboard.gate import looks
from moe_core.dashboard.links import OWN, SIZES, chosen, literal
from moe_core.export.sizes import PX, Sized, size_of_words, type_of_words
from moe_core.export.style import LARGEST, parsed_style

FILE, SAID = "style-file", "style-said"  # in the tab's state
PLAIN = ("theme", "scale", "smooth", "caption")  # choices that a style has as they are
# Of a size of one's own, by its unit.
SIDES = {"px": ("width", "height"), "in": ("wide", "high"), "mm": ("wide", "high")}


def style_file() -> None:
    """The look as a file to download, and a file to take the look from."""
    with st.expander("Keep this look in a file", expanded=SAID in st.session_state):
        if said := st.session_state.pop(SAID, ""):
            st.error(literal(said))
        style = json.dumps(style_of(st.session_state), ensure_ascii=False) + "\n"
        st.download_button(
            "Download the look", style, "style.json", "application/json", key="style-get", on_click="ignore"
        )
        if not looks():  # the server takes no file of theirs
            help = "also for export --style"
            st.file_uploader("Take the look of a file", key=FILE, on_change=take, max_upload_size=1, help=help)


def take() -> None:
    """Set the choices to what the uploaded file says, or say why it cannot be read."""
    file = st.session_state[FILE]
    if file is None:
        return
    try:
        data = file.read(LARGEST + 1)
        choices = choices_of(parsed_style(data, file.name[:80]), file.name[:80])
        # A field that is not on the page yet does not write its word into the link; the field of the size takes its own from there.
        for word in choices.keys() - (st.session_state.keys() - {"size"}):
            st.query_params[word] = text_of(choices[word])
        st.session_state.update(choices)
    except ValueError as error:
        st.session_state[SAID] = str(error)


def style_of(choices: Any) -> dict[str, Any]:
    """A style of what is chosen, by the names of the page's fields."""
    size = choices["size"]
    words = "x".join(f"{choices[side]:.12g}" for side in SIDES[size]) + size if size in OWN else size
    style = {"size": words, "font": f"{choices['type']:g}pt" if size_of_words(words).paper else choices["font"]}
    style |= {name: choices[name] for name in PLAIN} | {"smooth": int(choices["smooth"])}
    return style | ({"title": ""} if choices["bare"] else {"title": choices["title"]} if choices["title"] else {})


def choices_of(style: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What to choose for a style, by the names of the page's fields. ValueError, in one line, for what cannot be chosen."""
    choices = {word: style[word] for word in PLAIN if word in style}
    if "scale" in style:
        choices["scale"] = float(style["scale"])
    if "title" in style:
        choices |= {"title": style["title"], "bare": not style["title"]}
    try:
        sized = size_of_words(style["size"]) if "size" in style else None
        choices |= choices_of_size(style["size"], sized) if sized else {}
        if "font" in style:
            px = type_of_words(str(style["font"]))
            choices |= {"font": round(px, 6), "type": round(px / PX["pt"], 6)}  # the page shows that of the chosen size
        for word, value in choices.items():
            chosen(word, text_of(value))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return choices


def text_of(value: Any) -> str:
    """A choice as a link has it."""
    return value if isinstance(value, str) else json.dumps(value)


def choices_of_size(words: str, sized: Sized) -> dict[str, Any]:
    """One of the usual sizes, or one's own in the unit in which it is written."""
    for usual in SIZES:
        if size_of_words(usual) == sized:
            return {"size": usual}
    unit = "px" if not sized.paper else "mm" if "m" in words else "in"
    sides = [round(side / PX[unit], 4) for side in sized.size]
    return {"size": unit} | dict(
        zip(SIDES[unit], [int(side) if unit == "px" and side == int(side) else side for side in sides], strict=True)
    )
