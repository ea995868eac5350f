"""What a server says about itself: a closed set of events, each with fields of closed types.

A field is a number, a truth value, a word out of a closed set, a short name from the configuration, or the text of one
of our own errors, which names fields and holds nothing of an input. There is no other way to write a line, so no
payload, no label and no token can get into the log. Of a foreign exception its type and the places in the code are
told, never its text.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import PurePath
from types import TracebackType
from typing import Any, ClassVar, NewType

import msgspec

from edgemux.multiplexer.errors import EdgemuxError

# A name that an operator chose, a library's class, or the system's word for an error: never what a client sent.
Name = NewType("Name", str)
# The text of one of our own errors.
Why = NewType("Why", str)
Scalar = str | int | float | bool

MOST_CHARACTERS = 300
# Of a traceback the innermost ones are told.
MOST_PLACES = 5
_PLAIN = re.compile(r"[A-Za-z0-9_./:+@%,*-]+")
_WORDS = re.compile(r"(?<!^)(?=[A-Z])")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event; a subclass for each, whose docstring says when it is told and what to do."""

    level: ClassVar[int] = logging.INFO
    name: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = _WORDS.sub("_", cls.__name__).lower()

    def fields(self) -> dict[str, Scalar]:
        """Name to value, what is not known left out; text cut to its bound."""
        given = {field: getattr(self, field) for field in self.__struct_fields__}
        return {field: _scalar(value) for field, value in given.items() if value is not None}

    def __str__(self) -> str:
        """One line, for people: ``breaker opened peer=0 failures=3``."""
        words = [f"{key}={shown(value)}" for key, value in self.fields().items()]
        return " ".join([self.name.replace("_", " "), *words])


class Warned(Event, frozen=True, kw_only=True):
    """Something is not as it should be, and goes on."""

    level: ClassVar[int] = logging.WARNING


class Failed(Event, frozen=True, kw_only=True):
    """Something was lost, or somebody has to act."""

    level: ClassVar[int] = logging.ERROR


class Defect(Failed, frozen=True, kw_only=True):
    """``error``: an exception's type; ``at``: places in the code, the innermost first."""

    error: Name
    at: Name


def why(error: EdgemuxError) -> Why:
    """What one of our own errors says."""
    return Why(str(error))


def kind(error: BaseException) -> Name:
    """An exception's type; for the system's own errors their name, like ENOSPC."""
    if isinstance(error, OSError) and error.strerror:
        return Name(error.strerror)
    return Name(type(error).__name__)


def places(error: BaseException) -> Name:
    """Where an exception came from: file and line, the innermost first."""
    found: list[str] = []
    at: TracebackType | None = error.__traceback__
    while at is not None:
        found.append(f"{PurePath(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}")
        at = at.tb_next
    return Name(",".join(reversed(found[-MOST_PLACES:])))


def cut(text: str) -> str:
    """At most MOST_CHARACTERS."""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def shown(value: Scalar) -> str:
    """A value as text of one line, without anything that a terminal or a line reader would obey."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | int | float):
        return value
    return cut(str(value))


def tell(log: logging.Logger, event: Event) -> None:
    """Say it. Whoever has given the root logger a handler of their own gets the text."""
    log.log(event.level, "%s", event)


def told(record: logging.LogRecord) -> Event | None:
    """The event that a record is about, None for a foreign one."""
    arguments = record.args
    if isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], Event):
        return arguments[0]
    return None


# --- both servers ---------------------------------------------------------------------------------------------------


class Ready(Event, frozen=True, kw_only=True):
    """It answers from now on."""

    server: Name
    models: int


class Draining(Event, frozen=True, kw_only=True):
    """It was told to stop: requests that are inside are answered, new ones are refused."""

    inside: int


class Stopped(Event, frozen=True, kw_only=True):
    """It has stopped; `unanswered` requests were still inside."""

    unanswered: int


class ReloadAsked(Event, frozen=True, kw_only=True):
    """SIGHUP: it looks at certificates and tokens."""


class TokensRenewed(Event, frozen=True, kw_only=True):
    """New tokens are in use."""

    setting: Name


class TokensRefused(Failed, frozen=True, kw_only=True):
    """A new file of tokens cannot be used; those from before stay in use."""

    why: Why


class CertificatesRenewed(Event, frozen=True, kw_only=True):
    """New TLS certificates are in use."""

    setting: Name


class CertificatesRefused(Failed, frozen=True, kw_only=True):
    """New TLS files cannot be used; those from before stay in use."""

    why: Why


class CertificateExpires(Warned, frozen=True, kw_only=True):
    """The own TLS certificate expires soon: replace it."""

    setting: Name
    expires_on: Name


class CertificateUnfit(Failed, frozen=True, kw_only=True):
    """The own TLS certificate has expired, or is not valid yet: others refuse it."""

    setting: Name
    trouble: Name


class PeerUntrusted(Failed, frozen=True, kw_only=True):
    """A server is not who it should be, or does not know us; nothing is sent in plaintext instead."""

    why: Why


class Plaintext(Warned, frozen=True, kw_only=True):
    """Others can read what is sent to that address, and answer in its place; see docs/security.md."""

    setting: Name


class AcceptFailed(Failed, frozen=True, kw_only=True):
    """No HTTP connection can be accepted now, as when there are too many files open."""

    cause: Name


class NotWell(Failed, frozen=True, kw_only=True):
    """The models do not answer as they should: the watchdog is not fed until they do, and restarts the process."""


class HealthLookFailed(Defect, frozen=True, kw_only=True):
    """The look at the own health ended with an error."""


class InternalError(Defect, frozen=True, kw_only=True):
    """A defect of ours; the client was told the `id`, where there was one."""

    id: Name | None = None


class OverloadBegan(Warned, frozen=True, kw_only=True):
    """Requests are being refused because there are too many."""

    refused: int


class OverloadEnded(Event, frozen=True, kw_only=True):
    """None was refused for some seconds; `refused` in all of that spell."""

    refused: int
    seconds: float


class LogSuppressed(Warned, frozen=True, kw_only=True):
    """At the end: so many lines of an event were held back by its limit and not yet said with a later one."""

    of: Name
    lines: int


class LogDropped(Warned, frozen=True, kw_only=True):
    """Nobody read the log fast enough: so many lines were given up."""

    lines: int


class SpansLost(Warned, frozen=True, kw_only=True):
    """Spans were given up: the collector of [tracing] is away, too slow, or refuses them."""

    spans: int


class ForeignLine(Event, frozen=True, kw_only=True):
    """A library wrote a line; its first line, and of an exception the type and the places."""

    text: Name
    error: Name | None = None
    at: Name | None = None

    def __str__(self) -> str:
        fields = self.fields()
        text = json.dumps(fields.pop("text"))[1:-1].replace('\\"', '"')
        return " ".join([text, *(f"{key}={shown(value)}" for key, value in fields.items())])


WIRE_EVENTS: tuple[type[Event], ...] = (
    Ready,
    Draining,
    Stopped,
    ReloadAsked,
    TokensRenewed,
    TokensRefused,
    CertificatesRenewed,
    CertificatesRefused,
    CertificateExpires,
    CertificateUnfit,
    PeerUntrusted,
    Plaintext,
    AcceptFailed,
    NotWell,
    HealthLookFailed,
    InternalError,
    OverloadBegan,
    OverloadEnded,
    LogSuppressed,
    LogDropped,
    SpansLost,
    ForeignLine,
)
