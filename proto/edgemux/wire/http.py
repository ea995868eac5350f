"""A few read-only pages over HTTP: health, readiness, metadata, status. A bare ASGI app, no framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Page(msgspec.Struct, frozen=True):
    """What a path answers: a status code and a value that becomes JSON."""

    status: int
    body: Any


class App:
    """Answers GET and HEAD on the given paths; anything else gets 404 or 405 as JSON."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._pages = dict(pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        page = self._page(scope["method"], scope["path"])
        body = b"" if scope["method"] == "HEAD" else msgspec.json.encode(page.body)
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": page.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _page(self, method: str, path: str) -> Page:
        make = self._pages.get(path.rstrip("/") or "/")
        if make is None:
            return Page(404, {"error": "no such page"})
        if method not in ("GET", "HEAD"):
            return Page(405, {"error": "only GET and HEAD"})
        return make()
