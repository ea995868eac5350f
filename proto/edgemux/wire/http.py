"""A few read-only pages over HTTP: health, readiness, metadata, status, metrics. A bare ASGI app, no framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from edgemux.wire.security import AUTHORIZATION, NO_TOKEN, Gate

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

# Whoever asks whether a server lives asks from outside: probes have no tokens.
_OPEN = "/v2/health/"


class Page(msgspec.Struct, frozen=True):
    """What a path answers: a status code and a value that becomes JSON, or bytes of a type of their own."""

    status: int
    body: Any
    content_type: str = "application/json"


class App:
    """Answers GET and HEAD on the given paths; anything else gets 404 or 405 as JSON, a stranger 401.

    Every answer ends its connection: there is then one time limit for all that a client can be slow at.
    """

    def __init__(self, pages: Mapping[str, Callable[[], Page]], gate: Gate | None = None) -> None:
        """``gate``: who may ask for anything but health; None for anybody."""
        self._pages = dict(pages)
        self._gate = gate or Gate()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        page = self._page(scope["method"], scope["path"], _authorization(scope))
        content = page.body if isinstance(page.body, bytes) else msgspec.json.encode(page.body)
        headers = [
            (b"content-type", page.content_type.encode()),
            (b"content-length", str(len(content)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
        ]
        if page.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        body = b"" if scope["method"] == "HEAD" else content
        await send({"type": "http.response.start", "status": page.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _page(self, method: str, path: str, authorization: str | None) -> Page:
        if not path.startswith(_OPEN) and not self._gate.allows(authorization):
            return Page(401, {"error": NO_TOKEN})
        make = self._pages.get(path.rstrip("/") or "/")
        if make is None:
            return Page(404, {"error": "no such page"})
        if method not in ("GET", "HEAD"):
            return Page(405, {"error": "only GET and HEAD"})
        return make()


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == AUTHORIZATION.encode():
            return str(value, "ascii", "replace")
    return None
