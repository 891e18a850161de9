"""Finding runs: where they live, one by its name, and all of them."""

import os
from pathlib import Path

from moe_core.runs.database import StoreError, is_file
from moe_core.runs.notes import read_notes
from moe_core.runs.remove import GONE
from moe_core.runs.rows import Listed
from moe_core.runs.store import Run
from moe_core.schema import first_few

# Seconds for a query of the list. An honest file takes less than a hundredth of that, a hostile one might take for ever.
QUERY_LIMIT = 5.0


def runs_folder(runs: str | Path | None = None) -> Path:
    """Where runs live: the argument, else the variable MOE_RUNS, else ./runs."""
    return Path(runs or os.environ.get("MOE_RUNS") or "runs")


def folder_in(runs: Path) -> Path:
    """The runs' folder as it is, if it is a folder or can become one. StoreError if it, or what it would lie in, is a file."""
    there = next(path for path in (runs, *runs.absolute().parents) if path.exists())
    if not there.is_dir():
        raise StoreError(f"runs must name a folder, and {there} is a file; name another place")
    return runs


def open_run(run: str | Path, runs: str | Path | None = None, limit: float | None = None) -> Run:
    """A run by its id, a unique beginning of one, the name that somebody gave it, or its path. StoreError, which lists the
    runs, if there is none."""
    return Run(folder_of(run, runs), limit)


def folder_of(run: str | Path, runs: str | Path | None = None) -> Path:
    """The folder of a run that is named as for open_run, whether it can be read or not."""
    folder = runs_folder(runs)
    if not str(run):
        raise StoreError(f"a run must be named, got an empty word; `runs` lists those in {folder}")
    if is_file(folder / str(run) / "run.db"):
        return folder / str(run)
    if os.sep in str(run) or Path(run).is_absolute() or isinstance(run, Path):
        return Path(run)
    known = run_folders(folder)
    matches = [path for path in known if path.name.startswith(str(run))]
    named = [] if matches else [path for path in known if read_notes(path).name == str(run)]
    if len(one := matches or named) == 1:
        return one[0]
    names = first_few([path.name for path in one or known])
    problem = f"is the {'beginning' if matches else 'name'} of several runs" if one else "is no run"
    raise StoreError(f"{str(run)!r} {problem} in {folder}; there are: {names}")


def list_runs(runs: str | Path | None = None, room: bool = False) -> list[Listed]:
    """Every run, the newest first. One damaged run never hides the others. room: look up size and growth too."""
    listed = []
    for path in run_folders(runs_folder(runs)):
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
            listed.append(Listed(path.name, "damaged", 0, None, changed_at(path), str(error)))
    return sorted(listed, key=lambda one: -one.created)


def quiet_text(seconds: int) -> str:
    """The message about a trainer that does not answer; "" for one that does."""
    return f"its trainer has not answered for {seconds} s; `stop` ends it" if seconds else ""


def run_folders(folder: Path) -> list[Path]:
    """The folders of all runs, by name; not those that are being deleted."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(GONE) and is_run(path))


def is_run(folder: Path) -> bool:
    """Whether there is a run.db, of whatever kind; a folder that may not be read is taken for one too."""
    try:
        os.lstat(folder / "run.db")
        return True
    except PermissionError:
        return True
    except OSError:
        return False


def changed_at(path: Path) -> float:
    """When a folder was changed last; 0 if it has gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
