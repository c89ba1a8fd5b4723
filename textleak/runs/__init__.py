"""Run folders: what happened in a run, written as it happens and read back as it was.

A folder holds `run.json` (settings, versions, machine), `events.jsonl` (each event a line, `t` seconds after
the start), `result.json` once there is a result, `gradients.safetensors` on request, `traceback.txt` after a
bug, and `control.jsonl`, into which a viewer writes commands. A kill at any moment leaves a readable folder.

`folder` names the files, `recorder` writes them, `reading` reads them, `control` drives an attack and steers it,
`redaction` says what a record leaves out, `machine` what it was computed with.

This room knows events and files. It knows no model, no attack and no terminal.
"""

from textleak.runs.control import Control, execute, send
from textleak.runs.folder import (
    EVALUATION_FILE,
    RunFolder,
    as_file_name,
    check_folder,
    check_out,
    check_writable,
    holds_an_evaluation,
    new_path,
    run_words,
    runs_folder,
    write_json,
)
from textleak.runs.machine import cores, machine_facts, versions
from textleak.runs.reading import RunRecord, TimedEvent, list_runs, parse_line, read_events, read_run
from textleak.runs.recorder import Recorder
from textleak.runs.redaction import redacted_result, redacted_settings, without_truth

__all__ = [
    "EVALUATION_FILE",
    "Control",
    "Recorder",
    "RunFolder",
    "RunRecord",
    "TimedEvent",
    "as_file_name",
    "check_folder",
    "check_out",
    "check_writable",
    "cores",
    "execute",
    "holds_an_evaluation",
    "list_runs",
    "machine_facts",
    "new_path",
    "parse_line",
    "read_events",
    "read_run",
    "redacted_result",
    "redacted_settings",
    "run_words",
    "runs_folder",
    "send",
    "versions",
    "without_truth",
    "write_json",
]
