"""Findings about ports, about files of certificates and tokens, and about what traces need. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from enum import Enum

import msgspec

from edgemux.multiplexer.findings import Finding, Findings

SOON = datetime.timedelta(days=14)


class Port(Enum):
    """What is at a port: nothing; an agent or another server of the protocol, ready or not; something else."""

    FREE = "free"
    READY = "a server that is ready"
    NOT_READY = "a server that is not ready"
    GUARDED = "something that wants a client certificate, the server as it seems"
    TAKEN = "in use"
    DENIED = "not allowed"
    NO_ADDRESS = "no such address"


class PortSeen(msgspec.Struct, frozen=True):
    """A port of the configuration, by its setting."""

    setting: str
    port: int
    state: Port


def port_findings(seen: Sequence[PortSeen]) -> list[Finding]:
    """Whether an agent could listen, or does already. One that answers on HTTP owns the other two ports."""
    found = Findings("ports")
    agents = [port.state for port in seen if port.state in (Port.READY, Port.NOT_READY, Port.GUARDED)]
    for port in seen:
        if port.port == 0:
            found.ok(port.setting, "0: a free one is taken")
            continue
        match port.state:
            case Port.FREE:
                found.ok(port.setting, f"{port.port} is free")
            case Port.READY | Port.GUARDED:
                found.ok(port.setting, f"{port.port}: {port.state.value}")
            case Port.NOT_READY:
                says = f"{port.port}: {port.state.value}: it starts, stops, or fails its self-check"
                found.problem(port.setting, says, "see its log, and /status on its HTTP port")
            case Port.TAKEN if agents:
                found.ok(port.setting, f"{port.port} is in use, by that server as it seems")
            case Port.TAKEN:
                fix = f"end what has it (ss -ltnp 'sport = :{port.port}' names it), or set another"
                found.problem(port.setting, f"{port.port} is in use by something else", fix, stops=True)
            case Port.DENIED:
                fix = "use a port above 1023, or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE"
                found.problem(port.setting, f"{port.port}: this user may not listen there", fix, stops=True)
            case Port.NO_ADDRESS:
                fix = "set listen.host to an address of this machine"
                found.problem(port.setting, "listen.host is not an address of this machine now", fix, stops=True)
    return found.all


class FilesSeen(msgspec.Struct, frozen=True):
    """Files of one section: what is wrong with them (empty: nothing), whether there are certificates and tokens.

    until, trouble: of the own certificate. open_keys: settings whose files others on this machine may read.
    """

    section: str
    error: str = ""
    tls: bool = False
    token: bool = False
    until: datetime.datetime | None = None
    trouble: str | None = None
    open_keys: tuple[str, ...] = ()


def file_findings(seen: FilesSeen, now: datetime.datetime) -> list[Finding]:
    """Whether certificates and tokens can be used, and for how long."""
    found = Findings("security")
    if seen.error:
        # The error names its setting.
        setting, _, reason = seen.error.partition(": ")
        found.problem(setting, reason or seen.error, "see docs/security.md for what belongs there", stops=True)
        return found.all
    what = [name for name, there in (("TLS", seen.tls), ("token", seen.token)) if there]
    found.ok(seen.section, f"{' and '.join(what)}: files are whole" if what else "neither TLS nor token")
    if seen.until is not None:
        about, says = f"{seen.section}.tls.cert", f"until {seen.until:%Y-%m-%d %H:%M} UTC"
        if seen.trouble is not None:
            found.problem(about, f"the certificate {seen.trouble}: nobody accepts it", "renew it (docs/security.md)")
        elif seen.until - now < SOON:
            found.note(about, f"{says}, soon", "renew it; a running agent takes it without a restart")
        else:
            found.ok(about, says)
    for setting in seen.open_keys:
        found.note(setting, "others on this machine may read it", "chmod 600, owned by the agent's user")
    return found.all


def tracing_findings(endpoint: str | None, error: str) -> list[Finding]:
    """Whether what traces need is installed; nothing where none are configured. ``error``: empty, or that it is not."""
    found = Findings("tracing")
    if error:
        found.problem(
            "tracing.endpoint", error.removeprefix("tracing.endpoint: "), "that, or leave [tracing] out", stops=True
        )
    elif endpoint is not None:
        found.ok("tracing.endpoint", f"{endpoint}; whether a collector answers there is not looked at")
    return found.all
