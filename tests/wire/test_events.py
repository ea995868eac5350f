"""Events: a closed set of closed types, always one line, always within their limit."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.cloud.events import CLOUD_EVENTS
from edgemux.edge.events import EDGE_EVENTS, BreakerOpened, SensorLost
from edgemux.wire import log_format
from edgemux.wire.events import (
    MOST_CHARACTERS,
    MOST_PLACES,
    WIRE_EVENTS,
    Event,
    ForeignLine,
    LogDropped,
    Name,
    OverloadBegan,
    OverloadEnded,
    ReloadAsked,
    Why,
    kind,
    places,
    tell,
    told,
)
from edgemux.wire.log_format import (
    MOST_FOREIGN,
    RESERVED,
    Limits,
    LogOptions,
    event_of,
    json_line,
    key_of,
    text_line,
)
from edgemux.wire.spell import Overload, Spell
from edgemux.wire.stderr import Lines, is_journal, unblocked_log

EVERY = (*WIRE_EVENTS, *EDGE_EVENTS, *CLOUD_EVENTS)
OPENED = BreakerOpened(peer=0, failures=3, cause=Name("timeout"))
AT_S = 1795763452.125


def record(name: str, text: str, *arguments: Any, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord(name, logging.WARNING, "", 0, text, arguments, info)


@pytest.fixture
def written() -> Iterator[Any]:
    """``written(options)``: a Lines handler, and what it has written once it has ended."""
    source, sink = os.pipe()

    def make(**how: Any) -> tuple[Lines, Any]:
        lines = Lines(sink, **how)

        def read() -> list[str]:
            lines.end()
            return os.read(source, 2**16).decode().splitlines()

        return lines, read

    yield make
    os.close(source)
    os.close(sink)


@pytest.mark.parametrize("event", EVERY)
def test_fields_are_of_closed_types_and_have_no_reserved_names(event: type[Event]) -> None:
    assert event.__doc__
    for name, given_type in typing.get_type_hints(event).items():
        if typing.get_origin(given_type) is typing.ClassVar:
            continue
        assert name not in RESERVED
        kinds = [each for each in typing.get_args(given_type) or (given_type,) if each is not type(None)]
        assert all(each in (int, float, bool, Name, Why) or issubclass(each, Enum) for each in kinds), name


def test_names_are_told_once_and_every_event_is_in_the_set() -> None:
    names = [event.name for event in EVERY]
    assert len(set(names)) == len(names)

    def below(event: type[Event]) -> set[type[Event]]:
        return {event}.union(*(below(each) for each in event.__subclasses__()))

    there = {event for event in below(Event) if event.__module__.startswith("edgemux.")}
    assert {event.__name__ for event in there - set(EVERY)} == {"Event", "Warned", "Failed", "Defect"}


def test_a_line_is_for_people_or_for_machines() -> None:
    said = "WARNING edgemux.edge: breaker opened peer=0 failures=3 cause=timeout"
    assert text_line(logging.WARNING, "edgemux.edge", OPENED, 0) == said
    assert text_line(logging.WARNING, "edgemux.edge", OPENED, 12, journal=True) == f"<4>{said} suppressed=12"
    assert json.loads(json_line(logging.WARNING, "edgemux.edge", OPENED, 12, AT_S)) == {
        "time": "2026-11-27T07:10:52.125Z",
        "level": "WARNING",
        "event": "breaker_opened",
        "logger": "edgemux.edge",
        "peer": 0,
        "failures": 3,
        "cause": "timeout",
        "suppressed": 12,
    }


ODD = st.text(st.characters(codec=None, exclude_categories=()), max_size=2 * MOST_CHARACTERS)


@settings(deadline=None)
@given(ODD, ODD, st.floats(), st.integers(), ODD)
def test_whatever_the_values_are_it_is_one_line_and_valid_json(
    text: str, name: str, number: float, count: int, logger: str
) -> None:
    events: list[Event] = [
        SensorLost(sensor=Name(name), cause=Name(text)),
        ForeignLine(text=Name(text), error=Name(name)),
        OverloadEnded(refused=count, seconds=number),
    ]
    for event in events:
        line = text_line(logging.ERROR, logger, event, 0)
        whole = json_line(logging.ERROR, logger, event, count, AT_S)
        for each in (line, whole):
            assert each.isascii()
            assert each.isprintable()
            assert len(each) < 20 * MOST_CHARACTERS
        read = json.loads(whole, parse_constant=pytest.fail)
        assert read["event"] == event.name
        assert all(isinstance(value, str | int | float | bool) for value in read.values())


def test_of_an_exception_type_and_places_are_told_and_never_its_text() -> None:
    def deep(left: int) -> None:
        if not left:
            raise ValueError("secret")
        deep(left - 1)

    try:
        deep(20)
    except ValueError as caught:
        error = caught
    assert kind(error) == "ValueError"
    assert kind(OSError(28, "No space left on device")) == "No space left on device"
    assert places(error).count("test_events.py:") == MOST_PLACES
    foreign = event_of(record("grpc", "it failed\nsecret: %s", "x", error=error))
    assert str(foreign).startswith("it failed error=ValueError at=test_events.py:")
    assert "secret" not in json_line(40, "grpc", foreign, 0, AT_S)


def test_a_library_whose_arguments_do_not_fit_its_text_is_heard_all_the_same() -> None:
    assert event_of(record("grpc", "%d and %d", "one")) == ForeignLine(text=Name("%d and %d"))


def test_an_event_goes_through_the_library_as_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    tell(logging.getLogger("edgemux.edge"), OPENED)
    assert told(caplog.records[-1]) is OPENED
    assert caplog.messages == [str(OPENED)]
    tell(logging.getLogger("edgemux.edge"), ReloadAsked())  # of less importance than the root logger takes
    assert len(caplog.messages) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=150), st.integers(1, 10))
def test_no_event_exceeds_its_limit_and_every_line_is_accounted_for(asked: list[tuple[str, float]], burst: int) -> None:
    limits, now_s = Limits(burst, every_s=5.0), 100.0
    passed = dict.fromkeys("ab", 0)
    said = dict.fromkeys("ab", 0)
    for key, pause_s in asked:
        now_s += pause_s
        held = limits.passes(key, now_s)
        if held is not None:
            passed[key] += 1
            said[key] += held
    for key, left in limits.left().items():
        said[key] += left
    for key in "ab":
        assert passed[key] <= burst + (now_s - 100.0) / 5.0 + 1e-9
        assert passed[key] + said[key] == sum(each == key for each, _ in asked)
    assert limits.left() == {}


def test_one_event_s_noise_takes_nothing_from_another_and_is_told_with_the_next_line() -> None:
    limits = Limits(burst=1, every_s=10.0)
    assert [limits.passes("noisy", 0.0) for _ in range(13)] == [0] + [None] * 12
    assert limits.passes("rare", 0.0) == 0
    assert limits.passes("noisy", 10.0) == 12


def test_foreign_loggers_are_limited_by_library_and_what_is_remembered_of_them_is_bounded() -> None:
    assert key_of(record("grpc._cython.cygrpc", "x")) == key_of(record("grpc.aio", "y")) == "log:grpc"
    limits = Limits(burst=1)
    passed = [limits.passes(f"log:{number}", 0.0) for number in range(10 * MOST_FOREIGN)]
    assert sum(each is not None for each in passed) == MOST_FOREIGN + 1


def test_lines_are_formatted_limited_and_counted_to_the_end(written: Any) -> None:
    lines, read = written(options=LogOptions(format="json"), clock=lambda: 0.0)
    for number in range(log_format.BURST + 5):
        lines.handle(record("grpc", "line %d", number))
    lines.handle(logging.LogRecord("edgemux.edge", logging.WARNING, "", 0, "%s", (OPENED,), None))
    found = [json.loads(line) for line in read()]
    assert [each["event"] for each in found] == ["foreign_line"] * log_format.BURST + [
        "breaker_opened",
        "log_suppressed",
    ]
    assert found[-1]["of"] == "log:grpc"
    assert found[-1]["lines"] == 5


def test_what_is_less_important_than_configured_is_not_written(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, ours = logging.getLogger(), logging.getLogger("edgemux")
    monkeypatch.setattr(root, "handlers", [])
    before = ours.level
    with unblocked_log(LogOptions(level="error")):
        assert ours.getEffectiveLevel() == logging.ERROR
    with unblocked_log():
        assert ours.getEffectiveLevel() == logging.INFO
        assert root.getEffectiveLevel() == logging.WARNING
    assert ours.level == before


def test_journald_is_recognised_by_what_systemd_says_of_the_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        found = os.fstat(here.fileno())
        assert not is_journal(here.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert is_journal(here.fileno())
        assert not is_journal(there.fileno())
    assert not is_journal(-1)


def test_a_spell_has_a_beginning_and_an_end_and_pauses_do_not_end_it() -> None:
    spell = Spell(quiet_s=5.0)
    at = [
        (False, 0.0),
        (True, 1.0),
        (True, 2.0),
        (False, 6.0),
        (True, 6.5),
        (False, 11.4),
        (False, 11.6),
        (False, 20.0),
    ]
    assert [spell.look(on, now_s) for on, now_s in at] == [None, True, None, None, None, None, False, None]
    assert spell.seconds == pytest.approx(10.6)


def test_an_overload_is_said_when_it_begins_and_with_its_sum_when_it_is_over() -> None:
    overload = Overload(quiet_s=5.0)
    assert overload.look(0, 0.0) is None
    assert overload.look(3, 1.0) == OverloadBegan(refused=3)
    assert overload.look(40, 3.0) is None
    assert overload.look(40, 7.0) is None
    assert overload.look(40, 8.0) == OverloadEnded(refused=40, seconds=7.0)
    assert overload.look(41, 9.0) == OverloadBegan(refused=1)


def test_many_threads_write_whole_lines(written: Any) -> None:
    lines, read = written(limits=Limits(burst=1e6))
    threads = [
        threading.Thread(target=lambda: [lines.handle(record("a", "x" * 100)) for _ in range(25)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read()) == {"WARNING a: " + "x" * 100}
    assert LogDropped(lines=1).fields() == {"lines": 1}
