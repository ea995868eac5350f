"""The address at which a server takes orders: load a model, unload one. Off by default, and never for strangers."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.channel import bind, server_options
from edgemux.wire.security import Guard, ServerTls, TokenCheck, is_loopback
from edgemux.wire.service import register_admin

MAX_PORT = 65535
MAX_ORDER_BYTES = 64 * 2**10
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where orders are taken; a ``grpc_port`` of None: nowhere, of 0: at a free one.

    TLS is that of the server's other ports. token_file: its own; None for that of the other ports.
    """

    grpc_port: int | None = None
    host: str = "127.0.0.1"
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError("host must be a name or an address")
        if self.grpc_port is not None and not 0 <= self.grpc_port <= MAX_PORT:
            raise ValueError(f"grpc_port must be between 0 and {MAX_PORT}")


class AdminServer:
    """Holds the port from the start; answers from ``start``."""

    def __init__(self, admin: Admin, tls: ServerTls, token_file: Path | None) -> None:
        """Raises ConfigError for a port in use, and for an address that strangers reach without TLS and a token."""
        token_file = admin.token_file or token_file
        known = tls.cert is not None and (token_file is not None or tls.client_ca is not None)
        if not is_loopback(admin.host) and not known:
            raise ConfigError(f"admin.host: {admin.host} can be reached by others: give TLS and a token")
        guard = Guard(tls, token_file)
        family = socket.AF_INET6 if ":" in admin.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((admin.host, admin.grpc_port))
            except OSError as error:
                reason = f"cannot listen on {admin.host} ({error.strerror})"
                raise ConfigError(f"admin.grpc_port {admin.grpc_port}: {reason}") from error
        interceptors = () if guard.gate.open else (TokenCheck(guard.gate),)
        self._server = grpc.aio.server(options=server_options(MAX_ORDER_BYTES), interceptors=interceptors)
        self.port = bind(self._server, admin.host, admin.grpc_port or 0, guard.credentials())
        self.address = f"{admin.host}:{self.port}"

    async def start(self, servicer: Any) -> None:
        """Take orders for ``servicer``."""
        register_admin(self._server, servicer)
        await self._server.start()

    async def stop(self) -> None:
        """Take no more orders."""
        await self._server.stop(0)
