"""The command that does what a folder holds again, as far as the folder says how."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from textleak.events import label_words
from textleak.runs import redacted_settings

if TYPE_CHECKING:
    from textleak.reports.reading import Findings


def settings_of(evaluation: Findings, redact: bool) -> Mapping[str, Any]:
    """What was asked for; without the private batch where the report is redacted."""
    return redacted_settings(evaluation.settings) if redact else evaluation.settings


def command(evaluation: Findings, *, redact: bool = False) -> str:
    """The command that does the same again, "" where that can't be said."""
    if evaluation.audit is not None:
        return _audit_command(evaluation.settings)
    if evaluation.kind == "run":
        know, pictures = evaluation.records[0].cell.know, evaluation.pictures is not None
        return _attack_command(evaluation.settings, know, pictures=pictures, redact=redact)
    threads = evaluation.values("threads")
    return _evaluation_command({**evaluation.settings, "threads": threads[0] if len(threads) == 1 else None})


# What `textleak eval` takes as a flag, in the order of its help; the rest goes through --set.
_FLAGS = (
    *("data", "column", "label_column", "limit", "max_words", "batch_size", "model", "weights", "task"),
    *("attack", "share", "client", "defense", "know", "seed", "time_limit", "device", "threads"),
)
_SET = ("num_labels", "dtype")


def _evaluation_command(settings: Mapping[str, Any]) -> str:
    """`textleak eval` with every setting that decides the result, and the threads that it was computed on."""
    words = ["textleak", "eval"]
    asked = dict(settings)
    if "limits" in asked:  # an attack's own limit is written among its options
        asked["attack"] = [
            spec if limit == asked.get("limit") else f"{spec}{',' if ':' in spec else ':'}limit={limit}"
            for spec, limit in zip(asked["attack"], asked["limits"], strict=True)
        ]
    for key in _FLAGS:
        value = asked.get(key)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            if one is not None or value != [None]:
                words += [f"--{key.replace('_', '-')}", "default" if one is None else str(one)]
    words += [word for key in _SET if key in asked for word in ("--set", f"{key}={asked[key]}")]
    return shlex.join(words)


def _audit_command(settings: Mapping[str, Any]) -> str:
    """`textleak audit` with what was audited; what its flags say of the model isn't recorded."""
    words = ["textleak", "audit"]
    if settings.get("gradients"):
        words += [settings["gradients"], "--model", settings.get("model") or ""]
    else:
        words += ["--before", str(settings.get("before")), "--after", str(settings.get("after"))]
    words += ["--task", settings.get("task") or ""]
    words += _each("--client", settings.get("client"))
    words += ["--attack", settings.get("attack") or "", "--time-limit", str(settings.get("time_limit"))]
    words += ["--device", settings.get("device") or "auto", "--threads", str(settings.get("threads", 1))]
    return shlex.join(words)


def _attack_command(settings: Mapping[str, Any], know: str | None, *, pictures: bool, redact: bool) -> str:
    """`textleak run` or `textleak image` with every option that decides the result; of pictures the names alone."""
    words = ["textleak", "image" if pictures else "run"]
    words += ["--model", settings.get("model") or "", "--weights", settings.get("weights") or ""]
    words += [] if pictures else ["--task", settings.get("task") or ""]
    if settings.get("gradients"):
        words += ["--gradients", settings["gradients"]]
    else:
        name, flag = ("pictures", "--image") if pictures else ("sentences", "--sentence")
        words += _each(flag, ["…"] if redact else settings.get(name) or ["…"])
        labels = () if redact else settings.get("labels") or ()
        words += _each("--label", [label_words(label) for label in labels])
        words += ["--share", settings.get("share") or "all"]
        words += _each("--client", settings.get("client"))
        words += _each("--defense", settings.get("defense"))
    words += ["--know", know or "nothing", "--attack", settings.get("attack") or ""]
    for key, value in (settings.get("attack_options") or {}).items():
        if value is not None:
            words += ["--set", f"attack.{key}={json.dumps(value) if not isinstance(value, str) else value}"]
    words += _each("--time-limit", [limit] if (limit := settings.get("time_limit")) is not None else ())
    words += ["--seed", str(settings.get("seed", 0)), "--device", settings.get("device") or "auto"]
    words += ["--threads", str(settings.get("threads", 1))]
    return shlex.join(words)


def _each(flag: str, values: Iterable[object] | None) -> list[str]:
    """A flag before each value; nothing for none."""
    return [word for value in values or () for word in (flag, str(value))]
