"""How many replicas a fleet of devices needs: a discrete-event simulation of devices, network and replicas. Pure.

    inputs at the devices ─▶ device model ─offloaded share─▶ network ─▶ the replica with fewest requests ─▶ network

A replica is what serves: ``Batcher``, ``Admission`` and ``BatchTime`` themselves, driven by simulated time; only the
batch's run is replaced, by a measured ``fixed + rows * per_row`` with a spread. A device that is refused, or not
answered in time, keeps its own answer: that is counted, not tried again. All times in seconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.admission import Admission, AdmissionSettings, BatchTime, Refusal
from edgemux.cloud.batcher import Batch, Batcher, Expired, Item, Wait

Times = NDArray[np.float64]


class Service(msgspec.Struct, frozen=True):
    """What a batch takes in a replica: ``fixed_s + rows * per_row_s``, times a log-normal of ``spread``, median 1."""

    fixed_s: float
    per_row_s: float
    spread: float = 0.1
    max_batch: int = 32
    linger_s: float = 0.0
    admission: AdmissionSettings = AdmissionSettings()

    def batch_s(self, rows: int) -> float:
        """The median time of a batch."""
        return self.fixed_s + rows * self.per_row_s


class Link(msgspec.Struct, frozen=True):
    """Each way: ``delay_s`` plus an exponential of mean ``jitter_s``; the way up also carries the request."""

    delay_s: float = 0.01
    jitter_s: float = 0.005
    uplink_bytes_s: float = math.inf


class Fleet(msgspec.Struct, frozen=True):
    """``edges`` devices, each with ``inputs_per_s``; ``offload_share`` of them is sent, after ``device_s`` on the
    device, as ``request_bytes``, and is worth nothing ``timeout_s`` after it came."""

    edges: int
    inputs_per_s: float
    offload_share: float = 1.0
    device_s: float = 0.0
    request_bytes: int = 1000
    timeout_s: float = 1.0


class Figures(msgspec.Struct, frozen=True):
    """What became of the inputs. Latencies are from input to answer; ``p50_s`` and ``p99_s`` of answered offloads.

    ``refused_share``: offloads that were refused or late, of all. ``busy_share``: of the replicas' time.
    """

    inputs: int
    offloads: int
    refused: int
    late: int
    p50_s: float
    p99_s: float
    busy_share: float
    mean_batch: float
    duration_s: float

    @property
    def refused_share(self) -> float:
        return (self.refused + self.late) / max(1, self.offloads)

    def meets(self, p99_s: float, refused_share: float) -> bool:
        """Whether offloads were answered within ``p99_s``, and no more than ``refused_share`` of them refused."""
        return self.refused_share <= refused_share and not self.p99_s > p99_s


def poisson(fleet: Fleet, duration_s: float, random: np.random.Generator) -> Times:
    """Independent inputs: times FLOAT64 [n], sorted, in [0, duration_s)."""
    count = random.poisson(fleet.edges * fleet.inputs_per_s * duration_s)
    return np.sort(random.uniform(0, duration_s, count))


def bursts(
    fleet: Fleet, duration_s: float, random: np.random.Generator, period_s: float = 10.0, spread_s: float = 0.1
) -> Times:
    """Half of the inputs independent, half as if all devices saw the same thing at once: every ``period_s``, within
    ``spread_s``. Times FLOAT64 [n], sorted, in [0, duration_s)."""
    alone = poisson(msgspec.structs.replace(fleet, inputs_per_s=fleet.inputs_per_s / 2), duration_s, random)
    together = random.poisson(fleet.inputs_per_s / 2 * period_s, fleet.edges)
    starts = np.arange(period_s / 2, duration_s, period_s)
    at = [start + random.uniform(0, spread_s, int(together.sum())) for start in starts]
    times = np.concatenate([alone, *at])
    return np.sort(times[times < duration_s])


def day(hours: int = 24, least: float = 0.2) -> tuple[float, ...]:
    """The rate in each hour as a share of the peak's: a cosine from ``least``, at midnight, to 1, at noon."""
    return tuple(least + (1 - least) * (1 - math.cos(2 * math.pi * hour / hours)) / 2 for hour in range(hours))


class _Replica:
    """One worker behind the real queue and the real admission."""

    def __init__(self, service: Service, random: np.random.Generator) -> None:
        self._service = service
        self._timing = BatchTime(service.batch_s(1), service.batch_s(service.max_batch), service.max_batch)
        self._batcher = Batcher(service.max_batch, service.linger_s, self._timing)
        self._admission = Admission(service.admission, self._timing, service.max_batch)
        self._random = random
        self._batch: Batch | None = None
        self._started_s = self.busy_s = 0.0
        self.outstanding = self.batches = self.rows = 0

    def arrive(self, sent_s: float, deadline_s: float, now_s: float) -> bool:
        """Take a request in, or refuse it."""
        running_left_s = None
        if self._batch is not None:
            running_left_s = max(0.0, self._started_s + self._timing.expected_s(self._batch.rows) - now_s)
        left_s = deadline_s - now_s
        refused = self._admission.check(1, left_s, self._batcher.queued_rows, running_left_s)
        if left_s <= 0 or isinstance(refused, Refusal):
            return False
        self._batcher.add(Item(1, deadline_s, sent_s), now_s)
        self.outstanding += 1
        return True

    def finish(self, now_s: float) -> tuple[Item, ...]:
        """The running batch is done: its requests."""
        assert self._batch is not None
        done, self._batch = self._batch.items, None
        self._batcher.finished()
        self._timing.observe(len(done), now_s - self._started_s)
        self.busy_s += now_s - self._started_s
        self.outstanding -= len(done)
        return done

    def advance(self, now_s: float) -> tuple[float | None, float, int]:
        """Start what can be started: when the batch that was started ends (None: none was), when to look again, and
        how many requests expired in the queue."""
        expired = 0
        while True:
            match self._batcher.poll(now_s):
                case Batch() as batch:
                    self._batch, self._started_s = batch, now_s
                    self.batches, self.rows = self.batches + 1, self.rows + batch.rows
                    slower = math.exp(self._service.spread * self._random.standard_normal())
                    return now_s + self._service.batch_s(batch.rows) * slower, math.inf, expired
                case Expired(items):
                    expired += len(items)
                    self.outstanding -= len(items)
                case Wait(until_s):
                    return None, until_s if self._batch is None else math.inf, expired


def simulate(
    fleet: Fleet, service: Service, link: Link, replicas: int, inputs: Times, duration_s: float, seed: int = 0
) -> Figures:
    """Play ``inputs``, times FLOAT64 [n] at the devices, sorted, in [0, duration_s)."""
    random = np.random.default_rng(seed)
    sent = inputs[random.random(len(inputs)) < fleet.offload_share]
    up_s = fleet.device_s + link.delay_s + fleet.request_bytes / link.uplink_bytes_s
    arrived = sent + up_s + random.exponential(link.jitter_s, len(sent))
    way_back_s = link.delay_s + random.exponential(link.jitter_s, len(sent))
    order = np.argsort(arrived, kind="stable")
    pool = [_Replica(service, random) for _ in range(replicas)]
    latencies: list[float] = []
    refused = late = 0
    for kind, now_s, value in _events(pool, sent[order], arrived[order], fleet.timeout_s - link.delay_s):
        if kind == "refused":
            refused += 1
        elif kind == "expired":
            late += value
        else:
            latencies.append(now_s - value + way_back_s[len(latencies)])
    answered = np.asarray(latencies)
    in_time = answered[answered <= fleet.timeout_s]
    p50_s, p99_s = np.percentile(in_time, [50, 99]) if len(in_time) else (math.nan, math.nan)
    return Figures(
        inputs=len(inputs),
        offloads=len(sent),
        refused=refused,
        late=late + len(answered) - len(in_time),
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        busy_share=sum(each.busy_s for each in pool) / (replicas * duration_s),
        mean_batch=sum(each.rows for each in pool) / max(1, sum(each.batches for each in pool)),
        duration_s=duration_s,
    )


def _events(pool: list[_Replica], sent: Times, arrived: Times, timeout_s: float) -> Iterator[tuple[str, float, Any]]:
    """What happens at the replicas, in order: ("answered", now_s, sent_s), ("refused", ...), ("expired", now_s, how
    many). A request goes to a replica with fewest under way, the next in turn where there are several."""
    heap: list[tuple[float, int, bool]] = []  # (when, replica, whether its batch ends)
    under_way = [0] * len(pool)
    turn = at = 0
    while at < len(arrived) or heap:
        if at < len(arrived) and (not heap or arrived[at] <= heap[0][0]):
            now_s, sent_s = float(arrived[at]), float(sent[at])
            at, turn = at + 1, turn + 1
            number = _next_of(under_way, turn % len(pool))
            if not pool[number].arrive(sent_s, sent_s + timeout_s, now_s):
                yield "refused", now_s, sent_s
                continue
        else:
            now_s, number, ends = heapq.heappop(heap)
            if ends:
                for item in pool[number].finish(now_s):
                    yield "answered", now_s, item.payload
        ends_s, look_s, expired = pool[number].advance(now_s)
        under_way[number] = pool[number].outstanding
        if expired:
            yield "expired", now_s, expired
        if ends_s is not None:
            heapq.heappush(heap, (ends_s, number, True))
        elif look_s < math.inf and now_s < look_s:
            heapq.heappush(heap, (look_s, number, False))


def _next_of(under_way: list[int], turn: int) -> int:
    """The first replica with fewest under way, from ``turn`` on."""
    fewest = min(under_way)
    try:
        return under_way.index(fewest, turn)
    except ValueError:
        return under_way.index(fewest)


def needed(meets: Callable[[int], bool], least: int = 1, most: int = 4096) -> int | None:
    """The smallest number of replicas, ``least`` to ``most``, that ``meets``; None when not even ``most`` does.

    More replicas are taken never to be worse.
    """
    low, high = least, least
    while not meets(high):
        if high >= most:
            return None
        low, high = high + 1, min(most, max(high + 1, high * 5 // 4))
    while low < high:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle + 1
    return high
