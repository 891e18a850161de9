"""Finding runs: where they live, one by its name, and all of them."""

import os
from pathlib import Path

from moe_core.runs.database import StoreError, there
from moe_core.runs.rows import Listed
from moe_core.runs.store import Run

LOOK = 5.0  # seconds for a query of the list; none takes a hundredth, unless a file is made to keep its reader


def runs_folder(runs: str | Path | None = None) -> Path:
    """Where runs live: the argument, else the variable MOE_RUNS, else ./runs."""
    return Path(runs or os.environ.get("MOE_RUNS") or "runs")


def open_run(run: str | Path, runs: str | Path | None = None, limit: float | None = None) -> Run:
    """A run by its id, a unique beginning of one, or its path. StoreError says which there are."""
    folder = runs_folder(runs)
    if str(run) and there(folder / str(run) / "run.db"):
        return Run(folder / str(run), limit)
    if os.sep in str(run) or Path(run).is_absolute() or isinstance(run, Path):
        return Run(Path(run), limit)
    known = _folders(folder)
    found = [path for path in known if path.name.startswith(str(run))]
    if len(found) == 1:
        return Run(found[0], limit)
    names = ", ".join(path.name for path in (found or known)[:8]) or "none"
    problem = "is the beginning of several runs" if found else "is no run"
    raise StoreError(f"{str(run)!r} {problem} in {folder}; there are: {names}")


def list_runs(runs: str | Path | None = None, room: bool = False) -> list[Listed]:
    """Every run, the newest first. One damaged run never hides the others. room: look up size and growth too."""
    listed = []
    for path in _folders(runs_folder(runs)):
        try:
            run = Run(path, LOOK)
            try:
                status = run.status()
                taken = (run.size(), run.growth()) if room else ()
                told = (
                    status.state,
                    status.step,
                    run.description,
                    run.facts["created"],
                    "",
                    quiet_text(status.quiet) or status.reason,
                )
                listed.append(Listed(run.id, *told, *taken))
            finally:
                run.close()
        except ValueError as error:
            listed.append(Listed(path.name, "damaged", 0, None, _changed(path), str(error)))
    return sorted(listed, key=lambda one: -one.created)


def quiet_text(seconds: int) -> str:
    """What is said of a trainer that does not answer; "" of one that does."""
    return f"its trainer has not answered for {seconds} s; `stop` ends it" if seconds else ""


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _is_run(path))


def _is_run(folder: Path) -> bool:
    """Whether there is a run.db, of whatever kind; a folder that may not be looked into may be one."""
    try:
        os.lstat(folder / "run.db")
        return True
    except PermissionError:
        return True
    except OSError:
        return False


def _changed(path: Path) -> float:
    """When a folder was changed last; 0 if it has gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
