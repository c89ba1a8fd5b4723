"""textleak: audit how much private text a shared gradient gives away.

The way of the data, one room an arrow: `client` (a private batch to a `SharedGradient`), `defenses`, `attacks` (on
the engine in `matching` with `decoding`, or on `exact`, which reads off without optimizing), `scoring`, `runs`, and
the viewers of a run's events. `evaluation` goes that way for data sets × settings, `reports` says what it came to.
Everything a script needs is here: `load_model`, `share`, `attack`, `recover`, `score`, `run`, `evaluate`; for a
training of one's own `record`, `audit`, `wrap`, `from_gradients`, `from_update`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textleak.api import attack, audit, evaluate, from_gradients, from_update, recover, run, score, share
    from textleak.clients import Client
    from textleak.defenses import Defense
    from textleak.evaluation.answers import Records
    from textleak.events import Recovery
    from textleak.integrations.plain import record
    from textleak.jobs.results import AuditResult, RunResult
    from textleak.models import TextModel, load_model
    from textleak.models.loading.memory import wrap
    from textleak.private.secrets import Secret
    from textleak.scoring import Scores
    from textleak.shared.gradient import SharedGradient

__version__ = "0.1.0"
__all__ = [
    "AuditResult",
    "Client",
    "Defense",
    "Records",
    "Recovery",
    "RunResult",
    "Scores",
    "Secret",
    "SharedGradient",
    "TextModel",
    "attack",
    "audit",
    "evaluate",
    "from_gradients",
    "from_update",
    "load_model",
    "record",
    "recover",
    "run",
    "score",
    "share",
    "wrap",
]

# Where each of them lives.
_HOMES = {
    "AuditResult": "jobs.results",
    "Client": "clients",
    "Defense": "defenses",
    "Records": "evaluation.answers",
    "Recovery": "events",
    "RunResult": "jobs.results",
    "Scores": "scoring",
    "Secret": "private.secrets",
    "SharedGradient": "shared.gradient",
    "TextModel": "models",
    "attack": "api",
    "audit": "api",
    "evaluate": "api",
    "from_gradients": "api",
    "from_update": "api",
    "load_model": "models",
    "record": "integrations.plain",
    "recover": "api",
    "run": "api",
    "score": "api",
    "share": "api",
    "wrap": "models.loading.memory",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a room only when something of it is used: `import textleak` is instant."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"textleak.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a script may use, for tab completion: names that aren't imported yet among them."""
    return sorted([*__all__, "__version__"])
