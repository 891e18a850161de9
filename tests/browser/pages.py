"""Every page by a link that names all it can, and what shows that the page is there and shows just that."""

from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Page

from moe_core.schema import Config, Knobs
from moe_core.sweep import make_plan, make_sweep, run_sweep
from tests.figures.record import record


class Link(NamedTuple):
    """A page's link; an expression that is true once the page shows what the link names."""

    path: str
    shows: str


def chart(name: str, that: str = "true") -> str:
    return f"(chart => !!chart?.querySelector('.main-svg') && ({that}))(document.querySelector('[data-figure={name}]'))"


CHECKED = "document.querySelector('.moepanel-segments input:checked')?.value === '2'"
AT_40 = "document.querySelector('.moescope-step')?.textContent === 'Step 40, as recorded'"
LINKS = {
    "live": Link(
        "/?run=a&layer=2&step=40&smooth=5",
        chart("balance", "chart.layout.title.text.replaceAll('<br>', ' ').includes('mean of 5 steps')")
        + f" && {CHECKED} && {AT_40}",
    ),
    "routing": Link("/routing?run=a&layer=2&step=40", f"{chart('probe_text')} && {CHECKED} && {AT_40}"),
    "experts": Link(
        "/experts?run=a&layer=2&expert=3",
        chart("favourite_bytes", "chart.layout.title.text.includes('expert 3')") + f" && {CHECKED}",
    ),
    "compare": Link(
        "/compare?run=a&with=b&align=fork&layer=2&step=40",
        chart(  # none of them is a fork, so they lie on steps however the link aligns them
            "compare_balance",
            "chart.data.length === 2 && chart.layout.xaxis.title.text === 'step'",
        )
        + f" && {CHECKED} && {AT_40}",
    ),
    "sweep": Link("/sweep?sweep=grid", "document.querySelectorAll('[href*=\"grid-c0\"]').length > 0"),
    "batch": Link(
        "/batch?run=a&devices=4&experts=8",
        chart("batch_formula", "chart.data.at(-1).x[0] === 8"),
    ),
    "learn": Link(
        "/learn?lesson=1&run=lesson",
        f"{chart('regions')} && document.querySelector('.moe-check[data-check=yes]')?.textContent.includes('of 8 experts')",
    ),
    "runs": Link("/runs?run=a", "!!document.querySelector('.moeruns-page tr[data-run^=grid-]')"),
    "export-compared": Link(
        "/export?run=a&with=b&align=fork&figures=compare_loss&expert=3",
        "!!document.querySelector('img[alt=\"Loss of the runs compared\"]') && document.body.innerText.includes('Beside a: b.')",
    ),
    "export-sweep": Link("/export?sweep=grid", "!!document.querySelector('img[alt=\"Quality against balance\"]')"),
    "export": Link(
        "/export?run=a&figures=loss,balance&layer=2&step=40&size=slide&theme=dark&font=18&format=svg&caption=true",
        "!!document.querySelector('img[alt=Loss]') && document.body.innerText.includes('As it stood at step 40.')"
        " && document.body.innerText.includes('960 × 540 px,') && document.body.innerText.includes('as svg')"
        " && document.querySelector('[aria-label=\"Font, px\"]')?.value === '18'",
    ),
}


def make(runs: Path) -> None:
    """What the links name: two runs of text, a lesson's run, a finished sweep of one cell."""
    for name in ("a", "b"):
        record(runs / name, E=4, L=2)
    record(runs / "lesson", "plane", E=8, L=1)
    config = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, threads=1, steps=5)
    assert run_sweep(make_sweep(make_plan(config, Knobs(), {"noise": [1.0]}), runs, "grid"), 1) == "finished"


SETTLED = "document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"


def wait_until_shown(page: Page, name: str, timeout: float = 60_000) -> None:
    page.wait_for_function(LINKS[name].shows, timeout=timeout)


def wait_until_settled(page: Page, name: str) -> None:
    """Until nothing more is fetched: the page's script has run, and where there is a run, its frames come."""
    wait_until_shown(page, name)
    page.wait_for_function(
        f"{SETTLED} && {'window.moescopeBytes > 0' if 'run=' in LINKS[name].path else 'true'}", timeout=60_000
    )
