"""The commands that visit: a machine, `edgemux doctor`; a running server, `edgemux ready` and `edgemux traffic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemux.cli.extras import extra
from edgemux.cli.options import (
    BundleOption,
    ConfigOption,
    JsonOption,
    OwnTokenOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TlsOption,
    check_address,
)
from edgemux.multiplexer.errors import ConfigError, Unreachable


def doctor(
    bundle: BundleOption = None,
    config: ConfigOption = None,
    cloud: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="The cloud, or several, to be reached.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what this device has and can do for an agent, what is wrong, and how to fix it.

    With a cloud server's file: whether that could serve here.
    """
    from edgemux.cli.doctor import tell

    overrides = {
        "bundle": None if bundle is None else str(bundle),
        "cloud.address": None if cloud is None else cloud.split(",")[0],
        "cloud.addresses": None if cloud is None else cloud.split(","),
    }
    if not tell(config, overrides, json):
        raise typer.Exit(1)


def ready(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server's HTTP port.")],
    timeout: Annotated[float, typer.Option(min=0.001, help="How long to wait for each step, in s.")] = 3.0,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    server_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the certificate says, where that is not HOST.")
    ] = None,
) -> None:
    """Exit 0 when the agent or cloud server at this address is ready, 1 when it is not."""
    from edgemux.cli.ready import context_of, is_ready

    check_address("ready", address)
    context = None
    if tls or tls_ca is not None or tls_cert is not None:
        context = context_of(tls_ca, tls_cert, tls_key)
    elif server_name is not None or tls_key is not None:
        raise ConfigError("ready: --server-name and --tls-key are for TLS; give --tls or --tls-ca too")
    if not is_ready(address, timeout, context, server_name):
        raise Unreachable(f"{address} is there, but not ready")
    typer.echo(f"{address} is ready")


def traffic(
    to: Annotated[str, typer.Option(metavar="HOST:PORT", help="An agent or a cloud server (its gRPC port).")],
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: the repository's own.")] = None,
    rate: Annotated[float, typer.Option(min=0.01, max=1000, help="Requests per second.")] = 10.0,
    requests: Annotated[int, typer.Option(min=0, help="So many and no more; 0: until it is stopped.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of each request, in s.")] = 1.0,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: OwnTokenOption = None,
    json: JsonOption = False,
) -> None:
    """Send a bundle's sample images to a server, one a request, until SIGTERM or Ctrl-C."""
    with extra("edge"):
        from edgemux.cli.demo import samples_of, starter_bundle
        from edgemux.cli.steady import Tally, in_words, schedule, send, stopped_by_signals
        from edgemux.multiplexer.bundle import Bundle
        from edgemux.wire import Client
        from edgemux.wire.security import ClientTls
    from msgspec.json import encode

    check_address("--to", to)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("traffic: --tls-cert and --tls-key go together")
    source = Bundle.open(bundle or starter_bundle())
    images, manifest = samples_of(source).images, source.manifest
    security = ClientTls(enabled=tls or None, ca=tls_ca, cert=tls_cert, key=tls_key)
    tally = Tally()
    stop = stopped_by_signals()
    with Client(to, security, token_file) as client:

        def ask(index: int) -> str:
            at = index % len(images)
            inputs = {manifest.inputs[0].name: images[at : at + 1]}
            return str(client.infer(manifest.name, inputs, timeout).parameters.get("edgemux_route", "cloud"))

        def report() -> None:
            typer.echo(in_words(tally), err=json)

        send(ask, schedule(rate, requests, stop), tally, report)
    typer.echo(encode(tally.counts()).decode() if json else in_words(tally))
    if tally.counts() and not tally.answered():
        why = f", the last one because: {tally.last_error}" if tally.last_error else ""
        raise Unreachable(f"{to} answered none of the requests{why}")
