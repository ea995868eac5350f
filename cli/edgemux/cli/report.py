"""The demo's arithmetic: outcomes of requests -> the summary that is printed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cli.scrape import Sent
from edgemux.cli.traffic import Outcome

ROUTES = ("edge", "cloud", "split")


class Accuracy(msgspec.Struct, frozen=True):
    """Shares of right answers, over all requests of a phase; no answer is a wrong answer."""

    edge_only: float
    cloud_only: float
    multiplexed: float


class Percentiles(msgspec.Struct, frozen=True):
    """Of the time from sending to the answer, in ms; None when nothing was answered."""

    p50: float | None
    p95: float | None
    p99: float | None


class ByRoute(msgspec.Struct, frozen=True):
    """The answers that came by one route: how right they are, and either model alone on the same inputs.

    Shares are None where there is no answer. bytes: of an input on its way to the cloud, framing included, the mean of
    the whole run; None where it is not known.
    """

    answers: int
    right: float | None
    edge_only: float | None
    cloud_only: float | None
    latency_ms: Percentiles
    bytes: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What was observed in a phase.

    answered + errors = requests. late: not answered by the deadline, whether or not an answer came after it.
    offload_share: of the answers, how many came from the cloud, in whole or in part.
    cloud_compute_saved: 1 - inputs sent to the cloud / requests. sent_bytes: of all inputs that were sent to it. Both
    are None when the agent's metrics could not be read.
    """

    requests: int
    answered: int
    errors: int
    late: int
    accuracy: Accuracy
    routes: dict[str, int]
    reasons: dict[str, int]
    variants: dict[str, int]
    offload_share: float
    latency_ms: Percentiles
    cloud_compute_saved: float | None
    sent_bytes: int | None
    by_route: dict[str, ByRoute]
    error_kinds: dict[str, int] = {}


class Report(Summary, frozen=True, kw_only=True):
    """The whole run: totals, except for accuracy and offload_share, which are the normal phase's."""

    phases: dict[str, Summary]
    bundle: str
    bundle_digest: str
    link: str
    rate_per_s: float
    timeout_s: float
    seed: int
    start_up_s: float


class Known(msgspec.Struct, frozen=True):
    """By index of a sample image: the true label, and what device and cloud alone answer."""

    truth: Mapping[int, int]
    edge: Mapping[int, int]
    cloud: Mapping[int, int]


def summarise(
    outcomes: Sequence[Outcome], sent: Sent | None, known: Known, sizes: Mapping[str, float] | None = None
) -> Summary:
    """The summary of the requests of a phase. sent: to the cloud meanwhile; sizes: bytes of an input, by route."""
    answered = [outcome for outcome in outcomes if outcome.label is not None]
    routes = Counter(outcome.route for outcome in answered)
    return Summary(
        requests=len(outcomes),
        answered=len(answered),
        errors=len(outcomes) - len(answered),
        late=sum(outcome.late for outcome in outcomes),
        accuracy=_accuracy(outcomes, known),
        routes={route: routes[route] for route in (*ROUTES, *sorted(set(routes) - set(ROUTES)))},
        reasons=dict(Counter(outcome.reason for outcome in answered).most_common()),
        variants=dict(sorted(Counter(outcome.variant for outcome in answered).items())),
        offload_share=_share(routes["cloud"] + routes["split"], len(answered)),
        latency_ms=percentiles([outcome.elapsed_s for outcome in answered]),
        cloud_compute_saved=None if sent is None else 1 - _share(sent.inputs, len(outcomes)),
        sent_bytes=None if sent is None else sent.bytes,
        by_route={route: _by_route(answered, route, known, sizes or {}) for route in ROUTES},
        error_kinds=dict(Counter(outcome.error for outcome in outcomes if outcome.label is None).most_common()),
    )


def _by_route(answered: Sequence[Outcome], route: str, known: Known, sizes: Mapping[str, float]) -> ByRoute:
    those = [outcome for outcome in answered if outcome.route == route]
    accuracy = _accuracy(those, known) if those else None
    return ByRoute(
        answers=len(those),
        right=None if accuracy is None else accuracy.multiplexed,
        edge_only=None if accuracy is None else accuracy.edge_only,
        cloud_only=None if accuracy is None else accuracy.cloud_only,
        latency_ms=percentiles([outcome.elapsed_s for outcome in those]),
        bytes=sizes.get(route),
    )


def sizes_of(sent: Sequence[Sent]) -> dict[str, float]:
    """Bytes of a whole input and of a part of one, by route, from what was sent in several phases; what is known."""
    counts = np.array([[each.inputs - each.parts, each.parts] for each in sent], float).reshape(-1, 2)
    size = np.array([each.bytes for each in sent], float)
    there: NDArray[np.bool_] = np.any(counts, axis=0)
    found = np.linalg.lstsq(counts[:, there], size, rcond=None)
    if found[2] < there.sum():
        return {}
    names = [name for name, any_sent in zip(("cloud", "split"), there, strict=True) if any_sent]
    return {name: round(float(value), 1) for name, value in zip(names, found[0], strict=True)}


def percentiles(elapsed_s: Sequence[float]) -> Percentiles:
    """p50, p95 and p99 in ms, to the µs."""
    if not elapsed_s:
        return Percentiles(None, None, None)
    p50, p95, p99 = (round(float(value) * 1000, 3) for value in np.percentile(elapsed_s, (50, 95, 99)))
    return Percentiles(p50, p95, p99)


def whole_run(
    outcomes: Mapping[str, Sequence[Outcome]], sent: Mapping[str, Sent | None], known: Known
) -> tuple[Summary, dict[str, Summary]]:
    """The totals, with the first phase's accuracy and offload share, and the summary of every phase."""
    read = [each for each in (sent[name] for name in outcomes) if each is not None]
    sizes = sizes_of(read)
    phases = {name: summarise(outcomes[name], sent[name], known, sizes) for name in outcomes}
    total = sum_of(read) if len(read) == len(outcomes) else None
    everything = summarise([outcome for phase in outcomes.values() for outcome in phase], total, known, sizes)
    first = next(iter(phases.values()))
    totals = msgspec.structs.replace(everything, accuracy=first.accuracy, offload_share=first.offload_share)
    return totals, phases


def sum_of(sent: Sequence[Sent]) -> Sent:
    """All together."""
    return Sent(sum(s.inputs for s in sent), sum(s.parts for s in sent), sum(s.bytes for s in sent))


def _accuracy(outcomes: Sequence[Outcome], known: Known) -> Accuracy:
    count = len(outcomes)
    return Accuracy(
        edge_only=_share(sum(known.edge[o.image] == known.truth[o.image] for o in outcomes), count),
        cloud_only=_share(sum(known.cloud[o.image] == known.truth[o.image] for o in outcomes), count),
        multiplexed=_share(sum(o.label == known.truth[o.image] for o in outcomes), count),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
