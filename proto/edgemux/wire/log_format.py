"""A log record as one line, and how many of a kind may be written. Pure: time is passed in."""

from __future__ import annotations

import datetime
import json
import logging
import re
from typing import Literal

import msgspec

from edgemux.multiplexer.limits import TokenBucket
from edgemux.wire.events import Event, ForeignLine, Name, Scalar, cut, kind, places, told

# So many lines of an event at once, and then one every so many seconds.
BURST = 10
EVERY_S = 5.0
# Loggers of libraries that have a limit of their own; the others share one.
MOST_FOREIGN = 32
OTHERS = "log:other"
# Keys of a line of JSON that no field may have.
RESERVED = ("time", "level", "event", "logger", "suppressed")
# What journald takes for the importance of a line, at its beginning.
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
# At least what str.splitlines ends a line at.
_LINE_END = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")


class LogOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """format: lines for people, or one JSON object each. level: what is less important is not written."""

    format: Literal["text", "json"] = "text"
    level: Literal["info", "warning", "error"] = "info"

    @property
    def threshold(self) -> int:
        """The level as the library has it."""
        return {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[self.level]


def event_of(record: logging.LogRecord) -> Event:
    """What a record says; of a foreign one the first line, without the text of its exception."""
    event = told(record)
    if event is not None:
        return event
    try:
        text = record.getMessage()
    except Exception:  # a library's arguments do not fit its text
        text = str(record.msg)
    first = _LINE_END.split(text, maxsplit=1)[0]
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ForeignLine(text=Name(first))
    return ForeignLine(text=Name(first), error=kind(error), at=places(error))


def text_line(level: int, logger: str, event: Event, suppressed: int, journal: bool = False) -> str:
    """For people: ``WARNING edgemux.edge: breaker opened peer=0``. ``journal``: with a priority before it."""
    before = f"<{_PRIORITIES.get(level, 5)}>" if journal else ""
    after = f" suppressed={suppressed}" if suppressed else ""
    return f"{before}{logging.getLevelName(level)} {_named(logger)}: {event}{after}"


def json_line(level: int, logger: str, event: Event, suppressed: int, created_s: float) -> str:
    """For machines: time (RFC 3339, UTC), level, event, logger, and the event's fields beside them."""
    at = datetime.datetime.fromtimestamp(created_s, datetime.UTC)
    line: dict[str, Scalar] = {
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": logging.getLevelName(level),
        "event": event.name,
        "logger": _named(logger),
    }
    line |= {key: _finite(value) for key, value in event.fields().items()}
    if suppressed:
        line["suppressed"] = suppressed
    return json.dumps(line)


def _finite(value: Scalar) -> Scalar:
    """JSON has no infinity, and nothing that is not a number."""
    return str(value) if isinstance(value, float) and not abs(value) < float("inf") else value


def _named(logger: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "?", cut(logger))


class Limits:
    """How many lines of each event may be written: BURST at once, one every EVERY_S after that."""

    def __init__(self, burst: float | None = None, every_s: float = EVERY_S) -> None:
        self._burst, self._rate_per_s = BURST if burst is None else burst, 1.0 / every_s
        self._buckets: dict[str, TokenBucket] = {}
        self._suppressed: dict[str, int] = {}

    def passes(self, key: str, now_s: float) -> int | None:
        """Whether a line may be written: how many before it were not, which it says; None where it may not."""
        key = self._known(key)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate_per_s, self._burst)
        if bucket.take(1.0, now_s):
            return self._suppressed.pop(key, 0)
        self._suppressed[key] = self._suppressed.get(key, 0) + 1
        return None

    def left(self) -> dict[str, int]:
        """What was held back and is not said yet, by key; it counts as said now."""
        left, self._suppressed = self._suppressed, {}
        return left

    def _known(self, key: str) -> str:
        """Names of foreign loggers are not bounded: what is remembered of them is."""
        if key in self._buckets or not key.startswith("log:"):
            return key
        foreign = sum(known.startswith("log:") for known in self._buckets)
        return key if foreign < MOST_FOREIGN else OTHERS


def key_of(record: logging.LogRecord) -> str:
    """What a record shares its limit with: the same event, or the same library."""
    event = told(record)
    return f"log:{record.name.partition('.')[0]}" if event is None else event.name
