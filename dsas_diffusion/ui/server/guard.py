"""The middleware of the demo's server, from the outside in: hosts, closed doors, waiting, files."""

from __future__ import annotations

import os
from collections.abc import Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsas_core.errors import quote

from ..page.session import log_failure
from . import API
from .listeners import ListenersMiddleware
from .private_files import FilesMiddleware

#: names of this machine as it calls itself
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: addresses on which a server hears everybody
EVERYWHERE = ("0.0.0.0", "0", "::")
#: ways to call functions by name, of which the page has none to offer
_CLOSED = (f"{API}call/", f"{API}api/")


def middleware_of(page: Any, host: str | None, *, share: bool) -> list[Middleware]:
    """The middleware of a page's server.

    Args:
        page: a `Page`.
        host: the address that it is served at; None for what GRADIO_SERVER_NAME says, else 127.0.0.1.
        share: whether it is served through a tunnel, too.
    """
    return [
        Middleware(GuardMiddleware, hosts=served_hosts(host, share=share)),
        Middleware(ListenersMiddleware, queue=page._queue),
        Middleware(FilesMiddleware, files=page.files),
    ]


def served_hosts(host: str | None, *, share: bool) -> frozenset[str]:
    """The names that a browser may have called the server by; none for any, where strangers are meant to come.

    A page of another site whose name is made to lead to this machine (DNS rebinding) then gets nothing.

    Example:
        >>> sorted(served_hosts("127.0.0.1", share=False)), sorted(served_hosts("0.0.0.0", share=False))
        (['127.0.0.1', '::1', 'localhost'], [])
    """
    named = (host or os.environ.get("GRADIO_SERVER_NAME") or LOOPBACK[0]).strip("[]").lower()
    return frozenset() if share or named in EVERYWHERE else frozenset({*LOOPBACK, named})


class GuardMiddleware:
    """Refuses foreign hosts and calls by name; what fails unforeseen is one line in the log.

    Args:
        app: the application.
        hosts: names that the server is called by; none for any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("host", "")
        if self.hosts and _name_of(given) not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            refusal = (
                f"host {quote(given)}: this is served as {names}; start it with --host ADDRESS to serve it at another, "
                "or have a proxy send one of these"
            )
            await JSONResponse({"error": refusal}, HTTPStatus.MISDIRECTED_REQUEST)(scope, receive, send)
            return
        if scope["path"].startswith(_CLOSED):
            refusal = "nothing can be called by name here: use the page, or `dsas_diffusion` from Python"
            await JSONResponse({"error": refusal}, HTTPStatus.NOT_FOUND)(scope, receive, send)
            return
        begun = ended = False

        async def send_on(message: Message) -> None:
            nonlocal begun, ended
            begun, ended = True, message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:
            log_failure(f"{scope.get('method', 'a call')} {quote(scope['path'])}", error)
            if not begun:
                refusal = "the page cannot do that: reload it"
                await JSONResponse({"error": refusal}, HTTPStatus.BAD_REQUEST)(scope, receive, send)
            elif not ended:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
