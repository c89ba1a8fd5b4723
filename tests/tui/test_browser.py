"""The app in a browser: what is typed there is attacked, its tokens come back, and only its own page may drive it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from typer.testing import CliRunner

from tests.tui.pilots import play, until
from tests.tui_speed import environment
from textleak.cli import app as command_line
from textleak_tui import catalog
from textleak_tui.app import TextleakApp
from textleak_tui.catalog import Catalog
from textleak_tui.screens.go import GoDialog
from textleak_tui.screens.grid import GridScreen
from textleak_tui.session import Sessions

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WORDS = ("meeting", "moved", "friday")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the app is served; it ends with the test."""
    pytest.importorskip("textual_serve", reason="textual-serve isn't installed: pip install 'textleak[web]'")
    settings = environment(tmp_path)
    settings["PYTHONPATH"] = os.pathsep.join(path for path in (settings["PYTHONPATH"], *sys.path) if path)
    process = subprocess.Popen(
        [sys.executable, "-m", "textleak.cli", "tui", "--serve", "--port", str(_free_port())],
        env={**settings, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


class Page:
    """A page of headless Chromium, through its DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._sent = 0
        self.seen = ""

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something; what the page's own socket says meanwhile is kept."""
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": parameters})
        while True:
            answer = await self._hear()
            if answer.get("id") == self._sent:
                return dict(answer["result"])

    async def _hear(self) -> dict[str, Any]:
        answer = await self._socket.receive_json()
        if answer.get("method") == "Network.webSocketFrameReceived":
            response = answer["params"]["response"]
            data = response["payloadData"]
            self.seen += (
                base64.b64decode(data).decode("utf-8", "replace") if response["opcode"] == 2 else data
            )
        return dict(answer)

    async def until(self, *words: str, seconds: float = 90.0) -> None:
        """Wait until all of these have come to the screen."""
        async with asyncio.timeout(seconds):
            while not all(word in self.seen for word in words):
                await self._hear()

    async def downloaded(self, path: Path, seconds: float = 60.0) -> str:
        """Wait until a file has been downloaded whole; what it holds."""
        async with asyncio.timeout(seconds):
            while not path.exists():
                await self.ask("Runtime.evaluate", expression="0")
                await asyncio.sleep(0.1)
        return path.read_text("utf-8")

    async def type(self, text: str) -> None:
        """Type a text."""
        for letter in text:
            await self.ask("Input.dispatchKeyEvent", type="char", text=letter)

    async def press(self, key: str, code: int, *, control: bool = False) -> None:
        """Press a key."""
        held = {"modifiers": 2} if control else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **held
            )

    async def click(self, x: int, y: int) -> None:
        """Click somewhere, which gives the terminal the focus too."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextlib.asynccontextmanager
async def opened(address: str, folder: Path) -> AsyncIterator[Page]:
    """A page of Chromium with this address."""
    aiohttp = pytest.importorskip("aiohttp")
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
            *(f"--user-data-dir={folder}", "--window-size=1280,800", "about:blank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = folder / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not port.exists() or not port.read_text():
                await asyncio.sleep(0.1)
        browser = f"http://localhost:{port.read_text().split()[0]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{browser}/json") as answer:
                pages = [one for one in json.loads(await answer.text()) if one["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=1 << 28) as socket:
                page = Page(socket)
                for domain in ("Network", "Page", "Runtime"):
                    await page.ask(f"{domain}.enable")
                await page.ask("Emulation.setFocusEmulationEnabled", enabled=True)
                await page.ask("Page.navigate", url=address)
                yield page
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_in_a_browser_one_types_sees_the_tokens_come_back_and_downloads_them(
    address: str, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with opened(address, tmp_path / "chromium") as page:
            await page.until("Sentence")
            await page.click(400, 67)
            await page.type("the meeting was moved to friday morning")
            page.seen = ""
            await page.press("Enter", 13)
            await page.until("match rate", *(f"✓{word}" for word in WORDS))
            await page.ask(
                "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "got")
            )
            page.seen = ""
            await page.type("e")
            await page.until("Markdown")
            await page.press("ArrowDown", 40)
            await page.press("Enter", 13)
            assert json.loads(await page.downloaded(tmp_path / "got" / "run.json"))["token_match_rate"] == 1.0
            page.seen = ""
            await page.press("g", 71, control=True)
            await page.until("Go to", "Defense ladder")

    asyncio.run(scene())


def test_a_letter_goes_to_a_place_and_what_is_written_is_offered_as_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[Path] = []

    async def listed() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", listed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextleakApp, "is_web", True)
    monkeypatch.setattr(TextleakApp, "deliver_text", lambda app, path: offered.append(path))

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+g", "g")
        await until(pilot, lambda: isinstance(app.screen, GridScreen))
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, GoDialog))
        await pilot.press("s")
        await until(pilot, lambda: offered)
        assert offered[0].name == "screen.svg"
        assert "<svg" in offered[0].read_text("utf-8")
        page = app.screen
        assert isinstance(page, GridScreen)
        page.write(lambda: [tmp_path / "run.json"])
        await until(pilot, lambda: tmp_path / "run.json" in offered)

    play(scene, Sessions(tmp_path / "runs"))


def test_without_the_extra_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    result = CliRunner().invoke(command_line, ["tui", "--serve"])
    assert result.exit_code == 2
    assert "pip install 'textleak[web]'" in result.output


def test_only_its_own_page_with_the_key_of_its_address_is_answered() -> None:
    web = pytest.importorskip("aiohttp.web")
    make_mocked_request = pytest.importorskip("aiohttp.test_utils").make_mocked_request
    from textleak_tui.serve import guard

    async def answer(path: str, **headers: str) -> Any:
        async def handler(request: Any) -> Any:
            return web.Response(text="the app")

        return await guard(8000, "secret")(make_mocked_request("GET", path, headers=headers), handler)

    async def refused(path: str, **headers: str) -> bool:
        try:
            await answer(path, **headers)
        except web.HTTPForbidden:
            return True
        return False

    async def scene() -> None:
        here = {"Host": "localhost:8000"}
        first = await answer("/?key=secret", **here)
        assert first.cookies["textleak-8000"].value == "secret"
        assert first.cookies["textleak-8000"]["httponly"]
        assert "default-src 'self'" in first.headers["Content-Security-Policy"]
        cookie = {**here, "Cookie": "textleak-8000=secret"}
        assert not await refused("/ws", **cookie, Origin="http://localhost:8000")
        assert await refused("/ws", **cookie, Origin="http://elsewhere.example")
        assert await refused("/ws", **{**cookie, "Host": "elsewhere.example"})
        assert await refused("/ws", **here)
        assert await refused("/ws?key=secret", **here)
        assert await refused("/?key=other", **here)

    asyncio.run(scene())
