"""Starts attacks' processes so that none waits for its libraries: they are loaded while one types.

On Linux one process, `textleak_tui.warm_process`, loads the libraries and the model that the form names, and each
attack begins as a copy of it. The copy is a process like any other: of its own session and standard streams, told and
ended as `textleak_tui.child` says. Where there is no such process, `start` gives None and the attack starts by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textleak_tui.agreed import INTERRUPTED, environment

# Of one message, either way: the longest is the catalog, some 40,000 bytes.
LONGEST = 1 << 20


class Copy:
    """One attack's process, begun as a copy of the warm one; what `Child` needs of `asyncio.subprocess.Process`.

    Args:
        starter: asked to end the warm process where the copy isn't there yet.
        stdin, stdout, stderr: our ends of its standard streams.
    """

    def __init__(
        self,
        starter: Starter,
        *,
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.pid: int | None = None
        self.returncode: int | None = None
        self._starter = starter
        self._handle: int | None = None
        self._over = asyncio.Event()

    def born(self, pid: int) -> None:
        """The copy is there. Its process is held by a handle, which no later one can be mistaken for."""
        self.pid = pid
        with contextlib.suppress(ProcessLookupError):  # it has ended already, and its code is on the way
            self._handle = os.pidfd_open(pid)

    def over(self, code: int) -> None:
        """It has ended."""
        if self.returncode is None:
            self.returncode = code
            self._over.set()
            self.stdin.close()
        if self._handle is not None:
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
            self._handle = None

    def orphaned(self, code: int) -> None:
        """The warm process has gone: nobody tells the copy's exit code any more, but its end can be seen."""
        if self._handle is None:
            self.over(code)
        else:
            asyncio.get_running_loop().add_reader(self._handle, self.over, code)

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal; one that isn't there yet is given up with the process that would begin it."""
        if self._handle is not None:
            signal.pidfd_send_signal(self._handle, number)
        elif self.returncode is None and self.pid is None:
            self.over(INTERRUPTED if number == signal.SIGINT else -number)
            self._starter.kill()


class Starter:
    """Keeps a warm process, and begins attacks as copies of it.

    Attributes:
        doing: what the warm process does, in words; "" while it waits.
        ready: the model that it holds, by name; "" for none.
        catalog: what attacks there are, once it has told; its result is None where it has ended before.
    """

    def __init__(self) -> None:
        self.doing = self.ready = ""
        self.catalog: asyncio.Future[Mapping[str, Any] | None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._heard = False
        self._unborn: list[Copy] = []
        self._copies: dict[int, Copy] = {}
        self._kept: dict[str, Any] | None = None

    @staticmethod
    def possible() -> bool:
        """Whether the system can do it: elsewhere a copy of a process that has loaded much is not to be trusted."""
        return sys.platform.startswith("linux") and hasattr(os, "pidfd_open")

    def begin(self) -> None:
        """Begin to load the libraries, where that isn't done yet: before a first wish is known, in no event loop.

        Raises:
            OSError: no process can be started.
        """
        if self._socket is not None or not self.possible():
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "textleak_tui.warm_process"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env=environment(),
                )
        except OSError:
            ours.close()
            raise
        self._socket = ours
        self.doing = "loading torch and the attacks"

    def keep(self, command: str, settings: Mapping[str, Any]) -> None:
        """Let the model of these settings be loaded, and the libraries before it; returns at once.

        Args:
            command: "run", "image" or "audit".
            settings: of the run, without its private batch.
        """
        wish = {"command": command, "settings": dict(settings)}
        if not self.possible() or (self._socket is not None and wish == self._kept):
            return
        with contextlib.suppress(OSError):  # what can't be kept warm starts cold
            self.begin()
            self._hear_of_it()
            self._kept = wish
            self._send({"do": "keep", **wish})

    async def start(self, command: str, folder: Path) -> Copy | None:
        """Begin an attack; None where there is no warm process to begin it.

        Args:
            command: "run", "image" or "audit".
            folder: its run folder.
        """
        if self._socket is None:
            return None
        told, theirs = socket.socketpair()
        (out, its_out), (errors, its_errors) = os.pipe(), os.pipe()
        _, stdin = await asyncio.open_connection(sock=told)
        copy = Copy(self, stdin=stdin, stdout=await _reader(out), stderr=await _reader(errors))
        request = {"do": "start", "command": command, "folder": str(folder), "wish": self._kept}
        try:
            self._send(request, [theirs.fileno(), its_out, its_errors])
        except OSError:
            stdin.close()
            return None
        finally:
            theirs.close()
            os.close(its_out)
            os.close(its_errors)
        self._unborn.append(copy)
        return copy

    def kill(self) -> None:
        """End the warm process at once; copies that are there go on."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """End the warm process, and leave nothing of it."""
        self.kill()
        if self._socket is not None:
            self._gone()

    def _hear_of_it(self) -> None:
        """Listen to the process, from the first wish on."""
        if self._heard or self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._hear)
        self.catalog = loop.create_future()
        self._heard = True

    def _send(self, message: Mapping[str, Any], fds: list[int] | None = None) -> None:
        if self._socket is None:  # it has gone meanwhile
            raise BrokenPipeError
        socket.send_fds(self._socket, [json.dumps(message).encode()], fds or [])

    def _hear(self) -> None:
        assert self._socket is not None
        try:
            said = self._socket.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._gone()
            return
        self._heed(json.loads(said))

    def _heed(self, message: Mapping[str, Any]) -> None:
        if "doing" in message:
            self.doing, self.ready = message["doing"], message["ready"]
        elif "catalog" in message:
            if self.catalog is not None and not self.catalog.done():
                self.catalog.set_result(message["catalog"])
        elif "code" in message:
            self._copies.pop(message["pid"]).over(message["code"])
        else:
            copy = self._unborn.pop(0)
            self._copies[message["pid"]] = copy
            copy.born(message["pid"])

    def _gone(self) -> None:
        """The warm process has ended."""
        assert self._socket is not None
        assert self._process is not None
        if self._heard:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket, self._heard, self._kept, self.doing, self.ready = None, False, None, "", ""
        code = self._process.wait()
        for copy in (*self._unborn, *self._copies.values()):
            copy.orphaned(code or 1)
        self._unborn, self._copies = [], {}
        if self.catalog is not None and not self.catalog.done():
            self.catalog.set_result(None)


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    return reader
