"""A channel with certificates and a token from files: it goes over to new ones when the files change."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from edgemux.multiplexer.errors import Untrusted
from edgemux.wire.certificates import Certificates
from edgemux.wire.events import PeerUntrusted, tell, why
from edgemux.wire.security import AUTHORIZATION, REFRESH_S, TokenFile
from edgemux.wire.status import from_peer
from edgemux.wire.tracing import Headers

# Calls that are under way when the channel is exchanged have so long to end.
GRACE_S = 30.0
# For a connection beside the one in use.
CONNECT_S = 5.0
# The library pauses between look-ups of a name that is not known, longer each time, up to two minutes (measured: 5 s
# after an outage of 10 s). A new channel looks it up at once; no more than one of them is made in so long.
LOOK_UP_S = 1.0
# By the library's version: up to 1.7x, and later ones.
_NO_NAME = ("dns resolution failed", "errors resolving")

_log = logging.getLogger("edgemux.wire")

# Whether the other side is known to be one of our own servers -> a channel to it.
Open = Callable[[bool], grpc.aio.Channel]


class RenewedChannel:
    """As much of ``grpc.aio.Channel`` as a Stub and its owner use. Lives in one event loop.

    A new token gets a new connection too: whoever waits for the other side to change its mind sees one.
    """

    def __init__(
        self,
        make: Open,
        certificates: Certificates | None,
        tokens: TokenFile | None,
        clock: Callable[[], float] = time.monotonic,
        told: bool = False,
    ) -> None:
        """``make`` opens a channel with what ``certificates`` holds at that moment. told: whose it is is no matter."""
        self._make = make
        self._ours = told
        self._becoming: asyncio.Task[None] | None = None
        self._certificates = certificates
        self._tokens = tokens
        self._clock = clock
        self._refreshed_s = float("-inf")
        self._looked_up_s = float("-inf")
        self._with = self._credentials()
        self._channel = make(self._ours)
        self._closing: set[asyncio.Task[None]] = set()
        # Why the latest call found no connection that both sides trust, None when it did.
        self.untrusted: str | None = None

    def unary_unary(self, method: str, **how: Any) -> Callable[..., Any]:
        """A callable as the library's: (request, timeout=...) to an awaitable answer."""
        made: tuple[Any, Any] = (None, None)

        async def ask(request: Any, metadata: Headers = (), **options: Any) -> Any:
            nonlocal made
            channel = self._current()
            if made[0] is not channel:
                made = (channel, channel.unary_unary(method, **how))
            try:
                answer = await made[1](request, metadata=(*self._metadata(), *metadata), **options)
            except grpc.aio.AioRpcError as error:
                self._failed(error)
                raise
            self.untrusted = None
            return answer

        return ask

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state of the connection; a renewed one begins as IDLE."""
        return self._current().get_state(try_to_connect=try_to_connect)

    def is_ours(self) -> None:
        """The other side has said that it is one of our own servers: looked at more often, by a connection of its own.

        That one is made beside the old, which is used until then, and on where it cannot be made.
        """
        if not self._ours and self._becoming is None:
            self._becoming = asyncio.ensure_future(self._become_ours())

    async def _become_ours(self) -> None:
        old, beside, taken = self._channel, self._make(True), False
        try:
            await asyncio.wait_for(beside.channel_ready(), CONNECT_S)
            if self._channel is old:  # else it was exchanged meanwhile, and the next answer tells again
                self._ours = taken = True
                self._go_over(beside)
        except TimeoutError:
            pass
        finally:
            self._becoming = None
            if not taken:
                await beside.close()

    async def close(self) -> None:
        """Close it, and those that it was before."""
        if self._becoming is not None:
            self._becoming.cancel()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close()

    def trouble(self) -> str | None:
        """What is wrong with the dates of the own certificate, None when nothing is or there is none."""
        if self._certificates is None:
            return None
        return self._certificates.current().trouble(datetime.datetime.now(datetime.UTC))

    def describe(self) -> dict[str, Any]:
        """For a page: whether it is encrypted, until when the own certificate holds, and what is wrong now."""
        pair = None if self._certificates is None else self._certificates.current()
        until = None if pair is None or pair.until is None else pair.until.isoformat()
        trouble = self.trouble()
        return {
            "tls": pair is not None,
            "token": self._tokens is not None,
            "own_certificate_until": until,
            "trouble": f"the own certificate {trouble}" if trouble else self.untrusted,
        }

    def _credentials(self) -> tuple[Any, Any]:
        pair = None if self._certificates is None else self._certificates.current()
        return pair, None if self._tokens is None else self._tokens.current()

    def _current(self) -> grpc.aio.Channel:
        now = self._credentials()
        if now[0] is not self._with[0] or now[1] is not self._with[1]:
            self._with = now
            self._exchange()
        return self._channel

    def _exchange(self) -> None:
        self._go_over(self._make(self._ours))

    def _go_over(self, channel: grpc.aio.Channel) -> None:
        old, self._channel = self._channel, channel
        task = asyncio.ensure_future(old.close(GRACE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._with[1] is None else ((AUTHORIZATION, f"Bearer {self._with[1][0]}"),)

    def _failed(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            # However many calls are refused, one look: a file that has not changed will not because we look often.
            if self._tokens is not None and self._clock() - self._refreshed_s >= REFRESH_S:
                self._refreshed_s = self._clock()
                self._tokens.reload()
            return
        if any(text in (error.details() or "").lower() for text in _NO_NAME):
            if self._clock() - self._looked_up_s >= LOOK_UP_S:
                self._looked_up_s = self._clock()
                self._exchange()
            return
        cause = from_peer(error.code(), error.details())
        if not isinstance(cause, Untrusted):
            return
        if str(cause) != self.untrusted:
            tell(_log, PeerUntrusted(why=why(cause)))
        self.untrusted = str(cause)
