"""The error tree as gRPC and HTTP status codes: one table, used both ways."""

from __future__ import annotations

import secrets
from typing import Any

import grpc

from edgemux.multiplexer.errors import (
    ArtifactError,
    BadAnswer,
    ConfigError,
    DeadlineExceeded,
    EdgemuxError,
    ExecutionError,
    Forbidden,
    Incompatible,
    InputError,
    NotTogether,
    Overloaded,
    PassError,
    TooLarge,
    Unauthenticated,
    UnknownModel,
    Unreachable,
    Untrusted,
)

Code = grpc.StatusCode

# The trailer of a refusal that says when to ask again, in milliseconds.
PUSHBACK = "grpc-retry-pushback-ms"

# Most specific first; the first row whose class matches an error decides.
TABLE: tuple[tuple[type[EdgemuxError], grpc.StatusCode, int], ...] = (
    (UnknownModel, Code.NOT_FOUND, 404),
    (TooLarge, Code.INVALID_ARGUMENT, 413),
    (InputError, Code.INVALID_ARGUMENT, 400),
    (DeadlineExceeded, Code.DEADLINE_EXCEEDED, 504),
    (Overloaded, Code.RESOURCE_EXHAUSTED, 429),
    (Untrusted, Code.UNAVAILABLE, 503),
    (Unreachable, Code.UNAVAILABLE, 503),
    (Unauthenticated, Code.UNAUTHENTICATED, 401),
    (Forbidden, Code.PERMISSION_DENIED, 403),
    (NotTogether, Code.INTERNAL, 502),
    (BadAnswer, Code.INTERNAL, 502),
    (Incompatible, Code.FAILED_PRECONDITION, 502),
    (ExecutionError, Code.INTERNAL, 500),
    (ArtifactError, Code.FAILED_PRECONDITION, 500),
    (ConfigError, Code.FAILED_PRECONDITION, 500),
    (PassError, Code.FAILED_PRECONDITION, 500),
    (EdgemuxError, Code.INTERNAL, 500),
)

# What a peer's status means to the caller of an offload. Codes that speak of the request itself mean that the peer
# does not serve what we expect of it: a bad answer, not bad input, since our own input was validated before.
_FROM_PEER: dict[grpc.StatusCode, type[ExecutionError]] = {
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAVAILABLE: Unreachable,
    Code.CANCELLED: Unreachable,
    Code.ABORTED: Unreachable,
    Code.UNKNOWN: BadAnswer,
    Code.INVALID_ARGUMENT: BadAnswer,
    Code.NOT_FOUND: Incompatible,
    Code.ALREADY_EXISTS: BadAnswer,
    Code.PERMISSION_DENIED: Forbidden,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.FAILED_PRECONDITION: Incompatible,
    Code.OUT_OF_RANGE: BadAnswer,
    Code.UNIMPLEMENTED: Incompatible,
    Code.INTERNAL: BadAnswer,
    Code.DATA_LOSS: BadAnswer,
    Code.OK: BadAnswer,
}

# Triton says UNAVAILABLE for a full or expired queue; both mean "busy", not "gone".
_OVERLOAD_TEXTS = ("exceeds maximum queue size", "request timeout expired")
# The library's own refusal of a message, ours or the peer's, has the code of a busy server; trying again cannot help.
_SIZE_TEXT = "message larger than max"
# What the library says of a handshake that failed; the first text that is found names the cause, the last are general.
_TLS_TEXTS = (
    ("certificate has expired", "the cloud's certificate has expired, or our clock is wrong"),
    ("certificate is not yet valid", "the cloud's certificate is not valid yet, or our clock is wrong"),
    ("hostname verification check failed", "the cloud's certificate is for another name"),
    ("wrong_version_number", "the cloud does not speak TLS"),
    ("certificate_verify_failed", "nobody whom we trust vouches for the cloud's certificate"),
    ("verification check failed", "the cloud's certificate is not trusted"),
    ("handshake failed", "the TLS handshake with the cloud failed"),
    ("security handshaker", "the TLS handshake with the cloud failed"),
)


def grpc_code(error: EdgemuxError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return next(code for kind, code, _ in TABLE if isinstance(error, kind))


def http_code(error: EdgemuxError) -> int:
    """The HTTP status code of an error."""
    return next(number for kind, _, number in TABLE if isinstance(error, kind))


def from_peer(code: grpc.StatusCode, details: str | None) -> ExecutionError:
    """The error that a peer's status stands for. Its text is kept out: it may name the peer's internals."""
    if code is Code.UNAVAILABLE and any(text in (details or "").lower() for text in _OVERLOAD_TEXTS):
        return Overloaded("the cloud is busy")
    if code is Code.RESOURCE_EXHAUSTED and _SIZE_TEXT in (details or "").lower():
        return BadAnswer("a message to or from the cloud is too large")
    if code is Code.UNAVAILABLE:
        for text, cause in _TLS_TEXTS:
            if text in (details or "").lower():
                return Untrusted(cause)
    kind = _FROM_PEER.get(code, BadAnswer)
    return kind(f"the cloud answered {code.name}")


def pushback_s(error: Any) -> float | None:
    """When a peer that refused a call wants to be asked again, between 0 and 60 s; None when it does not say."""
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK:
            try:
                return min(60.0, max(0.0, float(value) / 1000))
            except ValueError:
                return None
    return None


def internal_id() -> str:
    """An id that ties the answer "internal error" to a line in the server's log."""
    return secrets.token_hex(4)
