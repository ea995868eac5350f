"""Findings about the link to a cloud, from what each step of reaching it gave. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec

from edgemux.edge.doctor.access import SOON
from edgemux.multiplexer.errors import (
    BadAnswer,
    DeadlineExceeded,
    ExecutionError,
    Forbidden,
    Incompatible,
    Overloaded,
    Unauthenticated,
    Unreachable,
    Untrusted,
)
from edgemux.multiplexer.findings import Finding, Findings
from edgemux.wire.security import is_loopback


class CallSeen(msgspec.Struct, frozen=True):
    """A real call of ``rows`` inputs: bytes there, seconds in all, of them in the server (0: it does not say)."""

    rows: int
    bytes: int
    seconds: float
    server_s: float = 0.0


class LinkSeen(msgspec.Struct, frozen=True):
    """A cloud, step by step; what was not reached is None, and ``error`` says of which ``step`` that was the end.

    addresses: the name's. connect_s: TCP. tls: whether it is spoken; peer_until: the certificate's last second.
    proxy: the variable of the environment that sends gRPC through a proxy, empty for none. rtt_s: the median of the
    smallest calls. model: its name there; digest: "right", "other" or "unknown".
    """

    address: str
    addresses: tuple[str, ...] = ()
    connect_s: float | None = None
    tls: bool = False
    tls_error: str = ""
    peer_until: datetime.datetime | None = None
    proxy: str = ""
    rtt_s: float | None = None
    model: str = ""
    digest: str = ""
    calls: tuple[CallSeen, ...] = ()
    step: str = ""
    error: str = ""
    cause: ExecutionError | None = None


_CHECKS = {
    "resolve": "check the name, and that this device has a name server (getent hosts NAME)",
    "connect": "is the cloud running, on that port; does a firewall let TCP through; is this device on the network?",
}


# As gRPC looks for them, in this order.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")


def proxy_for(host: str, environment: Mapping[str, str]) -> str:
    """The variable that sends gRPC to ``host`` through a proxy, empty where it goes straight."""
    variable = next((name for name in _PROXIES if environment.get(name)), "")
    exempt = next((environment[name] for name in _NO_PROXIES if environment.get(name)), "")
    suffixes = [each.strip() for each in exempt.split(",") if each.strip()]
    return "" if any(host.endswith(suffix) for suffix in suffixes) else variable


def link_findings(seen: LinkSeen, timeout_s: float, accept_others: bool, now: datetime.datetime) -> list[Finding]:
    """What holds of a cloud. Nothing of it stops an agent: what the cloud does not answer, the device does."""
    found = Findings("cloud")
    if seen.step in _CHECKS:
        found.problem(seen.address, f"{seen.error}; all is answered on the device", _CHECKS[seen.step])
        return found.all
    if seen.connect_s is not None:
        says = f"{', '.join(seen.addresses[:3])} connects in {seen.connect_s * 1e3:.1f} ms"
        found.ok(f"{seen.address} TCP", says)
    if seen.proxy:
        says = f"{seen.proxy} is set: the agent's calls go through that proxy, which must let HTTP/2 through"
        found.note(f"{seen.address} proxy", says, "name the cloud's host in no_proxy of the agent's environment")
    if not _certificate(seen, found, now):
        return found.all
    if seen.cause is not None or seen.error:
        _refused(seen, found)
        return found.all
    _model(seen, accept_others, found)
    _times(seen, timeout_s, found)
    return found.all


def _certificate(seen: LinkSeen, found: Findings, now: datetime.datetime) -> bool:
    """Whether it can be gone on with."""
    about = f"{seen.address} TLS"
    if not seen.tls:
        if is_loopback(seen.address.rpartition(":")[0]):
            found.ok(about, "none, and none is needed on this machine")
        else:
            says = "none: others can read what is sent, and answer in the cloud's place"
            found.note(about, says, "set [cloud.tls] (docs/security.md)")
        return True
    if seen.tls_error:
        fix = "check cloud.tls.ca and server_name, this device's clock, and the cloud's certificate (docs/security.md)"
        found.problem(about, f"{seen.tls_error}; all is answered on the device", fix)
        return False
    if seen.peer_until is None:
        found.ok(about, "the cloud's certificate is trusted")
    elif seen.peer_until - now < SOON:
        says = f"the cloud's certificate ends {seen.peer_until:%Y-%m-%d %H:%M} UTC, soon"
        found.note(about, says, "renew it on the cloud's machine; it is taken without a restart")
    else:
        found.ok(about, f"the cloud's certificate is trusted, until {seen.peer_until:%Y-%m-%d %H:%M} UTC")
    return True


def _refused(seen: LinkSeen, found: Findings) -> None:
    says = str(seen.cause) if seen.cause is not None else seen.error
    found.problem(f"{seen.address} {seen.step}", f"{says}; all is answered on the device", _fix(seen))


def _fix(seen: LinkSeen) -> str:
    match seen.cause:
        case Unauthenticated():
            return "set cloud.token_file to a token that the cloud's token file holds, or cloud.tls.cert and key"
        case Forbidden():
            return "have the cloud allow this device, or use another token"
        case Untrusted():
            return "check the files of [cloud.tls], and that the cloud speaks TLS (docs/security.md)"
        case Incompatible() if not seen.model:
            return "it does not speak the Open Inference Protocol: is it the cloud server, and its gRPC port (8001)?"
        case Incompatible():
            return f"serve {seen.model} there, or set cloud.model to its name; is it an Open Inference Protocol server?"
        case BadAnswer():
            return "set cloud.output and cloud.output_kind to what that server answers (docs/offload.md)"
        case Overloaded():
            return "it is busy: try again, or add replicas (docs/fleet.md)"
        case DeadlineExceeded():
            return (
                "it does not answer gRPC in time: is the port its gRPC port (8001), is the link far slower than usual?"
            )
        case Unreachable() if seen.proxy:
            return f"the proxy of {seen.proxy} does not let it through: name the cloud's host in no_proxy"
        case Unreachable():
            return "something listens and does not speak gRPC: is the port its gRPC port (8001), does it want TLS?"
    return "see the cloud's log"


def _model(seen: LinkSeen, accept_others: bool, found: Findings) -> None:
    about = f"{seen.address} model"
    if seen.digest == "other" and accept_others:
        says = f"{seen.model} is another model than the bundle names; it is accepted, uncertified"
        found.note(about, says, "serve the bundle's model there for a certificate that holds")
    elif seen.digest == "other":
        says = f"{seen.model} is another model than the bundle names: it is not asked, all is answered on the device"
        found.problem(about, says, "serve the same bundle on both sides, or set cloud.accept_other_models = true")
    elif seen.digest == "unknown":
        found.note(about, f"{seen.model} answers; that server does not say which model it runs")
    elif seen.digest == "right":
        found.ok(about, f"{seen.model} is the model that the bundle names")


def _times(seen: LinkSeen, timeout_s: float, found: Findings) -> None:
    if seen.rtt_s is not None:
        found.ok(f"{seen.address} round trip", f"{seen.rtt_s * 1e3:.1f} ms")
    if not seen.calls:
        return
    one = seen.calls[0]
    says = f"one input ({one.bytes} bytes) takes {one.seconds * 1e3:.1f} ms, of them {one.server_s * 1e3:.1f} there"
    rate = bytes_per_s(seen)
    if rate is not None:
        says += f"; about {rate / 1e3:.0f} kB/s"
    elif len(seen.calls) > 1:
        says += "; the link is too quick for calls of this size to say how quick"
    if one.seconds > timeout_s:
        fix = "raise request.default_timeout_s, or expect little of this link"
        found.note(f"{seen.address} offload", f"{says}: later than the deadline of {timeout_s:g} s", fix)
    else:
        found.ok(f"{seen.address} offload", says)


# Below this, what two calls differ in is noise.
LEAST_DIFFERENCE_S = 0.002


def bytes_per_s(seen: LinkSeen) -> float | None:
    """What the link carries, by what a larger call takes longer than a small one; None where that is lost in noise."""
    if len(seen.calls) < 2:
        return None
    small, large = seen.calls[0], seen.calls[-1]
    longer = (large.seconds - large.server_s) - (small.seconds - small.server_s)
    more = large.bytes - small.bytes
    return more / longer if longer >= LEAST_DIFFERENCE_S and more > 0 else None
