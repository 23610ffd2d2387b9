"""Places in the queue are for pages that are open: calls whose answer nobody waits for cannot fill it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import API

#: what one page may have waiting
MAX_WAITING_EACH = 4
#: calls from pages that do not listen (yet) which may wait, all together, and for how many seconds
MAX_UNHEARD, PATIENCE = 4, 3.0
#: bytes of one call; files travel apart
MAX_CALL_BYTES = 2**20


class ListenersMiddleware:
    """Refuses to queue more than a few calls of one session, and drops those of sessions that do not listen.

    A page that is open holds a connection on which it is told about its calls, as a rule since it was loaded.

    Args:
        app: the application.
        queue: Gradio's queue of the page.
    """

    def __init__(self, app: ASGIApp, queue: Any) -> None:
        self.app, self.queue = app, queue
        self._open: Counter[str] = Counter()  # connections that each session listens on
        self._unheard: dict[str, asyncio.Task[None]] = {}  # sessions that do not, and what will drop them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == f"{API}queue/join":
            await self._join(scope, receive, send)
        elif path.startswith(f"{API}heartbeat/"):
            await self._listen(path.rsplit("/", 1)[1], scope, receive, send)
        elif path == f"{API}queue/data":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            await self._listen(query.get("session_hash", [""])[0], scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _listen(self, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        if session in self._unheard:
            self._unheard.pop(session).cancel()
        self._open[session] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]
                await self.queue.clean_events(session_hash=session)

    async def _join(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        session = _session_of(body)
        refusal = self._refusal(session, len(body))
        if refusal:
            await JSONResponse({"detail": refusal}, HTTPStatus.SERVICE_UNAVAILABLE)(scope, receive, send)
            return
        if session not in self._open:
            self._unheard[session] = asyncio.create_task(self._drop_later(session))
        await self.app(scope, _replay(body, receive), send)

    def _refusal(self, session: str, size: int) -> str:
        """Why a call may not wait; "" where it may."""
        if not session:
            return "a call that names no session: open the page, and press the button there"
        if size > MAX_CALL_BYTES:
            return f"a call of more than {MAX_CALL_BYTES} bytes: write less, or upload it as a file"
        if session in self._open:
            queues = self.queue.event_queue_per_concurrency_id.values()
            waiting = sum(event.session_hash == session for queue in queues for event in queue.queue)
            return f"{waiting} calls of yours are waiting: wait for them" if waiting >= MAX_WAITING_EACH else ""
        if session in self._unheard or len(self._unheard) >= MAX_UNHEARD:
            return "nobody listens for the answer of this call: open the page, and press the button there"
        return ""

    async def _drop_later(self, session: str) -> None:
        await asyncio.sleep(PATIENCE)
        self._unheard.pop(session, None)
        await self.queue.clean_events(session_hash=session)


async def _read(receive: Receive) -> bytes:
    """The body of a request, up to a little more than may be queued."""
    body = bytearray()
    while len(body) <= MAX_CALL_BYTES:
        message = await receive()
        body.extend(message.get("body", b""))
        if not message.get("more_body"):
            break
    return bytes(body)


def _session_of(body: bytes) -> str:
    """The session that a call is of; "" where it names none."""
    try:
        call: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    session = call.get("session_hash") if isinstance(call, dict) else None
    return session if isinstance(session, str) else ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read already, and then goes on."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again
