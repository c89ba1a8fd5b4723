"""The app in a browser, through textual-serve: on this machine alone, for whoever has the address that was printed.

What drives the app can read files and start attacks. So the page is only given out with the key of its address, which
a cookie keeps; other pages, which a browser lets call any address, are told apart by `Host` and `Origin`. Nothing is
loaded from anywhere else.
"""

from __future__ import annotations

import hmac
import secrets
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from textleak.errors import InputError

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Middleware

HOST = "localhost"


def served(command: Sequence[str], port: int, *, told: Callable[[str], None]) -> None:
    """Serve the app until it is interrupted; each page that is opened is an app of its own.

    Args:
        command: starts the app.
        port: of localhost.
        told: is told the address, key included, once it answers.

    Raises:
        InputError: textual-serve isn't installed, or the port is taken.
    """
    try:
        from aiohttp import web
        from textual_serve.server import Server
    except ImportError:
        raise InputError(
            "The app can't be shown in a browser here.",
            why="That takes textual-serve, which isn't installed.",
            fix="Install it: pip install 'textleak[web]'. In a terminal, `textleak tui` needs nothing more.",
        ) from None
    key = secrets.token_urlsafe(24)
    application = _application(Server(shlex.join(command), HOST, port, title="textleak"), port, key)
    try:
        web.run_app(
            application, host=HOST, port=port, print=lambda *_: told(f"http://{HOST}:{port}/?key={key}")
        )
    except OSError as error:
        raise InputError(
            f"Port {port} of {HOST} can't be used.",
            why=f"{error.strerror or error}.",
            fix=f"Take another one: --port {port + 1 if port < 65535 else 8000}.",
        ) from None


def _application(server: object, port: int, key: str) -> web.Application:
    """textual-serve's pages behind the guard."""
    import aiohttp_jinja2
    import jinja2
    from aiohttp import web
    from textual_serve.server import Server

    assert isinstance(server, Server)
    application = web.Application(middlewares=[guard(port, key)])
    aiohttp_jinja2.setup(application, loader=jinja2.FileSystemLoader(server.templates_path))
    application.add_routes(
        [
            web.get("/", server.handle_index, name="index"),
            web.get("/ws", server.handle_websocket, name="websocket"),
            web.get("/download/{key}", server.handle_download, name="download"),
            web.static("/static", server.statics_path, name="static"),
        ]
    )
    return application


def guard(port: int, key: str) -> Middleware:
    """What every request goes through.

    Args:
        port: of localhost.
        key: that the address holds, and from then on a cookie.
    """
    from aiohttp import web

    place, cookie = f"{HOST}:{port}", f"textleak-{port}"
    only_here = (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data:; connect-src 'self' ws://{place}; frame-ancestors 'none'"
    )

    @web.middleware
    async def guarded(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.host != place or request.headers.get("Origin", f"http://{place}") != f"http://{place}":
            raise web.HTTPForbidden(text=f"Only http://{place} is answered.")
        given = request.query.get("key", "") if request.path == "/" else ""
        if not hmac.compare_digest((given or request.cookies.get(cookie, "")).encode(), key.encode()):
            raise web.HTTPForbidden(text="Open the address that `textleak tui --serve` has printed.")
        response = await handler(request)
        if request.path == "/":
            response.set_cookie(cookie, key, httponly=True, samesite="Strict")
            response.headers["Content-Security-Policy"] = only_here
            response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return guarded
