"""The protocol's REST side: paths -> messages -> the servicer's methods -> JSON or binary tensors.

One inference path for gRPC and REST: what is here only reads and writes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from edgemux.multiplexer.errors import EdgemuxError, InputError, Overloaded
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.http import Answer, App, Page, Reply, Request, Site, json_reply
from edgemux.wire.rest_answer import plain, write_infer
from edgemux.wire.rest_codec import Wanted, read_infer, seconds, unfold
from edgemux.wire.security import Gate
from edgemux.wire.service import Door, refusal
from edgemux.wire.status import http_code
from edgemux.wire.tracing import TRACEPARENT, TRACESTATE

BINARY = b"application/octet-stream"
HEAD_LENGTH = b"Inference-Header-Content-Length"
# Paths that are remembered, and how long they may be; others are looked at each time.
MAX_REMEMBERED = 256
_MAX_REMEMBERED_BYTES = 512

_HEAD_LENGTH = HEAD_LENGTH.lower()
_TRACE_HEADERS = (TRACEPARENT.encode(), TRACESTATE.encode())
_GET, _POST = (b"GET", b"HEAD"), (b"POST",)
_ENCODINGS = (b"gzip", b"x-gzip", b"deflate")
_ADMIN_ONLY = "models are loaded and unloaded on the admin address"

_Make = Callable[[Request], Answer]


class _Route(msgspec.Struct, frozen=True):
    """What a path takes, and what makes its answer."""

    methods: tuple[bytes, ...]
    make: _Make


class Context:
    """What a servicer's method may ask of its call, as of a gRPC call."""

    __slots__ = ("_deadline_s", "_headers", "_loop", "_peer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float | None,
        peer: str,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self._loop = loop
        self._peer = peer
        self._headers = headers or {}
        self._deadline_s = None if timeout_s is None else loop.time() + timeout_s

    def time_remaining(self) -> float | None:
        """Seconds until the client wants its answer, None when it did not say."""
        return None if self._deadline_s is None else self._deadline_s - self._loop.time()

    def peer(self) -> str:
        """Who asks, as gRPC writes it."""
        return self._peer

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Of what came along, the headers that say which trace this belongs to."""
        headers = self._headers
        return [(name.decode(), str(headers[name], "latin-1")) for name in _TRACE_HEADERS if name in headers]


class Rest(App):
    """An ASGI app, and what our own server calls without ASGI: the protocol below /v2, pages elsewhere.

    Lives in the running event loop. ``door``: the way in for inferences.
    """

    def __init__(
        self,
        servicer: Any,
        door: Door,
        pages: Mapping[str, Callable[[], Page]],
        gate: Gate | None = None,
        max_body_bytes: int = 4 * 2**20,
        site: Site | None = None,
    ) -> None:
        """``max_body_bytes``: of a request, also after it is unfolded."""
        super().__init__(pages, gate, site)
        self.max_body_bytes = max_body_bytes
        self._servicer = servicer
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._routes: dict[bytes, _Route | None] = {}

    def look(self, request: Request) -> Reply | None:
        """Why a request is refused before its body has come; None when it is not."""
        if not self._gate.open and not self.admits(request):
            return super().look(request)
        try:
            route = self._route(request.target)
        except InputError as error:
            return _refused(error)
        if route is not None and request.method not in route.methods:
            allow = b", ".join(route.methods)
            return json_reply(405, {"error": f"only {allow.decode()}"}, ((b"allow", allow),))
        encoding = request.headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() not in (*_ENCODINGS, b"identity"):
            return json_reply(415, {"error": "content-encoding: only gzip, deflate and identity"})
        return None

    def answer(self, request: Request) -> Answer:
        """A coroutine for what the servicer is asked, a page at once."""
        route = self._route(request.target)
        return super().answer(request) if route is None else route.make(request)

    def _route(self, target: bytes) -> _Route | None:
        """Of a path and query, None for what is no path of the protocol. Raises InputError for its query."""
        if target in self._routes:
            return self._routes[target]
        route = self._find(target)
        if len(target) <= _MAX_REMEMBERED_BYTES:
            if len(self._routes) >= MAX_REMEMBERED:
                self._routes.clear()
            self._routes[target] = route
        return route

    def _find(self, target: bytes) -> _Route | None:
        path, _, query = str(target, "latin-1").partition("?")
        parts = [unquote(part) for part in path.split("/") if part]
        match parts:
            case ["v2"]:
                return self._asks("ServerMetadata", oip.ServerMetadataRequest(), _described)
            case ["v2", "health", "live"]:
                return self._asks("ServerLive", oip.ServerLiveRequest(), lambda it: _health("live", it.live))
            case ["v2", "health", "ready"]:
                return self._asks("ServerReady", oip.ServerReadyRequest(), lambda it: _health("ready", it.ready))
            case ["v2", "models", "stats"]:
                return self._asks("ModelStatistics", oip.ModelStatisticsRequest(), _as_it_is)
            case ["v2", "models", name, "versions", number, *rest]:
                return self._of_model(name, number, rest, query)
            case ["v2", "models", name, *rest]:
                return self._of_model(name, "", rest, query)
            case ["v2", "repository", "index"]:
                return _Route(_POST, self._index)
            case ["v2", "repository", "models", _, "load" | "unload"]:
                return _Route(_POST, lambda _: json_reply(403, {"error": f"repository: {_ADMIN_ONLY}"}))
            case ["v2", "logging"]:
                return self._asks("LogSettings", oip.LogSettingsRequest(), _settings)
            case ["v2", "trace", "setting"]:
                return self._asks("TraceSetting", oip.TraceSettingRequest(), _settings)
        return None

    def _of_model(self, name: str, number: str, rest: list[str], query: str) -> _Route | None:
        which = {"name": name, "version": number}
        match rest:
            case []:
                return self._asks("ModelMetadata", oip.ModelMetadataRequest(**which), _as_it_is)
            case ["ready"]:
                return _Route(_GET, lambda _: self._model_ready(which))
            case ["stats"]:
                return self._asks("ModelStatistics", oip.ModelStatisticsRequest(**which), _as_it_is)
            case ["config"]:
                return self._asks("ModelConfig", oip.ModelConfigRequest(**which), _config)
            case ["trace", "setting"]:
                return self._asks("TraceSetting", oip.TraceSettingRequest(model_name=name), _settings)
            case ["infer"]:
                given = dict(parse_qsl(query, keep_blank_values=True)).get("timeout_ms")
                timeout_s = None if given is None else seconds(given)
                return _Route(_POST, lambda request: self._infer(name, number, timeout_s, request))
        return None

    def _asks(self, method: str, message: Any, shown: Callable[[Any], Reply]) -> _Route:
        """A path that shows what a method of the servicer answers to ``message``."""
        return _Route(_GET, lambda _: self._shown(method, message, shown))

    async def _shown(self, method: str, message: Any, shown: Callable[[Any], Reply]) -> Reply:
        answers = getattr(self._servicer, method, None)
        if answers is None:
            return json_reply(501, {"error": "not implemented here"})
        try:
            return shown(await answers(message, Context(self._loop, None, "unknown")))
        except Exception as error:
            return _refused(error)

    async def _model_ready(self, which: dict[str, str]) -> Reply:
        """An unknown model is told apart from one that is not ready."""
        ready = await self._shown("ModelReady", oip.ModelReadyRequest(**which), lambda it: _health("ready", it.ready))
        if ready.status != 503:
            return ready
        known = await self._shown("ModelMetadata", oip.ModelMetadataRequest(**which), _as_it_is)
        return ready if known.status == 200 else known

    def _index(self, request: Request) -> Answer:
        try:
            given = msgspec.json.decode(request.body, type=_IndexBody) if request.body.strip() else _IndexBody()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _refused(InputError("body", 'expected {"ready": true or false}'))
        return self._shown("RepositoryIndex", oip.RepositoryIndexRequest(ready=given.ready), _index)

    async def _infer(self, name: str, number: str, timeout_s: float | None, request: Request) -> Reply:
        try:
            message, wanted = self._read(name, number, request)
            context = Context(self._loop, _soonest(timeout_s, wanted, request.headers), request.peer, request.headers)
            response = await self._door.within(self._servicer.ModelInfer(message, context))
            head, pieces = write_infer(response, wanted)
        except Exception as error:
            return _refused(error)
        if not pieces:
            return Reply(200, (head,), close=self._door.closed)
        length = ((HEAD_LENGTH, b"%d" % len(head)),)
        return Reply(200, (head, *pieces), BINARY, length, close=self._door.closed)

    def _read(self, name: str, number: str, request: Request) -> tuple[Any, Wanted]:
        """Raises InputError, TooLarge."""
        headers, body = request.headers, request.body
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            body = unfold(body, encoding.lower(), self.max_body_bytes)
        length = headers.get(_HEAD_LENGTH)
        if length is None:
            return read_infer(body, None, name, number)
        if not length.isdigit() or len(length) > 18:
            raise InputError(HEAD_LENGTH.decode(), "must be a number of bytes")
        return read_infer(body, int(length), name, number)


class _IndexBody(msgspec.Struct):
    ready: bool = False


def _soonest(timeout_s: float | None, wanted: Wanted, headers: Mapping[bytes, bytes]) -> float | None:
    """The shortest of the timeouts in the query, the parameters and the header. Raises InputError."""
    header = headers.get(b"timeout-ms")
    if header is None and timeout_s is None:
        return wanted.timeout_s
    given = [timeout_s, wanted.timeout_s, None if header is None else seconds(str(header, "latin-1"))]
    return min((each for each in given if each is not None), default=None)


def _refused(error: Exception) -> Reply:
    """What an exception is answered with: a status, and why."""
    _, text = refusal(error)
    status = http_code(error) if isinstance(error, EdgemuxError) else 500
    if isinstance(error, MemoryError):
        status = 429
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if status == 429:
        after_s = error.retry_after_s if isinstance(error, Overloaded) else None
        headers = ((b"retry-after", b"%d" % max(1, math.ceil(after_s or 0.0))),)
    return json_reply(status, {"error": text}, headers, close=status == 503)


def _as_it_is(message: Any) -> Reply:
    return json_reply(200, plain(message))


def _described(message: Any) -> Reply:
    described = plain(message)
    extensions = described["extensions"]
    if "binary_tensor_data" not in extensions:
        extensions.append("binary_tensor_data")
    return json_reply(200, described)


def _config(message: Any) -> Reply:
    return json_reply(200, plain(message.config))


def _index(message: Any) -> Reply:
    return json_reply(200, [plain(model) for model in message.models])


def _settings(message: Any) -> Reply:
    """Settings as a flat object, as Triton has it."""
    flat = {}
    for key, setting in message.settings.items():
        values = plain(setting)
        flat[key] = values["value"] if "value" in values else next(iter(values.values()), None)
    return json_reply(200, flat)


def _health(word: str, well: bool) -> Reply:
    return json_reply(200 if well else 503, {word: well})
