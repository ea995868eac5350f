"""Reaching a cloud step by step, as an agent would: name, TCP, TLS, gRPC, model, a real call. Each within a time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from edgemux.edge.doctor.link import CallSeen, LinkSeen, proxy_for
from edgemux.edge.doctor.probes import within
from edgemux.edge.peer import Peer, digest_in
from edgemux.multiplexer.errors import ConfigError, DeadlineExceeded, EdgemuxError, ExecutionError, Incompatible
from edgemux.multiplexer.onnx_model import Array
from edgemux.wire import certificates
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.certificates import Certificates
from edgemux.wire.channel import client_files, open_renewed_channel
from edgemux.wire.codec import add_checksum, get_parameters, make_request
from edgemux.wire.security import ClientTls
from edgemux.wire.service import Stub
from edgemux.wire.status import from_peer

# A link over a satellite or a bad radio cell takes a second or two.
STEP_TIMEOUT_S = 10.0
ROUND_TRIPS = 5
MAX_ANSWER_BYTES = 2**20
# Servers take 4 MiB; the larger of two calls stays well below.
MAX_CALL_BYTES = 2 * 2**20


class Target(msgspec.Struct, frozen=True):
    """A cloud: ``address`` HOST:PORT, how it is spoken to, and what it is asked, one input of the rows of ``inputs``.

    ``peer`` None: there is no bundle, so no model is asked for.
    """

    address: str
    tls: ClientTls
    token_file: Path | None
    peer: Peer | None
    inputs: dict[str, Array]


def look_at_cloud(target: Target, timeout_s: float = STEP_TIMEOUT_S) -> LinkSeen:
    """As far as it can be reached; ``timeout_s`` for each step. Raises nothing that a cloud could cause."""
    host, _, port = target.address.rpartition(":")
    host = host.strip("[]")
    model = "" if target.peer is None else target.peer.model
    seen = LinkSeen(target.address, tls=target.tls.on, model=model, proxy=proxy_for(host, os.environ))
    try:
        found = within(timeout_s, lambda: socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM))
    except TimeoutError:
        return _ended(seen, "resolve", f"the name server does not answer within {timeout_s:g} s")
    except (OSError, UnicodeError):
        return _ended(seen, "resolve", "there is no such name")
    addresses = tuple(dict.fromkeys(str(each[4][0]) for each in found))
    seen = msgspec.structs.replace(seen, addresses=addresses)
    began = time.monotonic()
    try:
        connection = within(timeout_s + 1.0, lambda: socket.create_connection((host, int(port)), timeout_s))
    except TimeoutError:
        return _ended(seen, "connect", f"nothing answers within {timeout_s:g} s")
    except OSError as error:
        return _ended(seen, "connect", f"it cannot be connected to ({error.strerror or 'no route'})")
    seen = msgspec.structs.replace(seen, connect_s=time.monotonic() - began)
    with connection:
        if target.tls.on:
            seen = _met(seen, target, connection, host, timeout_s)
    return seen if seen.tls_error else asyncio.run(_asked(seen, target, timeout_s))


def _ended(seen: LinkSeen, step: str, error: str, cause: ExecutionError | None = None) -> LinkSeen:
    return msgspec.structs.replace(seen, step=step, error=error, cause=cause)


def _met(seen: LinkSeen, target: Target, connection: socket.socket, host: str, timeout_s: float) -> LinkSeen:
    """After the TLS handshake, with the end of the cloud's certificate, or with what is wrong with it."""
    try:
        files, _ = client_files(target.address, target.tls, None, "cloud")
        assert files is not None
        context = _context(files)
        connection.settimeout(timeout_s)
        with context.wrap_socket(connection, server_hostname=target.tls.server_name or host) as secured:
            ends = ssl.cert_time_to_seconds(str((secured.getpeercert() or {}).get("notAfter", "")))
    except ssl.SSLCertVerificationError as error:
        return msgspec.structs.replace(seen, tls_error=f"the cloud's certificate: {error.verify_message}")
    except ssl.SSLError as error:
        plain = error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
        what = "the cloud does not speak TLS there" if plain else "the TLS handshake failed"
        return msgspec.structs.replace(seen, tls_error=what)
    except (ConfigError, OSError) as error:
        what = str(error) if isinstance(error, ConfigError) else "the TLS handshake was broken off or took too long"
        return msgspec.structs.replace(seen, tls_error=what)
    except ValueError:  # a date that cannot be read
        return seen
    return msgspec.structs.replace(seen, peer_until=datetime.datetime.fromtimestamp(ends, datetime.UTC))


def _context(files: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pair = files.current()
    certificates.load(context, pair, "cloud.tls")
    if pair.ca is None:
        context.load_default_certs()
    context.set_alpn_protocols(["h2"])
    return context


async def _asked(seen: LinkSeen, target: Target, timeout_s: float) -> LinkSeen:
    """After round trips, the model's readiness, and real calls."""
    channel = open_renewed_channel(target.address, MAX_ANSWER_BYTES, target.tls, target.token_file)
    try:
        stub, step = Stub(channel), "gRPC"
        taken = [await _timed(stub.ServerLive(oip.ServerLiveRequest(), timeout=timeout_s)) for _ in range(ROUND_TRIPS)]
        # The first one made the connection.
        seen = msgspec.structs.replace(seen, rtt_s=statistics.median(each for each, _ in taken[1:]))
        if target.peer is None:
            return seen
        step = "model"
        ready = await stub.ModelReady(oip.ModelReadyRequest(name=target.peer.model), timeout=timeout_s)
        if not ready.ready:
            raise Incompatible(f"the cloud has {target.peer.model}, and it is not ready")
        return await _called(seen, target, target.peer, stub, timeout_s)
    except grpc.aio.AioRpcError as error:
        return _ended(seen, step, "", from_peer(error.code(), error.details()))
    except ExecutionError as error:
        return _ended(seen, step, "", error)
    except TimeoutError:
        return _ended(seen, step, "", DeadlineExceeded("the cloud took too long"))
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(channel.close(), 1.0)


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = await call
    return time.perf_counter() - began, answer


async def _called(seen: LinkSeen, target: Target, peer: Peer, stub: Any, timeout_s: float) -> LinkSeen:
    """After one input, and after as many as there are. Raises what a call raises, and ExecutionError."""
    small, response = await _call(target, peer, stub, 1, timeout_s)
    digest = digest_in(response)
    told = "unknown" if not digest else "right" if digest == peer.digest else "other"
    seen = msgspec.structs.replace(seen, digest=told, calls=(small,))
    rows = min(len(next(iter(target.inputs.values()))), MAX_CALL_BYTES // max(1, small.bytes))
    if digest and rows > 1:
        # How quick the link is would be good to know, and is nothing to fail for.
        with contextlib.suppress(grpc.aio.AioRpcError, EdgemuxError, TimeoutError):
            large, _ = await _call(target, peer, stub, rows, timeout_s)
            seen = msgspec.structs.replace(seen, calls=(small, large))
    return seen


async def _call(target: Target, peer: Peer, stub: Any, rows: int, timeout_s: float) -> tuple[CallSeen, Any]:
    request = make_request(
        peer.model, {name: array[:rows] for name, array in target.inputs.items()}, request_id="doctor"
    )
    request.outputs.add(name=peer.output.name)
    add_checksum(request)
    seconds, response = await _timed(stub.ModelInfer(request, timeout=timeout_s))
    peer.rows(response, "doctor", rows)
    said = get_parameters(response)
    spent = [said.get(name) for name in ("edgemux_queue_ms", "edgemux_compute_ms")]
    server_s = sum(each / 1e3 for each in spent if isinstance(each, int | float))
    return CallSeen(rows, request.ByteSize(), seconds, min(max(0.0, server_s), seconds)), response
