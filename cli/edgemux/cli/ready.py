"""`edgemux ready`: whether a server answers requests, for health checks of containers and for scripts."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path

from edgemux.multiplexer.errors import BadAnswer, ConfigError, Unreachable

_PATH = "/v2/health/ready"
_LONGEST_ANSWER = 4096


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
    except ssl.SSLError as error:
        raise Unreachable(f"{address} does not speak TLS, or not with us") from error
    except TimeoutError as error:
        raise Unreachable(f"{address} does not answer within {timeout_s:g} s") from error
    except (ConnectionResetError, http.client.HTTPException) as error:
        hint = "is it an HTTP port, and without TLS?" if context is None else "is it an HTTP port?"
        raise Unreachable(f"{address} gives no HTTP answer; {hint}") from error
    except OSError as error:
        raise Unreachable(f"{address} does not answer") from error
    finally:
        connection.close()
    try:
        said = json.loads(body)["ready"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadAnswer(f"{address} answers {answer.status}, but not as an edgemux server does") from error
    return answer.status == http.HTTPStatus.OK and said is True
