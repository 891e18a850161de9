"""The page of all runs: what trains now, what each takes on the disk, and below the list what can be done with those chosen in it:
name, note and tags, stopping, comparing, deleting."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from moe_core.dashboard import component, controls, links
from moe_core.dashboard.choosing import ALIVE
from moe_core.dashboard.component import Chosen
from moe_core.dashboard.gate import deed, looks, only_looking
from moe_core.folders import PAGES
from moe_core.runs import StoreError, change_notes, open_run, read_notes, reap, remove_run, runs_folder, stop_later
from moe_core.runs.notes import LONGEST, TAGS
from moe_core.runs.overview import Entry, deletion, overview
from moe_core.runs.room import bytes_text
from moe_core.schema import duration, first_few

ASKED = 8  # runs of which it is said what goes
CHOSEN, DELETE, SAID = "runs-chosen", "runs-delete", "runs-said"  # in the tab's state


def page() -> None:
    """The list, which the browser keeps up to date, and what can be done with the runs that are chosen in it."""
    reap()
    if opened := st.session_state.pop("runs-open", None):
        st.switch_page(PAGES / "live.py", query_params={"run": opened})
    controls.frame(choose=False)
    head()
    entries = {entry.id: entry for entry in overview()}
    ticked = st.session_state.get(CHOSEN, Chosen())
    chosen = [entries[id] for id in ticked.ids if id in entries]
    only_looking()
    component.runs(ticked._replace(ids=[entry.id for entry in chosen]), go_to, choose)
    if looks():
        buttons(chosen)
    elif doomed := [entry for entry in chosen if entry.id in st.session_state.get(DELETE, [])]:
        ask_to_delete(doomed, list(entries.values()))
    elif len(chosen) == 1:
        one(chosen[0], sorted({tag for entry in entries.values() for tag in entry.notes.tags}))
    elif chosen:
        several(chosen)


def go_to(run: str) -> None:
    """Open a run on the Live page: "new" is the start page."""
    st.session_state["runs-open"] = run


def choose(chosen: Chosen) -> None:
    """Other runs were chosen; whatever was asked about those before is asked no more."""
    st.session_state[CHOSEN] = chosen
    st.session_state.pop(DELETE, None)


@st.fragment(run_every=2.0)
def head() -> None:
    """What trains now, lessons left running too, the button that stops all of it, and what could not be done."""
    alive = [entry for entry in overview() if entry.facts.state in ALIVE]
    left, right = st.columns([3.4, 1], vertical_alignment="center")
    told = f"**{len(alive)} not ended:** {links.literal(now_text(alive))}" if alive else "**Nothing trains now.**"
    left.markdown(told)
    for line in st.session_state.pop(SAID, []):
        st.error(links.literal(line))
    if alive and not looks():
        right.button(
            f"Stop all {len(alive)}" if len(alive) > 1 else "Stop it", key="runs-stop-all", on_click=stop, args=(alive,),
            width="stretch", help="Each stops after its step, with a checkpoint; Resume takes it back.",
        )  # fmt: skip


def now_text(alive: Sequence[Entry]) -> str:
    """The runs that have not ended, with how far each is: "even (25 of 100 steps, 75 s left), lesson 3 (step 1,200)"."""
    words = []
    for entry in alive:
        facts = entry.facts
        name = entry.notes.name or (f"lesson {entry.lesson}" if entry.lesson else entry.id)
        far = f"{facts.step:,} of {facts.goal:,} steps" if facts.goal else f"step {facts.step:,}, until stopped"
        far += f", {duration(facts.left)} left" if facts.left is not None else ""
        words.append(f"{name} ({'paused, ' if facts.state == 'paused' else ''}{far})")
    return first_few(words, 6)


# What can be done with the chosen runs


def one(entry: Entry, known: Sequence[str]) -> None:
    """The name, note and tags of a run, to be changed, and its buttons."""
    notes, keys = entry.notes, {what: f"runs-{what}-{entry.id}" for what in ("name", "note", "tags")}
    for what, value in (("name", notes.name), ("note", notes.note), ("tags", list(notes.tags))):
        st.session_state[keys[what]] = value
    with st.container(border=True, key="runs-one"):
        if notes.problem:
            st.error(links.literal(f"{notes.problem}; delete that file to begin anew"))
        buttons([entry])
        with st.expander("Name, tags and note"):  # folded, so that the list above keeps its room
            left, right = st.columns([1, 1.6], gap="medium")
            with left:
                st.text_input(
                    "Name", key=keys["name"], placeholder=entry.id, max_chars=LONGEST["name"],
                    on_change=write, args=(entry.id, "name", keys["name"]),
                )  # fmt: skip
                st.multiselect(
                    "Tags", sorted({*known, *notes.tags}), key=keys["tags"], accept_new_options=True, max_selections=TAGS,
                    on_change=write, args=(entry.id, "tags", keys["tags"]), placeholder="choose or type",
                )  # fmt: skip
            right.text_area(
                "Note", key=keys["note"], height=116, max_chars=LONGEST["note"],
                on_change=write, args=(entry.id, "note", keys["note"]),
            )  # fmt: skip


def several(chosen: Sequence[Entry]) -> None:
    """What the chosen runs take together, a tag for all of them, and their buttons."""
    with st.container(border=True, key="runs-several"):
        st.markdown(f"**{len(chosen)} runs are chosen.** They take {bytes_text(sum(entry.bytes for entry in chosen))}.")
        buttons(chosen)
        with st.expander("Tag all of them"):
            st.text_input(
                "Tag for all of them", key="runs-tag", max_chars=LONGEST["tag"], on_change=tag_all,
                args=([entry.id for entry in chosen],),
            )  # fmt: skip


def buttons(chosen: Sequence[Entry]) -> None:
    alive = [entry for entry in chosen if entry.facts.state in ALIVE]
    tasks = {entry.facts.description.task if entry.facts.description else "" for entry in chosen}
    if not chosen:
        return
    open_it, stop_it, delete_it = st.columns(3)
    if len(chosen) == 1:
        open_it.button("Open", key="runs-go", on_click=go_to, args=(chosen[0].id,), type="primary", width="stretch")
    else:
        few = len(tasks) == 1 and len(chosen) <= links.MOST + 1
        if open_it.button(
            "Compare", key="runs-compare", type="primary" if few else "secondary", width="stretch", disabled=not few,
            help=None if few else f"Up to {links.MOST + 1} runs of one task can be compared.",
        ):  # fmt: skip
            ids = [entry.id for entry in chosen]
            st.switch_page(PAGES / "compare.py", query_params={"run": ids[0], "with": ",".join(ids[1:])})
    if looks():
        return
    stop_it.button(
        f"Stop {len(alive)}" if len(alive) > 1 else "Stop", key="runs-stop", on_click=stop, args=(alive,),
        disabled=not alive, width="stretch",
    )  # fmt: skip
    delete_it.button(
        "Delete …", key="runs-doom", on_click=doom, args=([entry.id for entry in chosen],), disabled=bool(alive),
        width="stretch", help="A run that trains must be stopped first." if alive else None,
    )  # fmt: skip


def ask_to_delete(doomed: Sequence[Entry], entries: Sequence[Entry]) -> None:
    """What would go, and the question, once."""
    with st.container(border=True, key="runs-doomed"):
        st.markdown("**Delete for ever?**")
        lines = [f"- **{links.literal(e.name)}**: {links.literal(gone(e, entries))}" for e in doomed[:ASKED]]
        lines += [f"- and {len(doomed) - ASKED} more"] if len(doomed) > ASKED else []
        st.markdown("\n".join(lines))
        yes, no, _ = st.columns([1, 1, 1])
        ids = [entry.id for entry in doomed]
        yes.button("Delete", key="runs-yes", on_click=delete, args=(ids,), type="primary", width="stretch")
        no.button("Keep", key="runs-no", on_click=doom, args=([],), width="stretch")


def gone(entry: Entry, entries: Sequence[Entry]) -> str:
    try:
        return deletion(runs_folder() / entry.id, entries)
    except StoreError as error:
        return str(error)


# Doing it. What cannot be done is said above the list, a line each


def each(ids: Sequence[str], act: Callable[[str], Any]) -> list[str]:
    """Do something with each of these runs. The ids of those with which it succeeded."""
    done, said = [], st.session_state.setdefault(SAID, [])
    for id in ids:
        try:
            act(id)
            done.append(id)
        except (ValueError, OSError) as error:
            said.append(str(error))
    return done


@deed
def write(id: str, what: str, key: str) -> None:
    """Write a name, a note or the tags as the person left them."""
    value = st.session_state[key]

    def act(id: str) -> None:
        folder = runs_folder() / id
        if what == "tags":
            change_notes(folder, add=value, remove=[tag for tag in read_notes(folder).tags if tag not in value])
        else:
            change_notes(folder, **{what: value or ""})

    each([id], act)


@deed
def tag_all(ids: Sequence[str]) -> None:
    tag = st.session_state.get("runs-tag", "")
    st.session_state["runs-tag"] = ""
    if tag.strip():
        each(ids, lambda id: change_notes(runs_folder() / id, add=[tag]))


@deed
def stop(entries: Sequence[Entry]) -> None:
    def act(id: str) -> None:
        run = open_run(runs_folder() / id)
        try:
            stop_later(run)
        finally:
            run.close()

    each([entry.id for entry in entries], act)


def doom(ids: Sequence[str]) -> None:
    st.session_state[DELETE] = list(ids)


@deed
def delete(ids: Sequence[str]) -> None:
    """Delete these runs. A page that shows one of them shows another."""
    gone = each(ids, lambda id: remove_run(runs_folder() / os.path.basename(id)))
    st.session_state.pop(DELETE, None)
    if st.session_state.get("run") in gone:
        del st.session_state["run"]
    if links.word("run") in gone:
        del st.query_params["run"]
