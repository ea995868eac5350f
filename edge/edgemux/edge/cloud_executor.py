"""Running a route in the cloud: answers with a Prediction or raises an ExecutionError; learns from both."""

from __future__ import annotations

import asyncio
import copy
import itertools
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from edgemux.edge.agreement import Agreement
from edgemux.edge.breaker import Breaker, Call, State, TailBreaker
from edgemux.edge.metrics import EdgeMetrics, outcome_of
from edgemux.edge.peer import CALL_OVERHEAD_BYTES, Peer, digest_in
from edgemux.edge.purse import Purse
from edgemux.edge.sample import Sample
from edgemux.edge.spans import offload, options
from edgemux.edge.together import Reply, Row, Together, merged
from edgemux.multiplexer.domain import Prediction, Reason, Route
from edgemux.multiplexer.errors import (
    BadAnswer,
    DeadlineExceeded,
    ExecutionError,
    Incompatible,
    NotTogether,
    Overloaded,
    Unreachable,
    Untrusted,
)
from edgemux.multiplexer.estimate import OFFLOAD_STALE_S, LinkEstimate, RecentMean, RecentShare
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import add_checksum, get_parameters, make_request
from edgemux.wire.payload import RAW, encode, mark
from edgemux.wire.renewed import RenewedChannel
from edgemux.wire.service import Stub
from edgemux.wire.status import from_peer, pushback_s
from edgemux.wire.tracing import Attribute, Trace

Clock = Callable[[], float]

# The longest that nothing is known about a cloud which is not asked because it was slow.
SHADOW_S = 1.0
# A cloud that is busy, and does not say when to ask again, is left alone for so long.
PUSHBACK_S = 0.5
# An encoding that takes longer does not keep the event loop from everybody else.
THREAD_S = 0.002


class CloudExecutor:
    """Sends inputs to the cloud, checks what comes back, and learns the link and the cloud from it.

    What is sent is paid before, from ``purse``, or not sent. Not thread-safe.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        peer: Peer,
        breaker: Breaker,
        purse: Purse,
        metrics: EdgeMetrics,
        clock: Clock,
        index: int | None = None,
        most_together: int = 1,
    ) -> None:
        """index: which of several clouds this is, None for the only one. most_together: inputs in one call."""
        self.index = index
        self._channel = channel
        self._secured = channel if isinstance(channel, RenewedChannel) else None
        self._stub = Stub(channel)
        # Ids of our own: a client's may be too long for the cloud, or another client's too.
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._peer = peer
        self.breaker = breaker
        self.purse = purse
        self._metrics = metrics
        self._clock = clock
        self.link = LinkEstimate()
        self.server = RecentMean(stale_s=OFFLOAD_STALE_S)
        # Seconds that inputs wait in the cloud before they are computed, and the share of calls that nobody answered.
        self.queue = RecentMean(stale_s=OFFLOAD_STALE_S)
        self.lost = RecentShare()
        self.request_bytes = peer.call_bytes
        self._packing = peer.packing()
        self._most_together = most_together
        # The latest error that the breaker has been told of: all rows of a call have the same.
        self._told: Callable[[], Exception | None] = lambda: None
        self._together = Together(self._call, self._most, clock)
        # Whether its answers say that it is one of our own servers: others are sent the tensor alone.
        self._ours = False
        self.refused_until_s = float("-inf")
        # When the latest input was sent.
        self.asked_s = float("-inf")
        # Whether the latest answer came from another model than the bundle's.
        self.foreign = False
        # How the latest call ended.
        self.outcome = outcome_of(None)
        self.agreement = Agreement(index or 0, peer.model)

    def beside(self, peer: Peer, metrics: EdgeMetrics) -> CloudExecutor:
        """The same cloud for another model: one channel, breaker, link and budgets; what the model says is its own.

        What the tail of a split is sent is far smaller than inputs are, so what that takes on the link is its own, too,
        and it has a breaker beside the cloud's: it may fail where the cloud's model does not.
        """
        other = copy.copy(self)
        other._peer, other._metrics = peer, metrics
        other.request_bytes = peer.call_bytes
        other.asked_s = float("-inf")
        other.server = RecentMean(stale_s=OFFLOAD_STALE_S)
        other._packing = peer.packing()
        if peer.form is not None:
            other.link, other.breaker = self.link.beside(), self.breaker.of_tail()
        other.agreement = Agreement(self.index or 0, peer.model, self.agreement.breaks)
        other._together = Together(other._call, other._most, self._clock)
        return other

    def blocked(self, now_s: float, lot: float) -> Reason | None:
        """Why the input that drew ``lot`` must not be sent, None when it may. Nobody's input is the breaker's probe."""
        if now_s < self.refused_until_s:
            return Reason.CLOUD_OVERLOADED
        if self.incompatible:
            return self.agreement.reason
        return None if self.breaker.admits(now_s, lot) else Reason.BREAKER

    def wants_shadow(self, now_s: float, kept_for: Reason) -> bool:
        """Whether an input that the device has answered should be sent all the same, with nobody waiting.

        That is how a half-open breaker is probed, and how a link that was too slow is found to be quick again.
        """
        if now_s < self.refused_until_s or self.incompatible:
            return False
        if self.breaker.state(now_s) is State.CLOSED:
            return kept_for is Reason.LINK and self.link.offload_age_s(now_s) > SHADOW_S
        return self.breaker.allows(now_s)

    @property
    def incompatible(self) -> bool:
        """Whether the cloud has said, more than once, that it does not serve what is wanted, or not to us."""
        return self.agreement.broken

    def _most(self) -> int:
        """Inputs in one call: servers of other make may not take several."""
        return self._most_together if self._ours else 1

    def failing(self, now_s: float) -> bool:
        """Whether this is the tail of a split that is not asked for a while because it has failed."""
        return isinstance(self.breaker, TailBreaker) and self.breaker.failing(now_s)

    @property
    def peers(self) -> tuple[CloudExecutor, ...]:
        """All clouds that are asked: this one."""
        return (self,)

    @property
    def slow_s(self) -> float:
        """From when on a call that is not answered yet has failed."""
        return self.breaker.slow_s

    def state(self, now_s: float) -> State:
        """Where the breaker stands now."""
        return self.breaker.state(now_s)

    def readings(self, now_s: float) -> dict[str, float | None]:
        """What is known of the link and the cloud now, by the names of the metrics; None where nothing is."""
        return {
            "link_rtt_seconds": self.link.rtt_s(now_s),
            "link_bytes_per_second": self.link.bytes_per_s(now_s),
            "link_lost_share": self.lost.share(now_s),
            "cloud_queue_seconds": self.queue.mean(now_s),
        }

    @property
    def unserved(self) -> str | None:
        """Why the cloud is not asked at all, None while it serves what is wanted."""
        return self.agreement.reason.value if self.incompatible else None

    @property
    def encoding(self) -> str:
        """In which form inputs are sent now."""
        return self._packing.chosen if self._ours or self._packing.only else RAW

    def offload_age_s(self, now_s: float) -> float:
        """Seconds since the newest sample of an offload, infinite before the first."""
        return self.link.offload_age_s(now_s)

    def offload_seen(self, now_s: float) -> tuple[float, float] | None:
        """Bytes of the newest offload, and the seconds that such take on the link; None when unknown."""
        return self.link.offload(now_s)

    def small_s(self, now_s: float) -> float | None:
        """Seconds of a call that carries next to nothing, None when unknown."""
        return self.link.small_s(now_s)

    def security(self) -> dict[str, Any]:
        """Whether the cloud is spoken to with TLS and a token, and what is wrong with that now."""
        return {"tls": False, "token": False} if self._secured is None else self._secured.describe()

    def predict_s(self, now_s: float) -> float:
        """Seconds an offload is expected to take; 0 when nothing is known, so that somebody finds out."""
        network = self.link.predict_s(now_s)
        if network is None:
            return 0.0
        return network + (self.server.mean(now_s) or 0.0) + self._packing.encode_s(now_s)

    async def shadow(self, route: Route, sample: Sample, timeout_s: float, kept_for: Reason) -> Prediction:
        """Send what ``wants_shadow`` wants. Raises like ``run``."""
        return await self.run(route, sample, timeout_s)

    async def run(self, route: Route, sample: Sample, timeout_s: float, exact: bool = False) -> Prediction:
        """Answer in the cloud; ``exact``: the input is sent in a form that loses nothing of it.

        Raises ExecutionError; the breaker and the estimates learn from every outcome.
        """
        if sample.trace is None:
            return await self._run(route, sample, timeout_s, exact, None)
        with offload(sample.trace, self.index or 0) as trace:
            return await self._run(route, sample, timeout_s, exact, trace)

    async def _run(
        self, route: Route, sample: Sample, timeout_s: float, exact: bool, trace: Trace | None
    ) -> Prediction:
        began = self._clock()
        exact = exact or sample.exact
        knows = self._ours or self._packing.only
        encoding = self._packing.choose(self.link.bytes_per_s(began), timeout_s, began, exact) if knows else RAW
        if encoding != RAW and not self.breaker.allows(began):
            raise Unreachable("the cloud is not being asked")
        row = Row(await self._request(sample, encoding), began + timeout_s, trace)
        # Exact for a call of its own; as a row of a larger one it is less, and still paid like this.
        size = row.request.ByteSize() + CALL_OVERHEAD_BYTES
        self.request_bytes = size
        if trace is not None:
            trace.put({Attribute.BYTES: size, Attribute.FORM: encoding})
        started = self._clock()
        call = self._claim(size, started)
        self.asked_s = started
        self._metrics.offloaded(size, encoding, self._peer.place)
        # Whoever allows ten seconds must not be needed to find out that the cloud hangs.
        slow_s = self.breaker.slow_s
        overdue = asyncio.get_running_loop().call_later(slow_s, self.breaker.failed, call, started + slow_s)
        try:
            reply = await self._together.ask(row)
            prediction = self._read(route, reply)
        except TimeoutError as error:
            raise self._failed(call, DeadlineExceeded("the cloud took too long"), size, started, None) from error
        except grpc.aio.AioRpcError as error:
            cause = self._cause(error)
            if self._told() is error:
                self.breaker.cancelled(call)  # it has been told by another row of the same call
                self._counted(cause)
                raise cause from error
            self._told = weakref.ref(error)
            failure = self._failed(call, cause, size, started, error)
            left_s = timeout_s - (self._clock() - began)
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                self._packing.refused(encoding)
                if encoding not in (RAW, self._peer.form) and left_s > 0:  # the form is refused, not the input
                    return await self._run(route, sample, left_s, exact, trace)
            raise failure from error
        except (BadAnswer, Incompatible) as error:
            self._counted(error)
            if self._told() is error or isinstance(error, NotTogether):
                self.breaker.cancelled(call)
                raise
            self._told = weakref.ref(error)
            self.agreement.heard(error, self._clock())
            self._blame(call, error, self._clock())
            raise
        except BaseException:  # our caller gave up, or a defect of ours: either way this call says nothing
            self.breaker.cancelled(call)
            raise
        finally:
            overdue.cancel()
        elapsed = self._clock() - started
        self._counted(None)
        self.agreement.holds()
        self.breaker.succeeded(call, elapsed, self._clock())
        self._learn(reply.response, reply.size, elapsed)
        self._metrics.stage("cloud", elapsed)
        return prediction

    async def _request(self, sample: Sample, encoding: str) -> Any:
        """The message with the input in the given form, which may take this device a while to make."""
        inputs: Mapping[str, Any] = sample.tensors
        if encoding != RAW:
            ((name, rows),) = inputs.items()
            began = self._clock()
            if self._packing.encode_s(began, encoding) > THREAD_S:
                packed = await asyncio.to_thread(encode, encoding, rows, self._peer.preprocessing)
            else:
                packed = encode(encoding, rows, self._peer.preprocessing)
            inputs = {name: packed}
            now = self._clock()
            self._packing.encoded(encoding, now - began, now)
        request = make_request(self._peer.model, inputs, request_id=f"{self._name}-{next(self._numbers):x}")
        if encoding != RAW:
            mark(request.inputs[0], encoding)
        request.outputs.add(name=self._peer.output.name)
        add_checksum(request)
        self._metrics.packed(encoding)
        return request

    def _claim(self, size: int, now_s: float) -> Call:
        """Take the tokens and the breaker's leave, or nothing. The policy has looked at both just before."""
        if not self.breaker.allows(now_s):
            raise Unreachable("the cloud is not being asked")
        if not self.purse.pay(self.purse.tariff.offload(size), now_s):
            raise Overloaded("the offload budget is spent")
        call = self.breaker.begin(now_s)
        assert call is not None
        return call

    async def _call(self, rows: Sequence[Row]) -> list[Reply]:
        """One call with the inputs of all rows. Raises AioRpcError, BadAnswer, NotTogether."""
        request = rows[0].request if len(rows) == 1 else merged(rows)
        left_s = max(row.deadline_s for row in rows) - self._clock()
        try:
            more = options([row.trace for row in rows])
            response = await self._stub.ModelInfer(request, timeout=max(0.001, left_s), **more)
        except grpc.aio.AioRpcError as error:
            if len(rows) == 1 or error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            self._most_together = 1
            raise NotTogether("the cloud does not take several inputs in a call") from error
        answers = self._peer.rows(response, request.id, len(rows))
        self._metrics.sent_together(len(rows))
        size = request.ByteSize() + CALL_OVERHEAD_BYTES
        return [Reply(response, answer, size) for answer in answers]

    def _read(self, route: Route, reply: Reply) -> Prediction:
        """Raises Incompatible where another model has answered."""
        self.foreign = self._peer.is_other(reply.response)
        if self.foreign:
            self._metrics.other_model.inc()
            if not self._peer.accept_others:
                raise Incompatible("the cloud runs another model than the bundle names")
        row = reply.row
        label = int(row.argmax())
        return Prediction(route, label, row, float(row[label]), self.index)

    def _cause(self, error: grpc.aio.AioRpcError) -> ExecutionError:
        if self._peer.form is not None and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return Incompatible("the cloud does not take what the head makes")
        cause = from_peer(error.code(), error.details())
        # A server that refuses our certificate just hangs up: only we can know why.
        trouble = self._secured.trouble() if self._secured and isinstance(cause, Unreachable) else None
        return cause if trouble is None else Untrusted(f"our own certificate {trouble}")

    def _failed(
        self, call: Call, error: ExecutionError, size: int, started: float, cause: grpc.aio.AioRpcError | None
    ) -> ExecutionError:
        now = self._clock()
        self.lost.observe(isinstance(error, DeadlineExceeded | Unreachable), now)
        self._counted(error)
        self.agreement.heard(error, now)
        if isinstance(error, Overloaded):
            # The cloud is well, and says when to come back.
            self.breaker.succeeded(call, 0.0, now)
            pushback = None if cause is None else pushback_s(cause)
            self.refused_until_s = now + (PUSHBACK_S if pushback is None else pushback)
            return error
        if isinstance(error, DeadlineExceeded):
            # It took at least this long: without this the estimate would never see a slow link.
            self.link.observe(size, now - started, now)
        elif isinstance(error, Unreachable):
            self.link.forget()
        self._blame(call, error, now)
        return error

    def _blame(self, call: Call, error: ExecutionError, now_s: float) -> None:
        """A cloud that lacks the tail of a split, or has another one, is well: it may be sent the whole input."""
        if self._peer.form is not None and isinstance(error, Incompatible):
            self.breaker.succeeded(call, 0.0, now_s)
        elif isinstance(error, Unreachable):
            self.breaker.gone(call, now_s)
        else:
            self.breaker.failed(call, now_s)

    def _counted(self, error: ExecutionError | None) -> None:
        self.outcome = outcome_of(error)
        self._metrics.called(self.index or 0, error)

    def _learn(self, response: Any, size: int, elapsed: float) -> None:
        parameters = get_parameters(response)
        spent = [parameters.get(name) for name in ("edgemux_queue_ms", "edgemux_compute_ms")]
        spent_s = [value / 1000 for value in spent if isinstance(value, int | float)]
        server_s = min(max(0.0, sum(spent_s)), elapsed)
        now = self._clock()
        ours = bool(spent_s or digest_in(response))
        self._ours = ours and not self.foreign
        if self._secured is not None and ours:
            self._secured.is_ours()
        self.lost.observe(False, now)
        if isinstance(spent[0], int | float):
            self.queue.observe(min(max(0.0, spent_s[0]), elapsed), now)
        self.server.observe(server_s, now)
        self.link.observe(size, elapsed - server_s, now)

    async def ping(self, timeout_s: float) -> None:
        """The smallest call there is: measures the link or, while the breaker is open, waits for the cloud's return.

        A cloud that is gone leaves the link unknown.
        """
        started = self._clock()
        if self.incompatible:
            await self._shake_hands(timeout_s, started)
            return
        # A tight budget is for requests: a ping is made only if one more request would fit beside it.
        tariff = self.purse.tariff
        if not self.purse.affords(tariff.sending(self.request_bytes + CALL_OVERHEAD_BYTES), started):
            return
        self.purse.pay(tariff.sending(CALL_OVERHEAD_BYTES), started)
        missing = self.breaker.state(started) is State.OPEN
        try:
            await self._stub.ServerLive(oip.ServerLiveRequest(), timeout=timeout_s, wait_for_ready=missing)
        except grpc.aio.AioRpcError as error:
            if missing or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self.link.forget()
                return
        now = self._clock()
        if missing:
            self.breaker.heard(now)
        else:
            self.link.observe(CALL_OVERHEAD_BYTES, now - started, now)

    async def _shake_hands(self, timeout_s: float, now_s: float) -> None:
        """Ask a cloud that did not serve what is wanted whether it does by now."""
        connected = self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY
        if not self.agreement.may_ask(connected, now_s):
            return
        try:
            reply = await self._stub.ModelReady(oip.ModelReadyRequest(name=self._peer.model), timeout=timeout_s)
        except grpc.aio.AioRpcError:  # nothing was said: the next tick asks again
            return
        self.agreement.asked(reply is not None and reply.ready, now_s)
