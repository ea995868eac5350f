"""Options that commands share, and those of the cloud's engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemux.multiplexer.errors import ConfigError


class Engine(StrEnum):
    """What runs the cloud server."""

    PROCESS = "process"
    RAY = "ray"


BundleOption = Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="The bundle to serve.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A TOML file; options win.")]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
GrpcPortOption = Annotated[int | None, typer.Option("--grpc-port", help="gRPC port, 0 for a free one.")]
HttpPortOption = Annotated[int | None, typer.Option("--http-port", help="HTTP port, 0 for a free one.")]
MetricsPortOption = Annotated[int | None, typer.Option("--metrics-port", help="Metrics port, 0 for a free one.")]
TlsCertOption = Annotated[Path | None, typer.Option("--tls-cert", metavar="PEM", help="TLS: the own certificate.")]
TlsKeyOption = Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="TLS: the certificate's key.")]
ClientCaOption = Annotated[
    Path | None,
    typer.Option("--tls-client-ca", metavar="PEM", help="TLS: clients need a certificate of this authority."),
]
TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="Bearer tokens, one a line; clients need one.")
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Listen to others without TLS and tokens: anybody may read and ask.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

EngineOption = Annotated[Engine, typer.Option("--engine", help="This process, or replicas on Ray Serve.")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Ray: a running cluster, auto or HOST:PORT.")]
ReplicasOption = Annotated[int | None, typer.Option("--replicas", help="Ray: so many, whatever the load.")]
MinReplicasOption = Annotated[int | None, typer.Option("--min-replicas", help="Ray: never fewer.")]
MaxReplicasOption = Annotated[int | None, typer.Option("--max-replicas", help="Ray: as many as the load needs.")]
TargetOption = Annotated[float | None, typer.Option("--target-ongoing", help="Ray: requests a replica is for.")]
HaproxyOption = Annotated[bool | None, typer.Option("--haproxy/--no-haproxy", help="Ray: HAProxy in front.")]


def check_address(option: str, address: str) -> None:
    """Raises ConfigError, naming the option, for what is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{option}: {address!r} is not HOST:PORT")


def listening(
    bundle: Path | None, host: str | None, grpc_port: int | None, http_port: int | None, metrics_port: int | None
) -> dict[str, Any]:
    return {
        "bundle": None if bundle is None else str(bundle),
        "listen.host": host,
        "listen.grpc_port": grpc_port,
        "listen.http_port": http_port,
        "listen.metrics_port": metrics_port,
    }


def protected(
    cert: Path | None, key: Path | None, client_ca: Path | None, token_file: Path | None, insecure: bool
) -> dict[str, Any]:
    files = {
        "listen.tls.cert": cert,
        "listen.tls.key": key,
        "listen.tls.client_ca": client_ca,
        "listen.token_file": token_file,
    }
    given: dict[str, Any] = {name: None if path is None else str(path) for name, path in files.items()}
    return given | {"listen.insecure": insecure or None}
