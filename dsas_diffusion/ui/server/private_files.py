"""Files that the page gives out: readable by the visitor who got them, until they have gone.

A visitor is a browser, known by a cookie that holds a random name. Where a browser keeps no cookies, as it may not in a
frame of another site, a session counts as the visitor, and whoever knows a file's path, which cannot be guessed, reads
it as long as the session lasts.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..page.session import SESSION_SECONDS
from . import API

COOKIE = "dsas_visitor"
#: what the name of a visitor without a cookie begins with
_SESSION = "session "


def visitor_of(cookies: Mapping[str, str], session: str | None) -> str:
    """The name of a visitor.

    Example:
        >>> visitor_of({"dsas_visitor": "3f"}, "a"), visitor_of({}, "a")
        ('3f', 'session a')
    """
    return cookies.get(COOKIE) or f"{_SESSION}{session}"


class PrivateFiles:
    """Who may read which file. Used in the server's event loop alone.

    Args:
        folder: where Gradio keeps them; others are neither given nor deleted.

    Example:
        >>> files = PrivateFiles(Path("/tmp"))
        >>> with files.page_of("3f"):
        ...     files.give(["/tmp/a.png"], "3f")
        ...     files.may_read("/tmp/a.png", "3f"), files.may_read("/tmp/a.png", "77")
        (True, False)
        >>> files.may_read("/tmp/a.png", "3f")
        False
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._open: Counter[str] = Counter()  # pages that a visitor has open
        self._readers: dict[str, dict[str, float]] = {}  # path -> visitor -> when it was given
        self._calls = 0  # that may be writing files
        self._unread: set[str] = set()  # files to delete once no call is at work

    def give(self, paths: Iterable[str], visitor: str) -> None:
        """Let a visitor read these files, for as long as a session lasts; a session without cookies, while it is open.

        What nobody may read is deleted.
        """
        now = time.monotonic()
        for path, readers in list(self._readers.items()):
            for reader in [reader for reader, given in readers.items() if now - given > SESSION_SECONDS]:
                self._remove(path, reader)
        paths = [path for path in paths if Path(path).resolve().is_relative_to(self.folder)]
        if visitor.startswith(_SESSION) and visitor not in self._open:
            self._unread.update(paths)
            return
        for path in paths:
            self._readers.setdefault(path, {})[visitor] = now

    def may_read(self, path: str, visitor: str) -> bool:
        """Whether a visitor may read a file."""
        readers = self._readers.get(path, {})
        return visitor in readers or any(reader.startswith(_SESSION) and reader in self._open for reader in readers)

    @contextmanager
    def page_of(self, visitor: str) -> Iterator[None]:
        """While a visitor has a page open. With the last one the visitor is forgotten, and their files are deleted."""
        self._open[visitor] += 1
        try:
            yield
        finally:
            self._open[visitor] -= 1
            if not self._open[visitor]:
                del self._open[visitor]
                for path in [path for path, readers in self._readers.items() if visitor in readers]:
                    self._remove(path, visitor)
                self._delete()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a call is at work nothing is deleted: equal pictures are one file."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._delete()

    def _remove(self, path: str, visitor: str) -> None:
        del self._readers[path][visitor]
        if not self._readers[path]:
            del self._readers[path]
            self._unread.add(path)

    def _delete(self) -> None:
        if self._calls:
            return
        for path in self._unread - set(self._readers):
            Path(path).unlink(missing_ok=True)
        self._unread.clear()


class FilesMiddleware:
    """Gives each browser its cookie, and each file to its visitor only; forgets visitors who have closed the page."""

    def __init__(self, app: ASGIApp, files: PrivateFiles) -> None:
        self.app, self.files = app, files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cookies, path = Request(scope).cookies, scope["path"]
        if path.startswith((f"{API}file=", f"{API}file/")):
            name = unquote(path[len(f"{API}file=") :])
            if not self.files.may_read(name, visitor_of(cookies, None)):
                refusal = {"error": "no such file, or not one of yours: reload the page, and ask for it again"}
                await JSONResponse(refusal, HTTPStatus.NOT_FOUND)(scope, receive, send)
                return
            await self.app(scope, receive, send)
        elif path.startswith(f"{API}heartbeat/"):
            with self.files.page_of(visitor_of(cookies, path.rsplit("/", 1)[1])):
                await self.app(scope, receive, send)
        elif path == f"{API}upload":
            await self.app(scope, receive, self._take_uploads(send, cookies[COOKIE]) if COOKIE in cookies else send)
        elif path == "/" and COOKIE not in cookies:
            await self.app(scope, receive, _set_cookie(send))
        else:
            await self.app(scope, receive, send)

    def _take_uploads(self, send: Send, visitor: str) -> Send:
        """Let a visitor read what they upload, which the page offers to them again."""
        body = bytearray()

        async def send_on(message: Message) -> None:
            body.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.files.give(_parse_paths(bytes(body)), visitor)
            await send(message)

        return send_on


def _parse_paths(body: bytes) -> list[str]:
    try:
        paths: Any = json.loads(body)
    except ValueError:  # the message of a failure
        return []
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def _set_cookie(send: Send) -> Send:
    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            cookie = f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax"
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return send_on
