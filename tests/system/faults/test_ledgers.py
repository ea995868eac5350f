"""The judge of the suite, judged: what it lets pass, and that it finds each thing it is there for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgemux.edge.request_log import Line
from tests.system.faults.ledgers import (
    ANSWERED,
    BUSY_S,
    GRACE_S,
    Agent,
    Entry,
    Verdict,
    percentile,
    read_log,
    reconcile,
    waited_after,
)

KNOWN = {"level-1": [3, 4, 5], "cloud": [3, 4, 6]}
WAITING = frozenset({"cloud_timeout"})


def entry(number: int = 0, picture: int = 0, variant: str = "level-1", **more: object) -> Entry:
    route = "cloud" if variant == "cloud" else "edge"
    made = Entry(f"a-{number}", picture, 0.4, float(number), ANSWERED, 0.01, KNOWN[variant][picture], route, variant)
    return replace(made, reason="confident", **more)


def line(of: Entry, **more: object) -> Line:
    said = ((of.route,), (of.variant,), (of.reason,), (of.label or 0,))
    made = Line(of.id, "fashion-mnist", ANSWERED, of.elapsed_s, 1, *said)
    return replace(made, **more)


GOOD = [entry(number, number % 3, ("level-1", "cloud")[number % 2]) for number in range(6)]
LOG = [line(one) for one in GOOD]


def judged(client: list[Entry] = GOOD, log: list[Line] = LOG, **agent: int) -> Verdict:
    return reconcile(client, Agent(log, **agent), KNOWN)


def test_ledgers_that_agree_show_no_fault() -> None:
    assert judged().faults == ()
    assert judged().refused == ()


def spoilt(**change: object) -> list[Entry]:
    return [replace(GOOD[0], **change), *GOOD[1:]]


LATE_S = 0.4 + GRACE_S + BUSY_S + 0.001
CONTROLS: dict[str, tuple[str, Callable[[], Verdict]]] = {
    "no outcome": ("lost", lambda: judged(spoilt(outcome=""))),
    "an outcome that came far too late": ("lost", lambda: judged(spoilt(outcome="UNAVAILABLE", elapsed_s=LATE_S))),
    "an error that is not one of ours": ("lost", lambda: judged(spoilt(outcome="INTERNAL"))),
    "a call that somebody cancelled": ("lost", lambda: judged(spoilt(outcome="CANCELLED"))),
    "an answer to another request": ("lost", lambda: judged(spoilt(outcome="answer to another request"))),
    "an answer that the agent has not in its log": ("lost", lambda: judged(log=LOG[1:])),
    "more such answers than the log dropped": ("lost", lambda: judged(log=LOG[2:], dropped=1)),
    "a request that the agent never finishes": ("lost", lambda: judged(inflight=1)),
    "two lines for one request": ("doubled", lambda: judged(log=[*LOG, LOG[0]])),
    "two outcomes at the client": ("doubled", lambda: judged([*GOOD, GOOD[0]])),
    "late by the client's clock": ("late", lambda: judged(spoilt(elapsed_s=LATE_S))),
    "late by the agent's clock": ("late", lambda: judged(log=[line(GOOD[0], elapsed_s=0.421), *LOG[1:]])),
    "a label that the level does not give": ("wrong", lambda: judged(spoilt(label=9))),
    "no label": ("wrong", lambda: judged(spoilt(label=None))),
    "the device's label for the cloud's": (
        "wrong",
        lambda: judged([entry(2, 2, label=6)], [line(entry(2, 2, label=6))]),
    ),
    "a variant that nobody knows": ("wrong", lambda: judged(spoilt(variant="level-9"))),
    "a level that answers in the cloud": ("wrong", lambda: judged(spoilt(route="cloud"))),
    "another label in the log": ("wrong", lambda: judged(log=[line(GOOD[0], labels=(8,)), *LOG[1:]])),
    "another route in the log": ("wrong", lambda: judged(log=[line(GOOD[0], routes=("cloud",)), *LOG[1:]])),
    "another variant in the log": ("wrong", lambda: judged(log=[line(GOOD[0], variants=("cloud",)), *LOG[1:]])),
    "another reason in the log": ("wrong", lambda: judged(log=[line(GOOD[0], reasons=("breaker",)), *LOG[1:]])),
    "a refusal in the log": ("wrong", lambda: judged(log=[line(GOOD[0], outcome="failed"), *LOG[1:]])),
}


@pytest.mark.parametrize("what", CONTROLS)
def test_each_fault_is_found_and_named(what: str) -> None:
    kind, judge = CONTROLS[what]
    verdict = judge()
    assert getattr(verdict, kind), what
    assert set(verdict.faults) >= set(getattr(verdict, kind))


def test_time_without_a_cpu_is_not_the_agents_and_no_more_than_that_is_forgiven() -> None:
    late = line(GOOD[0], elapsed_s=0.4 + GRACE_S + 0.05)
    assert judged(spoilt(starved_s=0.051), [late, *LOG[1:]]).faults == ()
    assert judged(spoilt(starved_s=0.049), [late, *LOG[1:]]).late


def test_running_out_of_time_for_want_of_a_cpu_is_told_apart_from_refusing() -> None:
    spent = {"outcome": "DEADLINE_EXCEEDED", "elapsed_s": 0.6}
    assert judged(spoilt(**spent, starved_s=0.25), LOG[1:]).starved
    for why in ({"starved_s": 0.15}, {"starved_s": 0.25, "outcome": "RESOURCE_EXHAUSTED"}):
        verdict = judged(spoilt(**(spent | why)), LOG[1:])
        assert (len(verdict.refused), verdict.starved) == (1, ())


def test_a_typed_error_in_time_is_a_refusal_and_no_fault() -> None:
    verdict = judged(spoilt(outcome="RESOURCE_EXHAUSTED"), LOG[1:])
    assert (len(verdict.refused), verdict.faults) == (1, ())


def test_answers_that_the_log_says_it_dropped_are_not_lost() -> None:
    assert judged(log=LOG[1:], dropped=1).faults == ()


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1), st.booleans()), max_size=30), st.integers(1, 4))
def test_nobody_waits_after_the_failures_are_known_unless_sent_after_that_many_failed(
    requests: list[tuple[float, float, bool]], failures: int
) -> None:
    entries = [
        Entry(str(i), 0, 0.4, sent, ANSWERED, took, reason="cloud_timeout" if waited else "breaker")
        for i, (sent, took, waited) in enumerate(requests)
    ]
    found = waited_after(entries, failures, WAITING, 0.0)
    waited = [one for one in entries if one.reason in WAITING]
    for one in found:
        assert sum(other.ended_s < one.sent_s for other in waited) >= failures
    for one in set(map(id, waited)) - set(map(id, found)):
        other = next(e for e in waited if id(e) == one)
        assert sum(e.ended_s < other.sent_s for e in waited) < failures


def test_a_log_is_read_up_to_the_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    encoded = [msgspec.json.encode(one) + b"\n" for one in LOG]
    path.write_bytes(b"".join(encoded[:3]) + encoded[3][:10])
    assert read_log(path, frozenset({"a-0", "a-2", "a-3"})) == [LOG[0], LOG[2]]


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_one_of_the_values_with_that_share_at_most_as_large(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
