"""The record and the wire. Needs numpy and the standard library's sqlite3; never torch."""

from moe_core.runs.ablation import Ablation, read_ablation, write_ablation
from moe_core.runs.begin import create_run, resume_run
from moe_core.runs.columns import pick
from moe_core.runs.compare import BY_THE_CLOCK, COMPARED, Difference, fingerprint, first_difference
from moe_core.runs.database import FolderGone, StoreError, hold_lock, is_alive
from moe_core.runs.listing import folder_in, list_runs, open_run, runs_folder
from moe_core.runs.log import NO_WORDS, last_words, words_of_failure
from moe_core.runs.machine import cores
from moe_core.runs.measuring import Measured, bench_file, measured, start_measuring, stop_measuring
from moe_core.runs.notes import Notes, change_notes, read_notes
from moe_core.runs.on_devices import (
    OnDevices,
    devices_for,
    nothing_on_devices,
    on_devices,
    start_on_devices,
    stop_on_devices,
)
from moe_core.runs.outcome import ending
from moe_core.runs.remove import Going, going_text, remove_run, what_goes
from moe_core.runs.rows import (
    COMMANDS,
    ENDED,
    Batch,
    Block,
    Command,
    Eval,
    KnobChange,
    Listed,
    Parent,
    Pending,
    Status,
    evaluation,
)
from moe_core.runs.runner import (
    RUN_ID,
    checked_id,
    command_of,
    end_child,
    flags,
    fork,
    is_running,
    load_torch_ahead,
    new_id,
    reap,
    resume,
    spawn,
    start,
    start_demo,
    stop,
    stop_later,
    wait_ready,
    whole_paths,
)
from moe_core.runs.script import Script, changes_of, read_script, script_of
from moe_core.runs.series import thin
from moe_core.runs.statistics import derive
from moe_core.runs.store import Run
from moe_core.runs.turns import knobs_after
from moe_core.runs.whole import verify
from moe_core.runs.writer import RunWriter

__all__ = [
    "BY_THE_CLOCK",
    "COMMANDS",
    "COMPARED",
    "ENDED",
    "NO_WORDS",
    "RUN_ID",
    "Ablation",
    "Batch",
    "Block",
    "Command",
    "Difference",
    "Eval",
    "FolderGone",
    "Going",
    "KnobChange",
    "Listed",
    "Measured",
    "Notes",
    "OnDevices",
    "Parent",
    "Pending",
    "Run",
    "RunWriter",
    "Script",
    "Status",
    "StoreError",
    "bench_file",
    "change_notes",
    "changes_of",
    "checked_id",
    "command_of",
    "cores",
    "create_run",
    "derive",
    "devices_for",
    "end_child",
    "ending",
    "evaluation",
    "fingerprint",
    "first_difference",
    "flags",
    "folder_in",
    "fork",
    "going_text",
    "hold_lock",
    "is_alive",
    "is_running",
    "knobs_after",
    "last_words",
    "list_runs",
    "load_torch_ahead",
    "measured",
    "new_id",
    "nothing_on_devices",
    "on_devices",
    "open_run",
    "pick",
    "read_ablation",
    "read_notes",
    "read_script",
    "reap",
    "remove_run",
    "resume",
    "resume_run",
    "runs_folder",
    "script_of",
    "spawn",
    "start",
    "start_demo",
    "start_measuring",
    "start_on_devices",
    "stop",
    "stop_later",
    "stop_measuring",
    "stop_on_devices",
    "thin",
    "verify",
    "wait_ready",
    "what_goes",
    "whole_paths",
    "words_of_failure",
    "write_ablation",
]
