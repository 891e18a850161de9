"""The Learn page: at left a lesson's idea, formula and experiment; at right its live charts, its check and its question.

Everything shown is the reader's own run: the one that the link names, or that this browser tab remembers. It must have
begun as the lesson begins, or its charts and checks would not mean what the lesson says.
"""

from html import escape
from pathlib import Path

import streamlit as st

from moe_core.dashboard import classroom, controls, links, starting
from moe_core.dashboard.batch import offer_cancel, refusals_told
from moe_core.dashboard.gate import LOOKING, deed, looks
from moe_core.dashboard.panel import did_not_start
from moe_core.dashboard.progress import NOT_BEGUN, Progress, opened, press, read_run
from moe_core.lessons import LESSONS, Lesson, Verdict, flashcards
from moe_core.runs import (
    Run,
    StoreError,
    is_alive,
    open_run,
    reap,
    runs_folder,
    start_on_devices,
    stop_on_devices,
    words_of_failure,
)
from moe_core.schema import Knobs, describe

WAITS = "You can press this when the measurement is done."
STARTING = Verdict(False, "Starting the trainer: loading torch and the data.")
CSS = """
.moe-check { display: flex; gap: 12px; align-items: baseline; padding: 8px 12px; border-radius: 8px; font-size: 15px; line-height: 20px;
  min-height: 36px; background: var(--moescope-side); border-left: 4px solid var(--moe-rule); font-variant-numeric: tabular-nums; }
.moe-check[data-check="yes"] { border-left-color: var(--moe-green); }
.moe-check b { white-space: nowrap; }
.moe-check[data-check="yes"] b { color: var(--moe-green); }
.moe-lesson { font-size: 15px; line-height: 22px; margin: 0; }
.moe-watch { font-size: 13px; line-height: 18px; margin: -10px 0 0; color: var(--moescope-ink-2); }
.moe-invite { border: 1px dashed var(--moe-rule); border-radius: 8px; display: grid; place-content: center; text-align: center; gap: 8px;
  height: max(400px, calc(100vh - 212px)); padding: 24px; font-size: 15px; line-height: 22px; }
.moe-invite b { font-size: 18px; }
.moe-invite span { color: var(--moescope-ink-2); }
[class*="st-key-lesson-row"] [data-testid="stButtonGroup"] button { padding-inline: 4px; } /* all eight find room at 820 px */
/* Where two columns do not find room, the second goes below the first: the charts below the text, the buttons below the question. */
[data-testid="stHorizontalBlock"]:has(> [data-testid="stColumn"] .moe-lesson), .st-key-question [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
[data-testid="stColumn"]:has(.moe-lesson) { flex: 1 1 0; min-width: min(100%, 310px); }
[data-testid="stColumn"]:has(.moe-lesson) + [data-testid="stColumn"] { flex: 1.9 1 0; min-width: min(100%, 430px); }
.st-key-question [data-testid="stColumn"] { min-width: min(100%, 280px); }
.st-key-question [data-testid="stColumn"] + [data-testid="stColumn"] { min-width: 100px; }
.st-key-question [data-testid="stColumn"] + [data-testid="stColumn"] [data-testid="stVerticalBlock"] { gap: 6px; }
[data-testid="stMainBlockContainer"]:has(.moe-lesson) h2 { font-size: 20px; padding: 0 0 6px; }
[data-testid="stMainBlockContainer"]:has(.moe-lesson) .katex { font-size: 0.88em; }
[data-testid="stMainBlockContainer"]:has(.moe-lesson) .katex-display { margin: 0; overflow-x: auto; overflow-y: hidden; padding: 2px 4px 8px; }
/* An answer that is unfolded finds its room below: the charts give it. */
[data-testid="stMainBlockContainer"]:has(.moe-lesson):has(details[open]) .moescope-learn { height: max(400px, calc(var(--high) - 270px)); }
@media (min-width: 1600px) {
  [data-testid="stMainBlockContainer"]:has(.moe-lesson) h2 { font-size: 24px; }
  .moe-lesson { font-size: 17px; line-height: 25px; }
  .moe-check, .moe-invite { font-size: 17px; }
  .moe-watch { font-size: 15px; line-height: 20px; }
  [data-testid="stMainBlockContainer"]:has(.moe-lesson) .katex { font-size: 1.1em; }
}
.stApp:has(.moe-read) .katex-display { max-width: 80ch; }
@media (max-width: 900px) { .moe-invite { height: auto; } }
/* All lessons, on paper: the page as long as it is, without the bars beside it. */
@media print {
  .stApp:has(.moe-read) :is([data-testid="stSidebar"], [data-testid="stHeader"], .stButton) { display: none !important; }
  .stApp:has(.moe-read), .stApp:has(.moe-read) :is(.stAppViewContainer, .stMain, [data-testid="stMainBlockContainer"]) {
    position: static !important; display: block !important; overflow: visible !important; height: auto !important; padding: 0 !important; }
  .moe-read { break-inside: avoid; }
  .stApp:has(.moe-read) [data-testid="stHeading"] { break-after: avoid; }
}
"""


def page() -> None:
    """One lesson, and a row of numbers that leads to the others."""
    st.html(f"<style>{CSS}</style>")
    named, followed = not classroom.follows(), classroom.take_up()
    number = followed.lesson if followed else numbered()
    lesson = LESSONS[number - 1]
    first = first_of(lesson)
    if links.word("read") == "true":
        controls.frame(False, controls.NEW, first, lesson.shown, number, named)
        read_all(number)
        return
    with st.container():  # drawn always: a fragment keeps the place where it was first drawn
        wanted = run_of(number, (followed.run or controls.NEW) if followed else links.word("run"))
        run = controls.frame(False, wanted or controls.NEW, first, lesson.shown, number, named)
    progress = NOT_BEGUN
    if run and wanted:
        run.close()
        # Before the buttons, since a passed check marks its button.
        found = read_run(wanted, number, links.word("layer") or 1, fresh=not looks())
        progress = found.progress if found else NOT_BEGUN
    shown = wanted if wanted and (run or starting.is_starting(wanted)) else None
    keep(number, shown)
    left, right = st.columns([1, 1.9], gap="medium")
    with left:
        row(number, named)
        classroom.bar(number, shown, lambda: begin(number))
        show_lesson(number, lesson, progress, bool(shown))
    with right:
        with st.container():
            if shown:
                controls.charts(
                    "learn", shown, describe(first.config, first.knobs).probe, list(lesson.figures), {}, export=False
                )
            else:
                invite(lesson)
        st.fragment(read, run_every=1.0 if shown or looks() else None)(number, shown, progress, followed)


# Which lesson, and which run


def numbered() -> int:
    """The number of the lesson that the link names, else of the last one that this tab showed."""
    return int(links.word("lesson") or st.session_state.get("lesson", 1))


def first_of(lesson: Lesson) -> controls.First:
    """The settings, knobs and shown knobs that the lesson's run begins with."""
    return controls.First(lesson.config, Knobs(**lesson.stages[0].knobs), lesson.shown)


def run_of(number: int, named: str | None) -> str | None:
    """The lesson's run: the one that is named or this tab remembers, if it exists or is starting, and began as the lesson does."""
    wanted = str(named or runs_of_lessons().get(number) or controls.NEW)
    if wanted == controls.NEW:
        return None
    if starting.is_starting(wanted):
        return wanted
    try:
        run = open_run(wanted)
    except StoreError as error:
        st.error(str(error))
        return None
    try:
        if belongs(run, number):
            return wanted
    finally:
        run.close()
    if named and run.description.origin != "trained":
        st.info(f"Lessons train a small model of their own. {wanted} is on the other pages.")
    elif named:
        st.info(f"{wanted} did not begin as this lesson does. Start one here, or open it on the Live page.")
    return None


def belongs(run: Run, number: int) -> bool:
    """Whether a run began as the lesson says, and no other lesson has turned its knobs."""
    config, knobs, _ = first_of(LESSONS[number - 1])
    own = describe(config, knobs)
    began = (run.description.task, run.description.experts, run.started_knobs) == (own.task, own.experts, knobs)
    others = {change.who for change in run.knob_changes() if change.who.startswith("lesson ")} - {f"lesson {number}"}
    return began and not others


def runs_of_lessons() -> dict[int, str]:
    """This tab's runs by lesson."""
    return st.session_state.setdefault("lesson-runs", {})  # type: ignore[no-any-return]


def keep(number: int, run: str | None) -> None:
    """Remember the lesson and its run, since a link to another page and back does not name them."""
    st.session_state["lesson"] = number
    if run:
        runs_of_lessons()[number] = run
    else:
        runs_of_lessons().pop(number, None)


# At left


def row(number: int, named: bool) -> None:
    """The numbers of the lessons. Where the class decides which is shown, each has a row of its own: a browser may still send
    the number before, and that is no click.
    """
    key = "lesson-row" if named else f"lesson-row-{number}"
    if st.session_state.get(key) != number:  # setting it again would undo a click that has not arrived yet
        st.session_state[key] = number

    def go() -> None:
        if st.session_state[key] not in (None, number):  # a second click on the same number deselects it
            turn_to(st.session_state[key])

    st.segmented_control(
        "Lesson", range(1, len(LESSONS) + 1), key=key, on_change=go, label_visibility="collapsed",
        width="stretch",
    )  # fmt: skip


def show_lesson(number: int, lesson: Lesson, progress: Progress, begun: bool) -> None:
    """Show idea, formula, and a button for each stage with what to watch for; the next one to press is highlighted."""
    st.header(f"{number}. {lesson.title}", anchor=False)
    st.html(f'<p class="moe-lesson">{escape(lesson.idea)}</p>')
    st.latex(lesson.formula)
    for at, stage in enumerate(lesson.stages):
        following = progress.alive and at == progress.reached + 1 if at else not begun
        waits = bool(at) and progress.measuring  # or it would measure a run that changes meanwhile
        st.button(
            stage.button, key=f"stage-{number}-{at}", on_click=act, args=(number, at), width="stretch",
            type="primary" if following and not waits else "secondary", help=WAITS if waits else None,
            icon=":material/check:" if at in progress.happened else None,
            disabled=looks() or waits or (at > 0 and not (progress.alive and at <= progress.reached + 1)),
        )  # fmt: skip
        why = "" if not waits else "<b>Measuring this now.</b> " if at == progress.reached else f"<b>{WAITS}</b> "
        st.html(f'<p class="moe-watch">{why}{escape(stage.watch)}</p>')
    last = len(lesson.stages) - 1 in progress.happened
    if last and number < len(LESSONS) and not classroom.follows():  # whoever follows is led on by the teacher
        st.button(
            f"Next: {number + 1}. {LESSONS[number].title}", key=f"next-{number}", on_click=turn_to, args=(number + 1,),
            type="secondary" if progress.measuring else "primary", width="stretch",
        )  # fmt: skip


def read_all(number: int) -> None:
    """All lessons as text, to read without starting anything, or to print. number: the lesson to go back to."""
    st.button(f"Back to lesson {number}", key="read-back", on_click=st.query_params.pop, args=("read", None))
    for at, lesson in enumerate(LESSONS, 1):
        st.header(f"{at}. {lesson.title}", anchor=False)
        st.html(f'<p class="moe-lesson moe-read">{escape(lesson.idea)}</p>')
        st.latex(lesson.formula)
        for stage in lesson.stages:
            st.html(f'<p class="moe-lesson moe-read"><b>{escape(stage.button)}.</b> {escape(stage.watch)}</p>')
        st.markdown(f"**Question.** {lesson.question}\n\n**Answer.** {lesson.answer}")


def turn_to(number: int) -> None:
    """Open a lesson, with the run that this tab started for it."""
    st.query_params.clear()
    st.query_params["lesson"] = str(number)


@deed
def act(number: int, at: int) -> None:
    """Start the lesson's run, or turn the knobs of the one it has and measure it."""
    stage = LESSONS[number - 1].stages[at]
    if stage.task:
        begin(number)
        return
    with opened(runs_of_lessons()[number]) as run:
        # Another tab may have begun to measure since this one's buttons were drawn.
        if not run or run.on_devices().running or not is_alive(run.path):
            return
        if stage.knobs:
            run.turn(f"lesson {number}", stage.knobs)
            press(run, number, stage.knobs)
        if stage.measures:
            with refusals_told():
                start_on_devices(run.path)


@deed
def begin(number: int) -> None:
    """Start the lesson's run and show it. This tab's earlier runs are stopped, and what measures them, since they would slow it down."""
    folders = []
    for earlier in runs_of_lessons().values():
        with opened(earlier) as run:
            if run:
                folders.append(run.path)
            if run and is_alive(run.path):
                run.command("stop", who=f"lesson {number}")
    for folder in folders:  # after all stops, since each of these may take seconds to end
        stop_on_devices(folder)
    lesson = LESSONS[number - 1]
    config, knobs, _ = first_of(lesson)
    started = starting.start(config, knobs, who=f"lesson {number}")
    runs_of_lessons()[number] = started
    link = {"lesson": str(number), "run": started}
    st.query_params.from_dict(link | ({"layer": str(lesson.layer)} if lesson.layer > 1 else {}))


# At right


def invite(lesson: Lesson) -> None:
    """Shown in place of the charts before a run exists."""
    first = lesson.stages[0]
    st.html(
        f'<div class="moe-invite"><b>Nothing is drawn before it is measured</b>'
        f"<span>{LOOKING if looks() else f'Press “{escape(first.button)}”. A trainer starts, and its charts grow here.'}</span></div>"
    )


def read(number: int, wanted: str | None, drawn: Progress, followed: classroom.Shown | None) -> None:
    """The parts that read the run once a second: the check of the stage that was begun last, and the answer to the question.

    When the reader gets further, or the class goes elsewhere, the page is drawn again, and this must come last: whatever a script has not drawn yet when
    it is restarted vanishes for a moment, and Streamlit's page breaks if a fragment was in it.
    """
    reap()
    now, answer = drawn, ""
    with st.container():
        if wanted and did_not_start(runs_folder() / wanted):
            st.error(f"The trainer did not start: {links.literal(words_of_failure(runs_folder() / wanted))}")
        elif wanted:
            found = read_run(wanted, number, links.word("layer") or 1)
            if found:
                now, answer = found.progress, found.answer
            if found and now.measuring:
                say_measuring(found.folder, found.measured)
            else:
                say(found.verdict if found else STARTING)
    question(number, answer)
    if now != drawn or classroom.followed() != followed:
        st.rerun()


def say(verdict: Verdict) -> None:
    happened = "yes" if verdict.happened else "wait"
    word = "✓ It happened" if verdict.happened else "Check"
    st.html(
        f'<div class="moe-check" data-check="{happened}" role="status"><b>{word}</b><span>{escape(verdict.text)}</span></div>'
    )


def say_measuring(folder: Path, measured: tuple[float, str]) -> None:
    """How far the measurement is, in place of the check, which waits for it, and the button that cancels it."""
    bar, end = st.columns([4, 1.2], vertical_alignment="center")
    bar.progress(*measured)
    if not looks():
        with end:
            offer_cancel(folder.name, deed(stop_on_devices), folder)


def question(number: int, own: str) -> None:
    """The question; the answer stays folded until it is opened. own: the answer with the numbers of the reader's run."""
    lesson = LESSONS[number - 1]
    words, file = st.container(key="question").columns([4, 1.2], vertical_alignment="top")
    with words.expander(f"**Question.** {lesson.question}"):
        st.markdown(lesson.answer)
        st.markdown(own)
    # Given as text, not as a function: with a function the file's address changes each second, and a click comes too late.
    file.download_button(
        "Flashcards", flashcards(), "moescope-flashcards.csv", "text/csv", on_click="ignore", width="stretch",
        help="The questions of all lessons as CSV for Anki: front, back, tags.",
    )  # fmt: skip
    file.button(
        "All as text",
        key=f"read-{number}",
        on_click=read_on,
        width="stretch",
        help="All lessons to read or to print, without a run.",
    )


def read_on() -> None:
    st.query_params["read"] = "true"
