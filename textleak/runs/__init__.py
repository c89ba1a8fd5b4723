"""Run folders: what happened in a run, written as it happens and read back as it was.

A folder holds `run.json` (settings, versions, machine), `events.jsonl` (each event a line, `t` seconds after
the start), `result.json` once there is a result, `gradients.safetensors` on request, `traceback.txt` after a
bug, and `control.jsonl`, into which a viewer writes commands. A kill at any moment leaves a readable folder.

This room knows events and files. It knows no model, no attack and no terminal.
"""

from textleak.runs.recorder import (
    Control,
    Recorder,
    RunFolder,
    RunRecord,
    TimedEvent,
    check_folder,
    check_out,
    check_writable,
    cores,
    execute,
    list_runs,
    machine,
    parse_line,
    read_events,
    read_run,
    redacted_event,
    redacted_result,
    redacted_settings,
    runs_folder,
    send,
    versions,
    write_json,
)

__all__ = [
    "Control",
    "Recorder",
    "RunFolder",
    "RunRecord",
    "TimedEvent",
    "check_folder",
    "check_out",
    "check_writable",
    "cores",
    "execute",
    "list_runs",
    "machine",
    "parse_line",
    "read_events",
    "read_run",
    "redacted_event",
    "redacted_result",
    "redacted_settings",
    "runs_folder",
    "send",
    "versions",
    "write_json",
]
