"""Every gRPC option of both sides, in one place, because they only work as pairs.

A client that pings more often than its server allows is disconnected ("too many pings"), so the keepalive time of
the client and the minimum ping interval of the server are derived from one constant. Reconnect back-off is far
below the library's default: measured, it brings the first answer after an outage from 6-20 s down to under 1 s.
"""

from __future__ import annotations

import os
from typing import Any

# The C core writes its own lines to stderr about things that reach us as statuses and exceptions anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

from edgemux.multiplexer.errors import ConfigError

Options = list[tuple[str, int]]

MAX_MESSAGE_BYTES = 64 * 2**20
# What a server takes unless its settings say otherwise; a message in memory is several times its size on the wire.
MAX_REQUEST_BYTES = 4 * 2**20
MAX_METADATA_BYTES = 16 * 2**10
KEEPALIVE_S = 10
KEEPALIVE_TIMEOUT_S = 3


def client_options(max_answer_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a channel to one of our servers, or to one that allows a ping every KEEPALIVE_S seconds."""
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        # The library makes the first a matter of unacknowledged TCP data alone; without the second, a peer whose
        # kernel still acknowledges (hung, or behind a relay that lost it) is taken to be alive for 60 s: measured.
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
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


def server_options(max_message_bytes: int = MAX_REQUEST_BYTES, max_streams: int = 1024) -> Options:
    """Options of a server: strict about ports and sizes, lenient about pings."""
    return [
        # The default shares a taken port silently between two servers.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", 3000),
        ("grpc.max_connection_age_ms", 15 * 60 * 1000),
        ("grpc.max_connection_age_grace_ms", 30 * 1000),
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]


def open_channel(address: str, max_answer_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel to ``HOST:PORT``; nothing is connected until the first call. Plaintext."""
    return grpc.aio.insecure_channel(address, options=client_options(max_answer_bytes))


def bind(server: Any, host: str, port: int) -> int:
    """Bind ``server`` (grpc.aio) and return the port, a free one for 0. Raises ConfigError naming a taken port."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = int(server.add_insecure_port(address))
    except RuntimeError as error:
        raise ConfigError(f"--grpc-port {port}: cannot listen on {address}, is the port in use?") from error
    if bound == 0:
        raise ConfigError(f"--grpc-port {port}: cannot listen on {address}, is the port in use?")
    return bound
