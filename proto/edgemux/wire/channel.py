"""Every gRPC option of both sides, in one place, because they only work as pairs.

A client that pings more often than its server allows is disconnected ("too many pings"), so the keepalive time of
the client and the minimum ping interval of the server are derived from one constant. Reconnect back-off is far
below the library's default: measured, it brings the first answer after an outage from 6-20 s down to under 1 s.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import Certificates, Files, read_file
from edgemux.wire.events import Name, Plaintext, tell
from edgemux.wire.renewed import RenewedChannel
from edgemux.wire.security import ClientTls, TokenFile, is_loopback

Options = list[tuple[str, int]]

_log = logging.getLogger("edgemux.wire")
PLAINTEXT = ClientTls()

MAX_MESSAGE_BYTES = 64 * 2**20
# What a server takes unless its settings say otherwise; a message in memory is several times its size on the wire.
MAX_REQUEST_BYTES = 4 * 2**20
MAX_METADATA_BYTES = 16 * 2**10
KEEPALIVE_S = 10
KEEPALIVE_TIMEOUT_S = 3
# Other servers, if nobody has set them up, hang up on whoever pings more often than every five minutes, or with no call
# under way (GOAWAY, "too_many_pings"); a little more, since clocks differ.
FOREIGN_KEEPALIVE_S = 310


def client_options(max_answer_bytes: int = MAX_MESSAGE_BYTES, keepalive_s: float = KEEPALIVE_S) -> Options:
    """Options of a channel to one of our servers, or to one that allows a ping every ``keepalive_s`` seconds.

    With FOREIGN_KEEPALIVE_S or more only while a call is under way. That a peer's host is gone is found all the same
    when something is sent to it: after KEEPALIVE_TIMEOUT_S without an acknowledgement.
    """
    return [
        ("grpc.keepalive_time_ms", round(keepalive_s * 1000)),
        # The library makes the first a matter of unacknowledged TCP data alone; without the second, a peer whose
        # kernel still acknowledges (hung, or behind a relay that lost it) is taken to be alive for 60 s: measured.
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", int(keepalive_s < FOREIGN_KEEPALIVE_S)),
        # Without this the library stops pinging a quiet connection and needs 25 s to see it dead.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Retries are the caller's decision: the multiplexer has a better second choice than the same server.
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", max_answer_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]


def server_options(
    max_message_bytes: int = MAX_REQUEST_BYTES, max_streams: int = 1024, shared_port: bool = False
) -> Options:
    """Options of a server: strict about ports and sizes, lenient about pings."""
    return [
        # The default shares a taken port silently between two servers.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", 3000),
        ("grpc.max_connection_age_ms", 15 * 60 * 1000),
        ("grpc.max_connection_age_grace_ms", 30 * 1000),
        ("grpc.max_concurrent_streams", max_streams),
        # Calls that have come and that Python, which needs 0.2-0.5 ms for each, has not taken in yet. Beyond the first
        # number some, beyond the second all are answered CANCELLED by the library itself. With its 1,000 and 3,000 a
        # flood of calls that are given up at once kept others waiting for 1.6 s, with these for 0.6 s.
        ("grpc.server.max_pending_requests", 512),
        ("grpc.server.max_pending_requests_hard_limit", 1024),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]


def open_channel(address: str, max_answer_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel to ``HOST:PORT``; nothing is connected until the first call. Plaintext."""
    return grpc.aio.insecure_channel(address, options=client_options(max_answer_bytes))


def open_renewed_channel(
    address: str,
    max_answer_bytes: int = MAX_MESSAGE_BYTES,
    tls: ClientTls = PLAINTEXT,
    token_file: Path | None = None,
    section: str = "cloud",
    clock: Callable[[], float] = time.monotonic,
    keepalive_s: float | None = None,
) -> RenewedChannel:
    """A channel to ``HOST:PORT``; nothing is connected until the first call. ``section`` is what errors call it.

    keepalive_s: None for FOREIGN_KEEPALIVE_S until ``RenewedChannel.is_ours`` is called, and KEEPALIVE_S from then on.
    With ``tls`` it is never plaintext; without it, beyond this machine, the log says so. Raises ConfigError when a file
    cannot be used, or a token would be readable.
    """
    certificates, tokens = client_files(address, tls, token_file, section, clock)
    if certificates is None and not is_loopback(address.rpartition(":")[0]):
        tell(_log, Plaintext(setting=Name(f"{section}.address")))

    def make(ours: bool) -> grpc.aio.Channel:
        seconds = keepalive_s or (KEEPALIVE_S if ours else FOREIGN_KEEPALIVE_S)
        options = [*client_options(max_answer_bytes, seconds), *_name_options(tls)]
        if certificates is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials(certificates), options=options)

    return RenewedChannel(make, certificates, tokens, clock, told=keepalive_s is not None)


def open_blocking_channel(
    address: str, tls: ClientTls, token_file: Path | None, section: str
) -> tuple[grpc.Channel, TokenFile | None]:
    """The same for a client without an event loop, for its lifetime, and the tokens to send. Raises ConfigError."""
    options = [*client_options(), *_name_options(tls)]
    certificates, tokens = client_files(address, tls, token_file, section)
    if certificates is None:
        return grpc.insecure_channel(address, options=options), tokens
    return grpc.secure_channel(address, credentials(certificates), options=options), tokens


def client_files(
    address: str,
    tls: ClientTls,
    token_file: Path | None,
    section: str,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Certificates | None, TokenFile | None]:
    """The files of a client. Raises ConfigError when one cannot be used, or a token would be sent for all to read."""
    if token_file is not None and not tls.on and not is_loopback(address.rpartition(":")[0]):
        raise ConfigError(f"{section}.token_file: a token is sent only over TLS, or to this machine; see {section}.tls")
    certificates = Certificates(Files(tls.cert, tls.key, tls.ca), f"{section}.tls", clock) if tls.on else None
    return certificates, None if token_file is None else TokenFile(token_file, f"{section}.token_file", clock)


def credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """gRPC's, of the pair in use; without an authority of its own those whom the system trusts vouch for the server."""
    pair = certificates.current()
    return grpc.ssl_channel_credentials(pair.ca or _system_roots(), pair.key, pair.cert)


def _system_roots() -> bytes | None:
    """The system's file of authorities, None where there is none: the library then takes its own."""
    path = ssl.get_default_verify_paths().cafile
    return None if path is None else read_file(Path(path), "the system's certificates")


def _name_options(tls: ClientTls) -> list[tuple[str, str]]:
    return [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]


def bind(server: Any, host: str, port: int, secure: grpc.ServerCredentials | None = None) -> int:
    """Bind ``server`` (grpc.aio) and return the port, a free one for 0; plaintext without ``secure``.

    Raises ConfigError naming a taken port.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = int(server.add_insecure_port(address) if secure is None else server.add_secure_port(address, secure))
    except RuntimeError as error:
        raise ConfigError(f"--grpc-port {port}: cannot listen on {address}, is the port in use?") from error
    if bound == 0:
        raise ConfigError(f"--grpc-port {port}: cannot listen on {address}, is the port in use?")
    return bound
