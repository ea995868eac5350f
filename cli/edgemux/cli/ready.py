"""`edgemux ready`: whether a server answers requests, for health checks of containers and for scripts."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Annotated

import typer

from edgemux.cli.options import TlsCertOption, TlsKeyOption, check_address
from edgemux.multiplexer.errors import BadAnswer, ConfigError, Unreachable

_PATH = "/v2/health/ready"
_LONGEST_ANSWER = 4096


def ready(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server's HTTP port.")],
    timeout: Annotated[float, typer.Option(min=0.001, help="How long to wait for each step, in s.")] = 3.0,
    tls: Annotated[bool, typer.Option("--tls", help="TLS, with whom the system trusts.")] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", metavar="PEM", help="TLS, with the authority that vouches for the server."),
    ] = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    server_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the certificate says, where that is not HOST.")
    ] = None,
) -> None:
    """Exit 0 when the agent or cloud server at this address is ready, 1 when it is not."""
    check_address("ready", address)
    context = None
    if tls or tls_ca is not None or tls_cert is not None:
        context = context_of(tls_ca, tls_cert, tls_key)
    elif server_name is not None or tls_key is not None:
        raise ConfigError("ready: --server-name and --tls-key are for TLS; give --tls or --tls-ca too")
    if not is_ready(address, timeout, context, server_name):
        raise Unreachable(f"{address} is there, but not ready")
    typer.echo(f"{address} is ready")


def context_of(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """How to speak TLS to it. Raises ConfigError for files that are no use."""
    if (cert is None) != (key is None):
        raise ConfigError("ready: --tls-cert and --tls-key go together")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            # An empty password: a key that has one is refused, instead of asked about on the terminal.
            context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError("ready: --tls-ca, --tls-cert or --tls-key cannot be used") from error
    return context


def is_ready(address: str, timeout_s: float, context: ssl.SSLContext | None, server_name: str | None = None) -> bool:
    """What its health page says. Raises Unreachable when there is none, BadAnswer for a page that is something else."""
    # http.client and not urllib: a proxy configured for the machine must not come between.
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        plain = socket.create_connection((host, int(port)), timeout_s)
        connection.sock = plain
        if context is not None:
            connection.sock = context.wrap_socket(plain, server_hostname=server_name or host)
        connection.request("GET", _PATH, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(_LONGEST_ANSWER)
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(f"{address}: {error.verify_message}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{address} does not answer") from error
    finally:
        connection.close()
    try:
        said = json.loads(body)["ready"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadAnswer(f"{address} answers {answer.status}, but not as an edgemux server does") from error
    return answer.status == http.HTTPStatus.OK and said is True
