"""Where commands and their options stand in a help page, and what each page ends with."""

from __future__ import annotations

from collections.abc import Mapping

AUDIT, READ, MAKE, LOOK_UP = "Audit", "Read", "Make", "Look up"

ATTACKED, LEAVES, KNOWS = "What is attacked", "What leaves the client", "What the attacker knows"
ATTACK, COMPUTE, OUTPUT, SCRIPTS = "Attack", "Compute", "Output", "In scripts"

# The panel of an option, by its parameter's name, in any command.
PANELS: Mapping[str, str] = {
    **dict.fromkeys(
        ("model", "weights", "task", "sentence", "file", "label", "gradients", "image", "index", "dataset"),
        ATTACKED,
    ),
    **dict.fromkeys(("before", "after", "tokenizer", "layers"), ATTACKED),
    **dict.fromkeys(("data", "column", "label_column", "limit", "max_words", "batch_size"), ATTACKED),
    **dict.fromkeys(("share", "client", "defense"), LEAVES),
    **dict.fromkeys(("know",), KNOWS),
    **dict.fromkeys(("attack", "prior", "restarts", "steps", "time_limit"), ATTACK),
    **dict.fromkeys(
        (
            "seed",
            "device",
            "threads",
            "workers",
            "together",
            "engine",
            "address",
            "dtype",
            "repeats",
            "tokens",
            "objective",
        ),
        COMPUTE,
    ),
    **dict.fromkeys(("out", "save_gradients", "film", "redact", "truth", "utility", "report"), OUTPUT),
    **dict.fromkeys(
        ("config", "assignments", "json_", "fail_above", "retry_failed", "dry_run", "yes"), SCRIPTS
    ),
}
ORDER = (ATTACKED, LEAVES, KNOWS, ATTACK, COMPUTE, OUTPUT, SCRIPTS)

_CODES = "Exit codes: 0 done, 1 failed, 2 usage or input, 130 interrupted."
_CODES_RUN = "Exit codes: 0 done, 1 failed, 2 usage or input, 3 above --fail-above, 130 interrupted."


def _epilog(*examples: str, codes: str = _CODES) -> str:
    """Examples, a line each, and what a script may go by."""
    return "\n\n".join(("Examples:", *(f"  textleak {example}" for example in examples), codes))


EPILOGS: Mapping[str, str] = {
    "run": _epilog(
        'run -s "the meeting was moved to friday"',
        'run -m minilm --share no-embeddings -s "my code is 4921" --json',
        'run -s "some text" --defense gaussian:sigma=1e-3 --fail-above 0.2',
        codes=_CODES_RUN,
    ),
    "audit": _epilog(
        "audit client.safetensors --report leaks.html",
        "audit --before base-model --after tuned-model --time-limit 10m",
        codes=_CODES_RUN,
    ),
    "init": _epilog("init trainer", "init flower --out audit_flower.py"),
    "image": _epilog("image", "image --image yours.jpg", "image -m resnet20 -a cosine"),
    "eval": _epilog(
        "eval -c quick", "eval --data mails.csv --column body -m minilm --defense none --defense sign"
    ),
    "share": _epilog('share -m minilm -s "my code is 4921" --out client.safetensors'),
    "report": _epilog("report FOLDER", "report FOLDER --out leaks.html --redact"),
    "compare": _epilog("compare BEFORE AFTER"),
    "tui": _epilog("tui", "tui FOLDER"),
    "attacks": _epilog("attacks", "attacks match"),
    "clients": _epilog("clients", "clients fedavg", "clients hf-trainer"),
    "defenses": _epilog("defenses", "defenses gaussian"),
    "settings": _epilog("settings", "settings know"),
    "doctor": "Exit codes: 0 ready, 1 not ready.",
}
