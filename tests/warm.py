"""Processes of the program that have loaded their libraries already, for tests of what such a process does.

Loading torch and transformers takes several seconds of a processor, most of what a short run takes. So each test
process forks one keeper once its tests are collected and before any has run; the keeper loads what a run loads, waits,
and forks a process for each `python -m ...` or `python -c ...` that `Popen` asks for. What it gives is a process like
any other, a child of the tests' own: with its arguments, environment, folder, outputs, signals and exit code. Which
libraries are loaded can't be shown with it: tests of that start Python itself. What of textleak is loaded can, with
`Anew`, whose processes have loaded nothing of it.

Linux alone has what this needs; elsewhere `Popen` is `subprocess.Popen`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import inspect
import json
import logging
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "textleak.cli",
    "textleak.api",
    "textleak.jobs.text",
    "textleak.jobs.images",
    "textleak.evaluation.drive",
    "textleak_tui.attack_process",
    "transformers.models.bert.modeling_bert",
    "transformers.modeling_utils",
)
SUBREAPER = 36  # prctl's PR_SET_CHILDSUBREAPER
_LONGEST = 1 << 20  # bytes of a request
_SECONDS = 300  # that `run` waits at most
_OWN = ("textleak", "textleak_tui", "tests")

_keeper: socket.socket | None = None


def load() -> None:
    """Load what a run loads."""
    for name in LIBRARIES:
        importlib.import_module(name)


def keep() -> None:
    """Fork the keeper; what is loaded by now is loaded in all that it starts."""
    global _keeper
    if not sys.platform.startswith("linux") or _keeper is not None:
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        _keeper = ours
        atexit.register(ours.close)
        return
    try:
        ours.close()
        _wait(_alone(theirs))
    finally:
        os._exit(1)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, of a Python that has loaded its libraries."""

    _anew = False

    def _execute_child(self, *arguments: Any) -> None:
        execute = super()._execute_child  # type: ignore[misc]
        asked = inspect.signature(execute).bind(*arguments).arguments
        args = list(map(os.fspath, asked["args"]))
        if _keeper is None or args[0] != sys.executable or args[1] not in ("-m", "-c"):
            execute(*arguments)
            return
        handles = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        request = {
            "args": args[1:],
            "cwd": os.fspath(asked["cwd"] or Path.cwd()),
            "env": dict(os.environ if asked["env"] is None else asked["env"]),
            "alone": bool(asked["start_new_session"]),
            "anew": self._anew,
        }
        fds = [own if handle == -1 else handle for own, handle in enumerate(handles)]
        with _adopting():
            socket.send_fds(_keeper, [json.dumps(request).encode()], fds)
            self.pid = int(_keeper.recv(64))
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pipes))  # type: ignore[attr-defined]


class Anew(Popen):
    """The same, but that what is textleak's is loaded by the process itself."""

    _anew = True


def run(process: type[Popen], *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a Python with these arguments, its outputs kept as text.

    Args:
        process: `Popen` or `Anew`.
        arguments: after the interpreter's name.
        options: of `subprocess.Popen`.
    """
    pipe = subprocess.PIPE
    with process([sys.executable, *arguments], stdout=pipe, stderr=pipe, text=True, **options) as started:
        try:
            stdout, stderr = started.communicate(timeout=_SECONDS)
        except BaseException:
            started.kill()
            raise
    return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)


@contextlib.contextmanager
def _adopting() -> Any:
    """Orphans of processes below become children of this one; only now, as others' must end unseen."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(SUBREAPER, 0, 0, 0, 0)


def _alone(kept: socket.socket) -> socket.socket:
    """Leave the tests' process behind: its files, its handlers, what it does at its end."""
    atexit._clear()
    faulthandler.disable()
    kept = socket.socket(fileno=os.dup2(kept.detach(), 3, inheritable=False))
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    os.close(nothing)
    logging.root.handlers.clear()
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return kept


def _wait(kept: socket.socket) -> NoReturn:
    """Start what is asked for, until nobody can ask any more."""
    loaded = False
    while True:
        request, fds, _, _ = socket.recv_fds(kept, _LONGEST, 3)
        if not request:
            os._exit(0)
        if not loaded:
            load()
            gc.collect()
            gc.freeze()  # so that memory stays shared
            loaded = True
        read, write = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if not pid:
                kept.close()
                _run(json.loads(request), fds)
            os.write(write, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)  # only then is what was started the tests' own child
        kept.send(os.read(read, 64))
        for fd in (read, write, *fds):
            os.close(fd)


def _run(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Be the process that was asked for."""
    for own, fd in enumerate(fds):
        os.dup2(fd, own)
    os.closerange(3, 64)
    if request["alone"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    places = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in places if place and place not in sys.path]
    if request["anew"]:
        for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
            del sys.modules[name]
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", 1 if at_once else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os._exit(_ended(request["args"]))


def _ended(args: list[str]) -> int:
    """The exit code that Python itself would have."""
    way, what, *rest = args
    code: object = 0
    sys.argv = [way, *rest]
    try:
        if way == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    return code if isinstance(code, int) else int(code is not None)
