"""Requests and replies of HTTP as values, and an app of read-only pages. Bare ASGI, no framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from edgemux.wire.security import AUTHORIZATION, NO_TOKEN, Gate

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
# An app takes no body larger than this, unless it says so.
PAGE_BODY_BYTES = 64 * 2**10
_AUTHORIZATION = AUTHORIZATION.encode()
_PRIVATE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Page(msgspec.Struct, frozen=True):
    """What a path answers: a status code and a value that becomes JSON, or bytes of a type of their own."""

    status: int
    body: Any
    content_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Request(msgspec.Struct):
    """What a client asks. ``target``: path and query as sent. ``headers``: names in lower case, of several the last."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    peer: str = ""
    body: bytes = b""
    # What to answer, where that is known without looking at the body; whether another request may follow; whether
    # some of this one will not be heard.
    reply: Reply | None = None
    keep: bool = False
    cut: bool = False


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What a client gets. ``content`` in pieces, to be sent one after the other; ``close``: and no more than this."""

    status: int
    content: tuple[bytes, ...]
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    close: bool = False


Answer = Reply | Coroutine[Any, Any, Reply]


def json_reply(status: int, body: Any, headers: tuple[tuple[bytes, bytes], ...] = (), close: bool = False) -> Reply:
    """A value as JSON, that nobody keeps."""
    return Reply(status, (msgspec.json.encode(body),), JSON, (*_PRIVATE, *headers), close)


class Site(Protocol):
    """Pages that look at who asks, beside those that are the same for everybody."""

    def opens(self, path: str) -> bool:
        """Whether anybody may ask for ``path``, with no token: nothing there is data."""

    def page(self, path: str, request: Request) -> Page | None:
        """What ``path`` answers; None where there is nothing."""


class App:
    """Answers GET and HEAD on the given paths; anything else gets 404 or 405 as JSON, a stranger 401.

    Every page ends its connection: there is then one time limit for all that a client can be slow at.
    """

    max_body_bytes = PAGE_BODY_BYTES
    # Whoever asks whether a server lives asks from outside: probes have no tokens.
    open_to_all: tuple[bytes, ...] = (b"/v2/health/",)

    def __init__(
        self, pages: Mapping[str, Callable[[], Page]], gate: Gate | None = None, site: Site | None = None
    ) -> None:
        """``gate``: who may ask for anything but health; None for anybody."""
        self._pages = dict(pages)
        self._gate = gate or Gate()
        self._site = site

    def look(self, request: Request) -> Reply | None:
        """Why a request is refused that has come without its body yet; None when it is not. Raises nothing."""
        if self.admits(request):
            return None
        challenge = ((b"www-authenticate", b"Bearer"),)
        return json_reply(401, {"error": NO_TOKEN}, challenge, close=True)

    def answer(self, request: Request) -> Answer:
        """The reply to a request that ``look`` has nothing against, or a coroutine of it. Raises nothing."""
        page = self._page(request, _path(request))
        content = page.body if isinstance(page.body, bytes) else msgspec.json.encode(page.body)
        allow = ((b"allow", b"GET, HEAD"),) if page.status == 405 else ()
        return Reply(
            page.status, (content,), page.content_type.encode(), (*_PRIVATE, *page.headers, *allow), close=True
        )

    def admits(self, request: Request) -> bool:
        """Whether who asks may."""
        if self._gate.open or request.target.startswith(self.open_to_all):
            return True
        given = request.headers.get(_AUTHORIZATION)
        if self._gate.allows(None if given is None else str(given, "ascii", "replace")):
            return True
        return self._site is not None and self._site.opens(_path(request))

    def _page(self, request: Request, path: str) -> Page:
        make = self._pages.get(path)
        found = self._site.page(path, request) if make is None and self._site is not None else None
        if make is None and found is None:
            return Page(404, {"error": "no such page"})
        if request.method not in (b"GET", b"HEAD"):
            return Page(405, {"error": "only GET and HEAD"})
        return found or make()  # type: ignore[misc]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same for any ASGI server, which has to bound how slow clients may be."""
        if scope["type"] != "http":
            return
        request = _asked(scope)
        reply = self.look(request)
        if reply is None:
            body = await _body(receive, self.max_body_bytes)
            if body is None:
                reply = too_large(self.max_body_bytes)
            else:
                request.body = body
                answer = self.answer(request)
                reply = answer if isinstance(answer, Reply) else await answer
        length = sum(map(len, reply.content))
        headers = [(b"content-type", reply.content_type), (b"content-length", b"%d" % length), *reply.headers]
        if reply.close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        content = b"" if request.method == b"HEAD" else b"".join(reply.content)
        await send({"type": "http.response.body", "body": content})


def _path(request: Request) -> str:
    return str(request.target.partition(b"?")[0], "latin-1").rstrip("/") or "/"


def too_large(most: int) -> Reply:
    """The refusal of a body of more than ``most`` bytes."""
    return json_reply(413, {"error": f"body: more than {most} bytes"}, close=True)


def _asked(scope: Scope) -> Request:
    target: bytes = scope.get("raw_path") or str(scope["path"]).encode()
    if query := scope.get("query_string"):
        target += b"?" + query
    client = scope.get("client")
    peer = "unknown" if client is None else peer_name(client)
    headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
    return Request(str(scope["method"]).encode(), target, headers, peer)


def peer_name(address: Any) -> str:
    """A socket's address as gRPC writes it."""
    if not isinstance(address, (tuple, list)) or len(address) < 2:
        return "unknown"
    host, port = address[0], address[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


async def _body(receive: Receive, most: int) -> bytes | None:
    """All of a body, None where it has more than ``most`` bytes."""
    pieces, size = [], 0
    while True:
        message = await receive()
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            return None
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)
