"""Who may ask, and over what: settings of TLS and tokens for both sides, and the checks on every request.

A server listens beyond this machine only with TLS and a way to know its clients, or when told that it may do without.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import ipaddress
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
from prometheus_client import CollectorRegistry, Gauge

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import Certificates, Files, Pair, Reread, read_file
from edgemux.wire.events import Name, TokensRefused, TokensRenewed, tell, why

AUTHORIZATION = "authorization"
# The tokens of RFC 6750; 16 characters of 64 kinds are 96 bits.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}=*")
_BEARER = re.compile(r"[Bb]earer +(\S+)")
_HEALTH = "/grpc.health.v1.Health/"
NO_TOKEN = "authorization: a valid bearer token is needed"
# However often a server refuses the token, the file is looked at once in so long.
REFRESH_S = 5.0

_log = logging.getLogger("edgemux.wire")


class ServerTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files. ``cert`` and ``key``: the server's; ``client_ca``: clients must show a certificate of it."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca needs cert and key")


class ClientTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files. ``ca``: who vouches for the server, None for whom the system trusts; ``cert`` and ``key``: the
    client's own. ``enabled`` None: whether any file is given. ``server_name``: what the server's certificate must
    say, None for the host that is asked.
    """

    enabled: bool | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        if self.enabled is False and (self.ca or self.cert or self.server_name):
            raise ValueError("enabled is false, and yet files or a server_name are given")

    @property
    def on(self) -> bool:
        """Whether to speak TLS; there is no way back to plaintext from it."""
        return bool(self.enabled or self.ca or self.cert or self.server_name)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine alone: "localhost", or an address, IPv6 with brackets or not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, encrypted: bool, authenticated: bool, insecure: bool) -> None:
    """Raises ConfigError, one line that says what to do, when strangers could read or ask."""
    if insecure or is_loopback(host) or (encrypted and authenticated):
        return
    lacking = " and ".join(
        what
        for what, there in (
            ("TLS (listen.tls.cert, listen.tls.key)", encrypted),
            ("a token (listen.token_file) or listen.tls.client_ca", authenticated),
        )
        if not there
    )
    raise ConfigError(f"listen.host: {host} can be reached by others: give {lacking}, or --insecure to do without")


def read_tokens(content: bytes, name: str) -> tuple[str, ...]:
    """The tokens in a file, one a line; empty lines and lines that begin with # are none. Raises ConfigError."""
    lines = (line.strip() for line in content.decode("ascii", "replace").splitlines())
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ConfigError(f"{name}: holds no token")
    for number, token in enumerate(tokens, 1):
        if not _TOKEN.fullmatch(token):
            raise ConfigError(f"{name}: token {number} must be 16 or more of A-Z a-z 0-9 . _ ~ + / -")
    return tokens


class TokenFile(Reread[tuple[str, ...]]):
    """The tokens of a file, read again when it changes; what cannot be used leaves those from before. Thread-safe."""

    def __init__(self, path: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``name`` is the setting's. Raises ConfigError when there is no token to begin with."""
        super().__init__(clock)
        self._path = path
        self._name = name
        self._content = read_file(path, name) or b""
        self._value = read_tokens(self._content, name)

    def _look(self) -> None:
        content = b""
        try:
            content = read_file(self._path, self._name) or b""
            if content == self._content:
                return
            self._value = read_tokens(content, self._name)
            tell(_log, TokensRenewed(setting=Name(self._name)))
        except ConfigError as error:
            if content != self._content:
                tell(_log, TokensRefused(why=why(error)))
        self._content = content


class Gate:
    """Who may ask a server: whoever brings one of the tokens, or anybody where there are none. Thread-safe."""

    def __init__(self, tokens: TokenFile | None = None) -> None:
        self._tokens = tokens
        self._known: tuple[tuple[str, ...], tuple[bytes, ...]] = ((), ())

    @property
    def open(self) -> bool:
        """Whether nobody needs a token."""
        return self._tokens is None

    def allows(self, authorization: str | None) -> bool:
        """Whether a request with this header may pass. Takes as long for nearly right tokens as for wrong ones."""
        if self._tokens is None:
            return True
        found = _BEARER.fullmatch(authorization or "")
        if found is None:
            return False
        tokens = self._tokens.current()
        if self._known[0] is not tokens:
            self._known = (tokens, tuple(_hashed(token) for token in tokens))
        given = _hashed(found[1])
        # All of them, always: how many were compared must not tell which one it was.
        return sum(hmac.compare_digest(given, known) for known in self._known[1]) > 0


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets only calls with a token in; health checks need none."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._deny = grpc.unary_unary_rpc_method_handler(_deny)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The handler of a call, or one that says UNAUTHENTICATED."""
        if details.method.startswith(_HEALTH) or self._gate.allows(_header(details.invocation_metadata)):
            return await continuation(details)
        return self._deny


async def _deny(_: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)


def _header(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    for key, value in metadata or ():
        if key == AUTHORIZATION:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None


class Guard:
    """What protects a server's ports: its certificates, None for plaintext, and the gate that its requests pass."""

    def __init__(self, tls: ServerTls, token_file: Path | None) -> None:
        """Raises ConfigError when a file cannot be used."""
        files = Files(tls.cert, tls.key, tls.client_ca)
        self.certificates = Certificates(files, "listen.tls") if tls.cert is not None else None
        self.tokens = TokenFile(token_file, "listen.token_file") if token_file is not None else None
        self.gate = Gate(self.tokens)

    def reload(self) -> None:
        """Look at all files now."""
        if self.certificates is not None:
            self.certificates.reload()
        if self.tokens is not None:
            self.tokens.reload()

    def describe(self) -> dict[str, Any]:
        """For a page: what is asked of clients, until when the own certificate holds, and what is wrong with it now."""
        pair = None if self.certificates is None else self.certificates.current()
        if pair is None or pair.until is None:
            return {"tls": False, "token": not self.gate.open}
        return {
            "tls": True,
            "client_certificates": pair.ca is not None,
            "token": not self.gate.open,
            "own_certificate_until": pair.until.isoformat(),
            "trouble": pair.trouble(datetime.datetime.now(datetime.UTC)),
        }

    def export(self, registry: CollectorRegistry) -> None:
        """Where there is a certificate, a gauge of when it ends: for an alarm some days before."""
        certificates = self.certificates
        if certificates is not None:

            def until_s() -> float:
                until = certificates.current().until
                return math.nan if until is None else until.timestamp()

            text = "When the own certificate ends, in seconds since 1970."
            Gauge("edgemux_certificate_until_seconds", text, registry=registry).set_function(until_s)

    def credentials(self) -> grpc.ServerCredentials | None:
        """gRPC's, which take the current pair at every handshake; None for plaintext."""
        if self.certificates is None:
            return None
        certificates = self.certificates
        first = certificates.current()
        handed = first

        def changed() -> Any:
            nonlocal handed
            pair = certificates.current()
            if pair is handed:
                return None
            handed = pair
            return _configuration(pair)

        return grpc.dynamic_ssl_server_credentials(_configuration(first), changed, first.ca is not None)


def _configuration(pair: Pair) -> Any:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.cert)], root_certificates=pair.ca)
