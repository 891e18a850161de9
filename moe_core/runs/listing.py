"""Finding runs: where they live, one by its name, and all of them."""

import os
from pathlib import Path

from moe_core.runs.database import StoreError, is_file
from moe_core.runs.rows import Listed
from moe_core.runs.store import Run

# Seconds for a query of the list. An honest file takes less than a hundredth of that, a hostile one might take for ever.
QUERY_LIMIT = 5.0


def runs_folder(runs: str | Path | None = None) -> Path:
    """Where runs live: the argument, else the variable MOE_RUNS, else ./runs."""
    return Path(runs or os.environ.get("MOE_RUNS") or "runs")


def open_run(run: str | Path, runs: str | Path | None = None, limit: float | None = None) -> Run:
    """A run by its id, a unique beginning of one, or its path. StoreError, which lists the runs, if there is none."""
    folder = runs_folder(runs)
    if str(run) and is_file(folder / str(run) / "run.db"):
        return Run(folder / str(run), limit)
    if os.sep in str(run) or Path(run).is_absolute() or isinstance(run, Path):
        return Run(Path(run), limit)
    known = _folders(folder)
    matches = [path for path in known if path.name.startswith(str(run))]
    if len(matches) == 1:
        return Run(matches[0], limit)
    names = ", ".join(path.name for path in (matches or known)[:8]) or "none"
    problem = "is the beginning of several runs" if matches else "is no run"
    raise StoreError(f"{str(run)!r} {problem} in {folder}; there are: {names}")


def list_runs(runs: str | Path | None = None, room: bool = False) -> list[Listed]:
    """Every run, the newest first. One damaged run never hides the others. room: look up size and growth too."""
    listed = []
    for path in _folders(runs_folder(runs)):
        try:
            run = Run(path, QUERY_LIMIT)
            try:
                status = run.status()
                taken = (run.size(), run.growth()) if room else ()
                reason = quiet_text(status.quiet) or status.reason
                created = run.facts["created"]
                listed.append(Listed(run.id, status.state, status.step, run.description, created, "", reason, *taken))
            finally:
                run.close()
        except ValueError as error:
            listed.append(Listed(path.name, "damaged", 0, None, _changed(path), str(error)))
    return sorted(listed, key=lambda one: -one.created)


def quiet_text(seconds: int) -> str:
    """The message about a trainer that does not answer; "" for one that does."""
    return f"its trainer has not answered for {seconds} s; `stop` ends it" if seconds else ""


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _is_run(path))


def _is_run(folder: Path) -> bool:
    """Whether there is a run.db, of whatever kind; a folder that may not be read is taken for one too."""
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
