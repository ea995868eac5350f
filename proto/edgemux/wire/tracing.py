"""Where a request's time went, for whoever collects that: the port. What is behind it is wire/otel.py, or nothing.

The context travels as W3C's ``traceparent`` in gRPC metadata and HTTP headers. Whoever comes with one has decided
whether the request is recorded; of the others a share is, by chance. A request that is not recorded costs a look at
its metadata, and passes the decision on. With tracing off nothing is looked at, and there is no trace: ``None``.
"""

from __future__ import annotations

import importlib
import math
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.limits import TokenBucket

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
Headers = tuple[tuple[str, str], ...]
Value = str | bool | int | float

# Of version 00; what later versions append is left away, as W3C has it.
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e]{1,512}")
SAMPLED = 1


class TracingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """endpoint: of a collector that takes OTLP over gRPC, like "http://127.0.0.1:4317"; None: nothing is traced.

    sample: the share of requests that are recorded, of those that bring no decision with them. most_per_s: requests
    recorded a second at most, whoever has decided so; what comes in a burst may be twice as many.
    """

    endpoint: str | None = None
    sample: float = 0.01
    most_per_s: float = 100.0

    def __post_init__(self) -> None:
        if self.endpoint is not None and not _is_endpoint(self.endpoint):
            raise ValueError('endpoint must be like "http://127.0.0.1:4317"')
        if not 0 <= self.sample <= 1:
            raise ValueError("sample must be in [0, 1]")
        if not 0 < self.most_per_s < math.inf:
            raise ValueError("most_per_s must be more than 0 and finite")


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port is not None and bare


class Stage(StrEnum):
    """The names of spans: a closed set."""

    REQUEST = "request"
    PRE_GATE = "pre_gate"
    DEVICE = "device"
    POST_GATE = "post_gate"
    OFFLOAD = "offload"
    AUDIT = "audit"
    SHADOW = "shadow"
    QUEUE = "queue"
    COMPUTE = "compute"
    BATCH = "batch"
    PROXY = "proxy"


class Attribute(StrEnum):
    """The names of attributes: a closed set. Values are numbers, or words out of closed sets and the configuration."""

    MODEL = "edgemux.model"
    ROUTE = "edgemux.route"
    VARIANT = "edgemux.variant"
    REASON = "edgemux.reason"
    SCORE = "edgemux.score"
    DEGRADED = "edgemux.degraded"
    ROWS = "edgemux.rows"
    OUTCOME = "edgemux.outcome"
    DEADLINE_LEFT_S = "edgemux.deadline_left_s"
    LEVEL = "edgemux.level"
    PEER = "edgemux.peer"
    BYTES = "edgemux.bytes"
    FORM = "edgemux.form"
    REQUESTS = "edgemux.requests"


Attributes = dict[Attribute, Value]


class Trace(Protocol):
    """A span that has begun, or the place of one that is not recorded. Nothing here raises or waits."""

    # Whether anything of it is kept. What costs something to find out need not be found out otherwise.
    recording: bool

    @property
    def headers(self) -> Headers:
        """What to send along, so that what happens there belongs to this."""

    def begin(self, stage: Stage, beside: Sequence[Trace] = (), ago_s: float = 0.0) -> Trace:
        """A span within this one, which began ``ago_s`` ago; ``beside``: what it is linked with."""

    def apart(self, stage: Stage) -> Trace:
        """A span that this one caused, and which may be longer: the first of a trace of its own, linked with this."""

    def took(
        self,
        stage: Stage,
        seconds: float,
        attributes: Attributes | None = None,
        ago_s: float = 0.0,
        failed: str | None = None,
    ) -> None:
        """Record a span within this one that took so long and ended ``ago_s`` ago."""

    def put(self, attributes: Attributes) -> None:
        """Say something about it."""

    def link(self, other: Trace) -> None:
        """It has to do with ``other``."""

    def end(self, failed: str | None = None) -> None:
        """It is over; ``failed``: the word for why it did not do what it should, out of a closed set."""


class Tracer(Protocol):
    """Begins traces."""

    enabled: bool

    def begin(self, context: Any) -> Trace | None:
        """The span of a request; ``context``: of the call. None where nothing is traced at all."""

    def close(self) -> None:
        """Send what is left, within CLOSE_S of otel.py; may block."""

    def describe(self) -> dict[str, Any]:
        """For a page."""


class _Off:
    """Nothing is traced."""

    enabled = False

    def begin(self, context: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def describe(self) -> dict[str, Any]:
        return {"enabled": False}


OFF: Tracer = _Off()


class Parent(msgspec.Struct, frozen=True):
    """What a caller sent: 32 and 16 hex digits, its decision, and what others want to be passed on with it."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @property
    def headers(self) -> Headers:
        """The same again."""
        parent = (TRACEPARENT, f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}")
        return (parent, (TRACESTATE, self.state)) if self.state else (parent,)


def parent_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Parent | None:
    """The caller's context, None where there is none or it is not well-formed."""
    found: dict[str, str] = {}
    for key, value in metadata or ():
        if key in (TRACEPARENT, TRACESTATE) and isinstance(value, str):
            found[key] = value
    match = _PARENT.fullmatch(found.get(TRACEPARENT, ""))
    if match is None or (match[1] == "00" and match[5]):
        return None
    state = found.get(TRACESTATE, "")
    state = state if _STATE.fullmatch(state) else ""
    return Parent(match[2], match[3], bool(int(match[4], 16) & SAMPLED), state)


class Unrecorded:
    """A request that is not recorded: the decision, passed on. Its ids are made when somebody asks for them."""

    recording = False

    def __init__(self, parent: Parent | None = None) -> None:
        self._parent = parent

    @property
    def headers(self) -> Headers:
        """The caller's, as not recorded; where there was none, ids that nobody will ask about."""
        if self._parent is None:
            self._parent = Parent(secrets.token_hex(16), secrets.token_hex(8), False)
        elif self._parent.sampled:  # there were too many
            self._parent = msgspec.structs.replace(self._parent, sampled=False)
        return self._parent.headers

    def begin(self, stage: Stage, beside: Sequence[Trace] = (), ago_s: float = 0.0) -> Trace:
        return self

    def apart(self, stage: Stage) -> Trace:
        return self

    def took(
        self,
        stage: Stage,
        seconds: float,
        attributes: Attributes | None = None,
        ago_s: float = 0.0,
        failed: str | None = None,
    ) -> None:
        """Nothing."""

    def put(self, attributes: Attributes) -> None:
        """Nothing."""

    def link(self, other: Trace) -> None:
        """Nothing."""

    def end(self, failed: str | None = None) -> None:
        """Nothing."""


class Sampler:
    """Decides which requests are recorded: as the caller says, else by chance; never more than so many a second."""

    def __init__(
        self,
        settings: TracingSettings,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = settings.sample
        self._chance, self._clock = chance, clock
        self._bucket = TokenBucket(settings.most_per_s, max(1.0, settings.most_per_s))

    def records(self, parent: Parent | None) -> bool:
        """Whether a request is."""
        wanted = parent.sampled if parent is not None else self._chance() < self._share
        return wanted and self._bucket.take(1.0, self._clock())


def need_extra(settings: TracingSettings) -> None:
    """Raises ConfigError where an endpoint is configured and the extra that it takes is not installed."""
    if settings.endpoint is None:
        return
    try:
        importlib.import_module("edgemux.wire.otel")
    except ModuleNotFoundError as error:
        raise ConfigError("tracing.endpoint: needs OpenTelemetry: pip install '.[otel]' in a checkout") from error


def open_tracer(settings: TracingSettings, service: str) -> Tracer:
    """What traces a server, by its name to the collector. Raises ConfigError where the extra is not installed."""
    if settings.endpoint is None:
        return OFF
    need_extra(settings)
    from edgemux.wire.otel import OtelTracer

    return OtelTracer(settings, service)
