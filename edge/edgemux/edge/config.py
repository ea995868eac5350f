"""The agent's configuration: one TOML file, one struct per component."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemux.edge.admission import AdmissionSettings
from edgemux.edge.breaker import BreakerSettings
from edgemux.edge.gallery import PageSettings
from edgemux.edge.metrics import EnergyProxy
from edgemux.edge.peer import OutputKind
from edgemux.edge.purse import BudgetSettings, PriceSettings
from edgemux.edge.scheduler import SchedulerSettings
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.limits import TokenBucket, allowed_s
from edgemux.wire.log_format import LogOptions
from edgemux.wire.process import Listen
from edgemux.wire.security import ClientTls
from edgemux.wire.settings import load_settings
from edgemux.wire.tracing import TracingSettings

# Longer pauses than an hour between looks at the device or the link, and requests that take a day, are slips.
MAX_INTERVAL_S = 3600.0
MAX_TIMEOUT_S = 86400.0
# A weight is a ratio; and planning for more applications than this takes too long for a device.
MAX_WEIGHT = 1e6
MAX_APPLICATIONS = 32
MAX_CLOUDS = 16
MAX_TOGETHER = 256
# They are held in memory, some numbers each, until they are enough.
MAX_REFERENCE_INPUTS = 100_000
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_IN_BRACKETS = re.compile(r"\[(?P<address>[0-9A-Fa-f:.]+)(%[A-Za-z0-9._-]+)?\]")


# Comparisons with what is not a number are false: each is written so that it has to be true.
def _positive(settings: Any, *names: str, most: float = math.inf) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise ValueError(f"{name} must be more than 0")
        if not value <= most:
            raise ValueError(f"{name} must be at most {most:g}")


def _not_negative(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} must be 0 or more")


def _is_host(text: str) -> bool:
    """A name or an IPv4 address; an IPv6 address in brackets."""
    bracketed = _IN_BRACKETS.fullmatch(text)
    if bracketed is None:
        return _HOST.fullmatch(text) is not None
    try:
        ipaddress.IPv6Address(bracketed["address"])
    except ValueError:
        return False
    return True


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return _is_host(host) and re.fullmatch("[0-9]{1,5}", port) is not None and 0 < int(port) < 65536


class CloudSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cloud: ``address`` HOST:PORT, None for none; ``model`` its name there, None for the bundle's.

    addresses: several that serve the same, asked in turn; ``address`` may then be left out, or is one of them.
    output: what a cloud of other make calls the model's answer, None for "probabilities". output_kind: what it is.
    payload_max_loss: an input is sent in whichever form is answered soonest, of those that cost at most so much of the
    cloud's accuracy, as the bundle has measured; 0: only forms that lose nothing.
    most_together: inputs that one call may carry, of those that want the cloud at the same moment; 1: each has its own.
    keepalive_s: between looks at a quiet connection; None: 10 towards our own servers, else none but while a call is
    under way, every 5 minutes: servers of other make hang up on whoever asks more often.
    probe_interval_s: the longest the link goes unmeasured while requests come in. accept_other_models: whether answers
    of another model than the bundle's count as answers; the certificate is then withdrawn, for it is about that one.
    tls, token_file: how the agent knows the cloud, and the cloud the agent.
    """

    address: str | None = None
    addresses: tuple[str, ...] = ()
    model: str | None = None
    output: str | None = None
    output_kind: OutputKind = "probabilities"
    payload_max_loss: float = 0.01
    most_together: int = 1
    keepalive_s: float | None = None
    probe_interval_s: float = 0.5
    accept_other_models: bool = False
    tls: ClientTls = ClientTls()
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if self.address is not None and not _is_address(self.address):
            raise ValueError("address must be HOST:PORT, an IPv6 address in brackets")
        if not all(map(_is_address, self.addresses)):
            raise ValueError("addresses must each be HOST:PORT, an IPv6 address in brackets")
        if len(set(self.addresses)) < len(self.addresses) or len(self.addresses) > MAX_CLOUDS:
            raise ValueError(f"addresses must be at most {MAX_CLOUDS}, each another")
        if self.addresses and self.address not in (None, *self.addresses):
            raise ValueError("address must be one of addresses, where both are given")
        for name in ("model", "output"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must not be empty")
        if not 0 <= self.payload_max_loss <= 1:
            raise ValueError("payload_max_loss must be in [0, 1]")
        _positive(self, "most_together", most=MAX_TOGETHER)
        if self.keepalive_s is not None:
            _positive(self, "keepalive_s", most=MAX_TIMEOUT_S)
        _positive(self, "probe_interval_s", most=MAX_INTERVAL_S)

    def every_address(self) -> tuple[str, ...]:
        """All clouds, none where there is none."""
        return self.addresses or (() if self.address is None else (self.address,))


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hard limits. Rates are long-run, with a burst of ``burst_s`` seconds' worth; infinite means no limit.

    A burst holds at least one offload: a rate that is low but not 0 allows one now and then.
    spend: "needed" offloads what the certificate asks for, and no more; "fully" spends the whole of a limited rate on
    the inputs that gain most, as long as there is any gain: without a limit that is every input with a gain.
    compute_share: how much of the free CPU the device models may use. memory_bytes: for the weights of all levels and
    heads that are loaded, of all applications together, as large as their files are.
    """

    offloads_per_s: float = math.inf
    bytes_per_s: float = math.inf
    burst_s: float = 10.0
    spend: Literal["needed", "fully"] = "needed"
    compute_share: float = 0.5
    memory_bytes: float = math.inf

    def __post_init__(self) -> None:
        _positive(self, "burst_s", "memory_bytes")
        if math.isinf(self.burst_s):
            raise ValueError("burst_s must be finite; a rate of inf is no limit")
        _not_negative(self, "offloads_per_s", "bytes_per_s")
        if not 0 < self.compute_share <= 1:
            raise ValueError("compute_share must be in (0, 1]")

    def bucket(self, rate_per_s: float, least: float) -> TokenBucket:
        """A full bucket for one of the rates, which holds ``least`` tokens or more, or none ever at a rate of 0."""
        return TokenBucket(rate_per_s, max(least, rate_per_s * self.burst_s) if rate_per_s > 0 else 0.0)


class RequestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deadlines and sizes. margin_s: kept back from every deadline for the way home."""

    default_timeout_s: float = 1.0
    max_timeout_s: float = 60.0
    margin_s: float = 0.02
    max_batch: int = 256

    def __post_init__(self) -> None:
        _positive(self, "max_timeout_s", most=MAX_TIMEOUT_S)
        _positive(self, "default_timeout_s", "max_batch")
        _not_negative(self, "margin_s")
        if not self.default_timeout_s <= self.max_timeout_s:
            raise ValueError(f"default_timeout_s must be at most max_timeout_s, {self.max_timeout_s:g}")
        if not self.margin_s < self.default_timeout_s:
            raise ValueError(f"margin_s must be less than default_timeout_s, {self.default_timeout_s:g}")

    def allowed_s(self, *asked_s: float | None) -> float:
        """The time that a request may take, from the timeouts that its client gives."""
        return allowed_s(self.default_timeout_s, self.max_timeout_s, *asked_s)


class DriftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The watch for drift. run_length: inputs to a false alarm, on average and at least, where they are independent.

    every: of so many inputs one is looked at, picked by chance. Frames of one camera are not independent: with as many
    as it takes for the scene to be another, they nearly are; an alarm then takes as many times longer.
    reference_inputs: the first ones, which say what is usual. audit_share_alarm: the share of inputs that are audited
    after an alarm, until there is a new certificate; without effect where ``audit_share`` is 0, or more.
    """

    enabled: bool = True
    run_length: float = 100_000.0
    every: int = 1
    reference_inputs: int = 2000
    audit_share_alarm: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.run_length < math.inf:
            raise ValueError("run_length must be finite and at least 1")
        _positive(self, "every")
        if not 40 <= self.reference_inputs <= MAX_REFERENCE_INPUTS:
            raise ValueError(f"reference_inputs must be from 40 to {MAX_REFERENCE_INPUTS}")
        if not 0 <= self.audit_share_alarm <= 1:
            raise ValueError("audit_share_alarm must be in [0, 1]")


class LogSettings(LogOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """format, level: of the process's own log.

    requests: a file that gets a line of JSON for every finished request, None for none. most_waiting: lines that
    may wait to be written; while the file cannot take more, the oldest are dropped and counted.
    """

    requests: Path | None = None
    most_waiting: int = 10_000

    def __post_init__(self) -> None:
        _positive(self, "most_waiting", most=1_000_000)


class ApplicationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of several applications: a bundle, and what its user wants of it.

    previous_bundle: served where the bundle is not what its manifest says. name: on the wire, None for the bundle's.
    cloud_model: its name in the cloud, None for the bundle's. policy: None for that of the whole file. weight: how much
    its shortfall counts beside the others'. latency_s: the processing time that is wanted for an input. accuracy: the
    share of right answers that is wanted.
    """

    bundle: Path
    previous_bundle: Path | None = None
    name: str | None = None
    cloud_model: str | None = None
    policy: str | None = None
    weight: float = 1.0
    latency_s: float = 0.1
    accuracy: float = 1.0

    def __post_init__(self) -> None:
        for name in ("name", "cloud_model"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must not be empty")
        if self.name is not None and not _HOST.fullmatch(self.name):
            raise ValueError("name must be of letters, digits, dots, dashes and underscores")
        _positive(self, "weight", most=MAX_WEIGHT)
        _positive(self, "latency_s", most=MAX_TIMEOUT_S)
        if not 0 < self.accuracy <= 1:
            raise ValueError("accuracy must be in (0, 1]")


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. ``bundle`` for one application, ``applications`` for several; one of them has to be there.

    ``policy`` names a plug-in of ``edgemux.policies``, with its parameters if it has any. previous_bundle: served where
    the bundle is not what its manifest says. state_dir: where what must outlive a restart is kept; None: nothing is.
    """

    bundle: Path | None = None
    previous_bundle: Path | None = None
    applications: tuple[ApplicationSettings, ...] = ()
    cloud: CloudSettings = CloudSettings()
    listen: Listen = Listen(grpc_port=9001, http_port=9000, metrics_port=9002)
    split: SplitSettings = SplitSettings()
    limits: LimitSettings = LimitSettings()
    request: RequestSettings = RequestSettings()
    breaker: BreakerSettings = BreakerSettings()
    energy: EnergyProxy = EnergyProxy()
    drift: DriftSettings = DriftSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    page: PageSettings = PageSettings()
    admission: AdmissionSettings = AdmissionSettings()
    budgets: tuple[BudgetSettings, ...] = ()
    prices: PriceSettings = PriceSettings()
    state_dir: Path | None = None
    policy: str = "expected-gain"
    sensors: tuple[str, ...] = ("cpu", "memory", "heat", "battery")
    sensor_interval_s: float = 0.25
    audit_share: float = 0.01

    def __post_init__(self) -> None:
        if (self.bundle is None) == (not self.applications):
            raise ValueError("bundle is missing: give one, or [[applications]], but not both")
        if self.applications and self.previous_bundle is not None:
            raise ValueError("previous_bundle: each of the applications has one of its own")
        if len(self.applications) > MAX_APPLICATIONS:
            raise ValueError(f"applications must be at most {MAX_APPLICATIONS}")
        if self.applications and self.cloud.model is not None:
            raise ValueError("cloud.model is for one bundle; applications have their own cloud_model")
        _positive(self, "sensor_interval_s", most=MAX_INTERVAL_S)
        if not 0 <= self.audit_share <= 1:
            raise ValueError("audit_share must be in [0, 1]")
        names = [budget.name for budget in self.budgets]
        if len(set(names)) < len(names):
            raise ValueError("budgets: two of the same kind for the same period")

    def every_application(self) -> tuple[ApplicationSettings, ...]:
        """What is served: the applications, or the one bundle as an application."""
        if self.bundle is None:
            return self.applications
        return (ApplicationSettings(self.bundle, self.previous_bundle, cloud_model=self.cloud.model),)


def load(path: Path | None, overrides: Mapping[str, Any]) -> EdgeConfig:
    """The configuration from a file, with overrides by dotted key. Raises ConfigError naming the key."""
    return load_settings(EdgeConfig, path, overrides)
