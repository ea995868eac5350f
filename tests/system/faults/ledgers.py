"""Two ledgers of the same requests, the client's and the agent's, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgemux.edge.request_log import Line

# The promise: nothing is answered later than this after its deadline.
GRACE_S = 0.020
# What the client's clock may be off on a test machine of two cores on which other suites run: its event loop was seen
# 0.2 s late there. The agent's own clock, in its log, gets the promise and no more; both get the time for which the
# agent was ready to run and the kernel let others run instead, which the kernel counts (Entry.starved_s).
BUSY_S = 0.25

ANSWERED = "answered"


class Entry(msgspec.Struct):
    """A request as its client saw it; times by the client's monotonic clock.

    picture: its index among the load's pictures. outcome: "answered", the name of a gRPC status, or "" while there is
    none. elapsed_s: from sending to the outcome. starved_s: how long in between the agent waited for a CPU.
    """

    id: str
    picture: int
    timeout_s: float
    sent_s: float
    outcome: str = ""
    elapsed_s: float = 0.0
    label: int | None = None
    route: str = ""
    variant: str = ""
    reason: str = ""
    degraded: bool = False
    starved_s: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether it was."""
        return self.outcome == ANSWERED

    @property
    def ended_s(self) -> float:
        """When its outcome came."""
        return self.sent_s + self.elapsed_s


class Agent(msgspec.Struct):
    """The agent's ledger: the lines of its log, how many it dropped, and how many requests it has in hand."""

    lines: Sequence[Line]
    dropped: int = 0
    inflight: int = 0


class Verdict(msgspec.Struct):
    """What is wrong, each with its id and why. ``refused``: typed errors, which are no answers but no fault either.

    starved: those of them that would have been answered in time, had the kernel let the agent run.
    """

    requests: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    late: tuple[str, ...]
    wrong: tuple[str, ...]
    refused: tuple[str, ...]
    starved: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """All that must not be."""
        return self.lost + self.doubled + self.late + self.wrong


# Statuses by which the agent says that it will not, or cannot, answer; all others are no typed error of its own.
TYPED = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"})


def reconcile(client: Sequence[Entry], agent: Agent, known: Mapping[str, Sequence[int]]) -> Verdict:
    """Compare the ledgers. ``known``: every variant's label of every picture.

    lost: no outcome before the deadline, an outcome that is no typed error, an answer that the agent knows nothing of,
    or a request that it has never finished. doubled: finished twice. late: answered after the deadline. wrong: an
    answer that its variant does not give for that picture, or about which the ledgers disagree.
    """
    lost, late, wrong, refused, excused = [], [], [], [], []
    for entry in client:
        over_s = entry.elapsed_s - entry.timeout_s - entry.starved_s
        if entry.outcome == ANSWERED:
            if over_s > GRACE_S + BUSY_S:
                late.append(f"{entry.id}: answered {over_s:.3f} s after its deadline")
            labels = known.get(entry.variant, ())
            if entry.label is None or not labels or labels[entry.picture] != entry.label:
                wrong.append(f"{entry.id}: picture {entry.picture} is {entry.label} by {entry.variant or 'nobody'}")
            if (entry.route == "cloud") != (entry.variant == "cloud"):
                wrong.append(f"{entry.id}: {entry.variant} by the route {entry.route}")
        elif not entry.outcome or over_s > GRACE_S + BUSY_S:
            lost.append(f"{entry.id}: no outcome by {entry.timeout_s:g} s and {GRACE_S + BUSY_S:g} s of grace")
        elif entry.outcome in TYPED:
            starved = f", {entry.starved_s:.3f} s of them without a CPU" if entry.starved_s else ""
            kind = excused if was_starved(entry) else refused
            kind.append(f"{entry.id}: {entry.outcome} after {entry.elapsed_s:.3f} s{starved}")
        else:
            lost.append(f"{entry.id}: {entry.outcome}")
    doubled = _twice(entry.id for entry in client) + _twice(line.id for line in agent.lines)
    lines = {line.id: line for line in agent.lines}
    late += _late_by_the_agent(client, lines)
    wrong += _disagreements(client, lines)
    unknown = [e.id for e in client if e.outcome == ANSWERED and e.id not in lines]
    lost += [f"{name}: answered, but not in the agent's log" for name in unknown[agent.dropped :]]
    lost += [f"the agent has {agent.inflight} requests in hand that nobody waits for"] * (agent.inflight > 0)
    return Verdict(len(client), tuple(lost), doubled, tuple(late), tuple(wrong), tuple(refused), tuple(excused))


def was_starved(entry: Entry) -> bool:
    """Whether a request ran out of time because the agent got no CPU: without that it would have been in time.

    A quarter of the deadline is more than what the agent can make up for by answering on the device.
    """
    needed_s = max(entry.elapsed_s - entry.timeout_s, entry.timeout_s / 4)
    return entry.outcome == "DEADLINE_EXCEEDED" and entry.starved_s >= needed_s


def _twice(ids: Iterable[str]) -> tuple[str, ...]:
    counts = Counter(ids)
    return tuple(f"{name}: {count} outcomes" for name, count in counts.items() if count > 1)


def _late_by_the_agent(client: Sequence[Entry], lines: Mapping[str, Line]) -> list[str]:
    found = []
    for entry in client:
        line = lines.get(entry.id)
        if line is None or line.outcome != ANSWERED:
            continue
        if line.elapsed_s > entry.timeout_s + GRACE_S + entry.starved_s:
            starved = f", {entry.starved_s:.3f} s of them without a CPU" if entry.starved_s else ""
            found.append(f"{entry.id}: the agent took {line.elapsed_s:.3f} s of {entry.timeout_s:g} s{starved}")
    return found


def _disagreements(client: Sequence[Entry], lines: Mapping[str, Line]) -> list[str]:
    found = []
    for entry in client:
        line = lines.get(entry.id)
        if entry.outcome != ANSWERED or line is None:
            continue
        said = (ANSWERED, (entry.route,), (entry.variant,), (entry.reason,), (entry.label,))
        logged = (line.outcome, line.routes, line.variants, line.reasons, line.labels)
        if logged != said:
            found.append(f"{entry.id}: the client has {said}, the agent {logged}")
    return found


def read_log(path: Path, ids: frozenset[str]) -> list[Line]:
    """The lines of an agent's log about ``ids``. A last line that is still being written is left out."""
    found = []
    for text in path.read_bytes().splitlines(keepends=True):
        if text.endswith(b"\n"):
            line = msgspec.json.decode(text, type=Line)
            if line.id in ids:
                found.append(line)
    return found


def waited_after(entries: Sequence[Entry], failures: int, waiting: frozenset[str], since_s: float) -> list[Entry]:
    """Requests that waited for a dead cloud although ``failures`` answers had said by then that it was dead.

    A request waited if its reason is among ``waiting``. Those that were sent before the ``failures``-th of them was
    answered could not know, however many they are.
    """
    failed = sorted((e for e in entries if e.reason in waiting and e.sent_s >= since_s), key=lambda e: e.ended_s)
    if len(failed) < failures:
        return []
    known_s = failed[failures - 1].ended_s
    return [entry for entry in failed if entry.sent_s > known_s]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
