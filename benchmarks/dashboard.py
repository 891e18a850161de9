"""How quick the page is, in a real Chromium beside a real trainer: `python benchmarks/dashboard.py`.

From a click on a card to moving charts; from a key on a knob to the store, to the trainer and to the chart; how many frames a second
the charts get over 30 s, at full speed and of a run that trains five steps a second, and what they cost the server and the browser.
Run it alone: all of it shares the machine's cores. Prints one JSON line, and with --out keeps it with the machine described.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.benchmarks.results import keep
from moe_core.commands.common import count_flag, seconds_flag
from moe_core.runs import Run, list_runs, open_run
from tests.browser.conftest import Server, end_trainers
from tests.chromium import FLAGS, find

STEP = "name => document.querySelector(`[data-figure=${name}]`)?.layout?.meta?.step ?? 0"
CARDS = ("Digits", "Plane", "Text")  # knobs and charts are measured on the last
SLOW = 5  # steps a second of the run that is watched second
TICKS = os.sysconf("SC_CLK_TCK")


def step_of(page: Page) -> int:
    return int(page.evaluate(STEP, "balance"))


def until_drawn(page: Page, step: int) -> None:
    page.wait_for_function(f"step => (({STEP})('balance')) >= step", arg=step, timeout=60_000, polling="raf")


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of those of the processes that still run."""
    total = 0.0
    for pid in pids:
        try:
            parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(parts[11]) + int(parts[12])) / TICKS
    return total


def family(root: int) -> list[int]:
    """The ids of a process and of all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids = [root]
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
    return pids


def browser_processes() -> list[int]:
    """Chromium's, among those that this process started."""
    pids = []
    for pid in family(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"--disable-quic" in words or b"--type=" in words:
                pids.append(pid)
    return pids


def click_to_charts(server: Server, browser: Browser, card: str) -> tuple[float, Run, Page]:
    """Seconds from the click to charts that have moved once, of a page that was open before."""
    before = {one.id for one in list_runs(server.runs)}
    page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    page.goto(f"{server.url}/?run=new")
    button = page.get_by_role("button", name=card, exact=True)
    button.wait_for()
    page.wait_for_timeout(1500)
    began = time.time()
    button.click()
    until_drawn(page, 1)
    until_drawn(page, step_of(page) + 1)
    took = time.time() - began
    run = next(one.id for one in list_runs(server.runs) if one.id not in before)
    return took, open_run(run, server.runs), page


# Keeps when a key was pressed, and when the chart came to each step, in seconds since 1970 by the page's own clock.
KEEP_TIMES = f"""() => {{
  const clock = (ms) => (performance.timeOrigin + ms) / 1000;
  window.keyed = 0, window.shown = [];
  addEventListener("keydown", (event) => (window.keyed = clock(event.timeStamp)), true);
  const look = (now) => {{
    const step = ({STEP})("balance");
    if (step !== shown.at(-1)?.[1]) shown.push([clock(performance.now()), step]);
    if (window.keyed !== null) requestAnimationFrame(look);  // it costs what is measured next
  }};
  look();
}}"""


def keys(run: Run, page: Page, count: int) -> dict[str, float]:
    """Medians in ms from a key on a knob: to its row in the store, to the step of effect, to the chart that shows it; of the last
    also the time that 19 of 20 stay below."""
    knob = page.get_by_role("slider", name="noise", exact=True)
    knob.hover()  # a person's pointer is there too, and not at a chart, whose hover costs a layout
    knob.focus()
    page.evaluate(KEEP_TIMES)
    stored, applied, shown = [], [], []
    for _ in range(count):
        before = run.checked.newest()
        page.keyboard.press("ArrowRight")
        while run.checked.newest()[2] <= before[2]:
            time.sleep(0.005)
        acted, turn = time.time(), run.knob_changes()[-1]
        assert turn.step is not None
        page.wait_for_function("step => shown.some(([, at]) => at >= step)", arg=turn.step, timeout=60_000)
        pressed, drawn = page.evaluate("step => [keyed, shown.find(([, at]) => at >= step)[0]]", turn.step)
        stored.append(turn.when - pressed)
        applied.append(acted - pressed)
        shown.append(drawn - pressed)
        page.wait_for_timeout(400)
    page.evaluate("window.keyed = null")
    delays = {"key_to_store_ms": stored, "key_to_trainer_ms": applied, "key_to_chart_ms": shown}
    told = {name: round(1000 * statistics.median(values)) for name, values in delays.items()}
    return told | {"key_to_chart_p95_ms": round(1000 * statistics.quantiles(shown, n=20)[-1])}


def watching(server: Server, page: Page, browser_pids: list[int], seconds: float) -> dict[str, float]:
    """What the page costs while nobody touches it, in % of one core: frames, how many charts Plotly laid out, KB a frame, nodes
    replaced. main_thread: of the page's, by its CPU time; browser: of all its processes."""
    page.mouse.move(640, 3)  # at no chart
    page.evaluate(
        """() => {
          window.kept = [...document.querySelectorAll('[data-figure], [data-figure] .main-svg')];
          window.layouts = 0;
          for (const chart of document.querySelectorAll('[data-figure]')) chart.on?.('plotly_afterplot', () => window.layouts++);
        }"""
    )
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def now() -> tuple[float, ...]:
        metrics = {one["name"]: one["value"] for one in tools.send("Performance.getMetrics")["metrics"]}
        counted = page.evaluate("[window.moescopeFrames ?? 0, window.moescopeBytes ?? 0, window.layouts]")
        spent = cpu_seconds([server.process.pid]), cpu_seconds(browser_pids), metrics["TaskDuration"]
        return time.time(), *spent, *counted

    before = now()
    page.wait_for_timeout(1000 * seconds)
    took, served, browsed, main, frames, size, layouts = (b - a for a, b in zip(before, now(), strict=True))
    lost = page.evaluate("window.kept.filter(node => !node.isConnected).length")
    tools.detach()
    return {
        "frames_per_s": round(frames / took, 2),
        "layouts_per_s": round(layouts / took, 2),
        "main_thread_percent": round(100 * main / took, 1),
        "browser_percent": round(100 * browsed / took, 1),
        "server_percent": round(100 * served / took, 1),
        "kb_per_frame": round(size / 1000 / max(frames, 1), 1),
        "nodes_replaced": lost,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=seconds_flag, default=30.0)
    parser.add_argument("--keys", type=count_flag, default=20)
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="keep the figures here, with the machine described"
    )
    parser.add_argument("--quick", action="store_true", help="one card, two keys, two seconds, to see that it works")
    given = parser.parse_args(arguments)
    cards, count, seconds = CARDS, given.keys, given.seconds
    if given.quick:
        cards, count, seconds = CARDS[-1:], 2, 2.0
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as runs, sync_playwright() as playwright:
        server = Server(Path(runs))
        browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
        try:
            for card in cards:
                took, run, page = click_to_charts(server, browser, card)
                results[f"click_{card.lower()}_s"] = round(took, 2)
                if card == CARDS[-1]:
                    page.wait_for_timeout(4000)
                    results |= keys(run, page, count)
                    results |= watching(server, page, browser_processes(), seconds)
                    run.turn(speed_limit=SLOW)
                    page.wait_for_timeout(2000)
                    slow = watching(server, page, browser_processes(), seconds)
                    results |= {f"slow_{name}": value for name, value in slow.items()}
                page.close()
                end_trainers(server.runs)
        finally:
            browser.close()
            server.kill()
            end_trainers(server.runs)
    print(json.dumps(results))
    if given.out:
        keep(given.out, [results], seconds=seconds, keys=count)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
