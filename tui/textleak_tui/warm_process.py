"""`python -m textleak_tui.warm_process`: loads what attacks need, and begins each as a copy of itself.

It loads what every attack needs, keeps the model that the app names, loads the rest, tells the catalog of attacks, and
waits. For each attack it is handed three standard streams and forks. It computes with one thread of its own and touches
no device, for neither threads nor devices outlive a fork. When the app goes, so does it; the copies end by their own
standard input.

Standard input is a socket; messages are JSON, one a packet. In: `{"do": "keep", command, settings}`,
`{"do": "start", command, folder, wish}` with three file descriptors.
Out: `{"doing", "ready"}`, `{"catalog"}`, `{"pid"}`, `{"pid", "code"}`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from textleak_tui.setups import layers
from textleak_tui.starter import LONGEST

# What a run imports on its way to a first token (measured: half of a short run's processor time), beside the model.
FIRST = (
    "textleak.jobs.text",
    "textleak.attacks.auto",
    "textleak.private.share",
    "textleak_tui.attack_process",
)
# What it or another run imports later, beside what the catalog needs.
LATER = (
    "textleak.models.prior",
    "textleak.proof.likelihood",
    "textleak.scoring.rouge",
    "rouge_score.rouge_scorer",
)
# Seconds between two looks for copies that have ended (our choice).
SECONDS_TO_LOOK = 0.05


class _Warm:
    """What is kept, and who was begun.

    Args:
        app: the app's socket.
        threads: of a process that has just begun, which its copies are to have.
    """

    def __init__(self, app: socket.socket, threads: int) -> None:
        self.app = app
        self.threads = threads
        self.ready = ""
        self.copies: set[int] = set()
        self._kept: Mapping[str, Any] | None = None
        self._later: list[Callable[[], object]] = [
            *(partial(importlib.import_module, name) for name in LATER),
            self._tell_catalog,
        ]

    def say(self, **message: Any) -> None:  # noqa: ANN401 - JSON
        self.app.send(json.dumps(message, default=str).encode())

    def serve(self) -> None:
        """Do what the app asks for, until it has gone."""
        wish: Mapping[str, Any] | None = None
        while True:
            # A wish waits until nothing else is asked for: while one types, only the last of them counts. What no
            # first token needs waits for both.
            idle = wish is None and not self._later
            patience = 0.0 if not idle else SECONDS_TO_LOOK if self.copies else None
            if not select.select([self.app], [], [], patience)[0]:
                if wish is not None:
                    self.keep(wish)
                    wish = None
                elif self._later:
                    self._later.pop(0)()
                self.bury()
                continue
            said, fds, _, _ = socket.recv_fds(self.app, LONGEST, 3)
            if not said:
                return
            request = json.loads(said)
            if request["do"] == "keep":
                wish = request
            else:
                self.keep(request["wish"] or {})
                wish = None
                self.begin(request["command"], Path(request["folder"]), fds)

    def _tell_catalog(self) -> None:
        from textleak import describe

        self.say(catalog=describe.catalog())
        gc.freeze()  # what is loaded by now stays, and its memory shared

    def keep(self, wish: Mapping[str, Any]) -> None:
        """Hold the model that a run's settings name, where they name one that is at hand."""
        if wish.get("command") == "run" and wish["settings"] != self._kept:
            self._kept = wish["settings"]
            with contextlib.suppress(Exception):  # the run itself says what is wrong with its settings
                self._hold(wish["settings"])
        self.say(doing="", ready=self.ready)

    def _hold(self, settings: Mapping[str, Any]) -> None:
        from textleak.jobs.text import keep
        from textleak.settings import load_run_config

        config = load_run_config(*layers({**settings, "sentences": ["-"]}))
        self.say(doing=f"loading {config.model}", ready=self.ready)
        before, self.ready = self.ready, ""
        self.ready = config.model if keep(config) else ""
        if before:  # its model goes
            gc.unfreeze()
            gc.collect()
        gc.freeze()  # so that memory stays shared

    def begin(self, command: str, folder: Path, fds: list[int]) -> None:
        """Begin an attack as a copy of this process."""
        pid = os.fork()
        if not pid:
            self.app.close()
            _attack(command, folder, fds, self.threads)
        for fd in fds:
            os.close(fd)
        self.copies.add(pid)
        self.say(pid=pid)

    def bury(self) -> None:
        """Tell of the copies that have ended."""
        for pid in list(self.copies):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.copies.discard(pid)
                self.say(pid=pid, code=os.waitstatus_to_exitcode(status))


def _attack(command: str, folder: Path, fds: list[int], threads: int) -> NoReturn:
    """Be an attack's process."""
    code = 1
    try:
        import torch

        from textleak_tui.attack_process import run

        for own, fd in enumerate(fds):
            os.dup2(fd, own)
            os.close(fd)
        os.setsid()
        gc.enable()
        torch.set_num_threads(threads)
        code = run(command, folder)
        sys.stdout.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def main() -> None:
    """Load the libraries, then serve."""
    app = socket.socket(fileno=0)
    # Its tokenizers' threads would not be in the copies, and say so.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    gc.disable()  # what is loaded stays, and to go over it again and again takes a sixth of the time
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in FIRST:
        importlib.import_module(name)
    with contextlib.suppress(OSError):  # the app has gone
        _Warm(app, threads).serve()


if __name__ == "__main__":
    main()
