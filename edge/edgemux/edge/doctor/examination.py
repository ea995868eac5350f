"""The whole examination, in order: what the device has, what is configured, what is served, who is reached."""

from __future__ import annotations

import datetime
import os
from collections.abc import Generator, Iterator, Sequence

from edgemux.edge.budget import Readings
from edgemux.edge.config import ApplicationSettings, EdgeConfig
from edgemux.edge.doctor import probes, timing
from edgemux.edge.doctor.access import Port, file_findings, port_findings, tracing_findings
from edgemux.edge.doctor.cloud_probe import Target, look_at_cloud
from edgemux.edge.doctor.link import link_findings
from edgemux.edge.doctor.models import Wanted, bundle_findings, level_findings, runtime_findings, split_findings
from edgemux.edge.doctor.resources import (
    clock_findings,
    cpu_findings,
    descriptor_findings,
    disk_findings,
    memory_findings,
    power_findings,
    sensor_findings,
    user_findings,
)
from edgemux.edge.loading import Loaded
from edgemux.edge.peer import Peer
from edgemux.edge.sensors import PROC, cpu_limit
from edgemux.multiplexer import plugins
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.findings import Finding, Findings

# A bundle on a slow card is read and loaded within this.
BUNDLE_TIMEOUT_S = 120.0


def examine(config: EdgeConfig, served: bool = True) -> Iterator[Finding]:
    """Every finding as it is made. ``served`` False: no bundle was named, so none is looked at.

    Takes some seconds; a cloud that does not answer adds some more. Raises nothing that a device or a cloud causes.
    """
    applications = config.every_application() if served else ()
    ports = probes.look_at_ports(config.listen)
    running = any(port.state in (Port.READY, Port.NOT_READY, Port.GUARDED) for port in ports)
    seen = probes.look_at_sensors(config.sensors, lambda name: plugins.load("edgemux.sensors", name)())
    readings = Readings(**{name: value for sensor in seen for name, value in sensor.readings.items()})
    yield from cpu_findings(readings.cpu_count or 1.0, cpu_limit(), config.limits.compute_share)
    bundles = [bundle for bundle in map(_opened, applications) if bundle is not None]
    levels = sum(bundle.size(bundle.manifest.levels[-1].files) for bundle in bundles)
    yield from memory_findings(probes.look_at_memory(levels, running))
    yield from sensor_findings(seen, psi=(PROC / "pressure/cpu").exists())
    yield from power_findings(probes.look_at_firmware())
    yield from user_findings(os.geteuid() == 0)
    yield from descriptor_findings(probes.look_at_descriptors())
    yield from _disk(config)
    yield from _security(config, bundles)
    yield from port_findings(ports)
    yield from tracing_findings(config.tracing.endpoint, probes.look_at_tracing(config.tracing))
    yield from _policies(config, applications)
    yield from runtime_findings(timing.look_at_runtime())
    loaded = yield from _bundles(config, applications, readings)
    yield from _clouds(config, applications, loaded)


def _disk(config: EdgeConfig) -> list[Finding]:
    places = {
        "state_dir": config.state_dir,
        "log.requests": None if config.log.requests is None else config.log.requests.absolute().parent,
    }
    seen = [probes.look_at_disk(setting, folder) for setting, folder in places.items() if folder is not None]
    return disk_findings(seen, bool(config.budgets))


def _opened(application: ApplicationSettings) -> Bundle | None:
    """A bundle's manifest, None where it cannot be read now; why is said later."""
    try:
        return probes.within(probes.DISK_TIMEOUT_S, lambda: Bundle.open(application.bundle))
    except (ArtifactError, TimeoutError):
        return None


def _security(config: EdgeConfig, bundles: Sequence[Bundle]) -> Iterator[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    tls = config.cloud.tls.on or config.listen.tls.cert is not None
    yield from clock_findings(now, tls, _made_at(bundles))
    yield from file_findings(probes.look_at_own_files(config.listen), now)
    for address in config.cloud.every_address()[:1]:
        yield from file_findings(probes.look_at_cloud_files(address, config.cloud.tls, config.cloud.token_file), now)


def _made_at(bundles: Sequence[Bundle]) -> datetime.datetime | None:
    """When the newest bundle was made: it is later now."""
    dates = []
    for bundle in bundles:
        try:
            date = datetime.datetime.fromisoformat(bundle.manifest.provenance.created)
        except ValueError:
            continue
        dates.append(date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC))
    return max(dates, default=None)


def _policies(config: EdgeConfig, applications: Sequence[ApplicationSettings]) -> list[Finding]:
    found = Findings("policy")
    for text in dict.fromkeys(each.policy or config.policy for each in applications):
        try:
            plugins.make("edgemux.policies", text, "policy")
        except ConfigError as error:
            found.problem(text, str(error), "correct `policy` in the configuration", stops=True)
        else:
            found.ok(text, "there")
    return found.all


def _bundles(
    config: EdgeConfig, applications: Sequence[ApplicationSettings], readings: Readings
) -> Generator[Finding, None, list[Loaded | None]]:
    """Findings; returns what is served of each application, None for nothing."""
    has_cloud = bool(config.cloud.every_address())
    served: list[Loaded | None] = []
    if not applications:
        found = Findings("bundle")
        found.note("bundle", "none is named: neither models nor their speed are looked at", "give --bundle or --config")
        yield from found.all
    for number, each in enumerate(applications):
        setting = "bundle" if config.bundle is not None else f"applications[{number}].bundle"
        loaded, findings = _bundle(setting, each, config)
        yield from findings
        served.append(loaded)
        if loaded is not None and loaded.golden is not None:
            left_s = config.request.default_timeout_s - config.request.margin_s
            wanted = Wanted(each.latency_s, left_s, config.limits.compute_share)
            timings, all_levels = timing.time_levels(loaded), len(loaded.family.routes)
            name = loaded.bundle.manifest.name
            yield from level_findings(name, timings, wanted, readings, all_levels - len(timings))
            if has_cloud:
                yield from split_findings(name, *timing.look_at_splits(loaded), config.split.never_send_raw)
    return served


def _bundle(setting: str, application: ApplicationSettings, config: EdgeConfig) -> tuple[Loaded | None, list[Finding]]:
    has_cloud, most_bytes = bool(config.cloud.every_address()), config.limits.memory_bytes
    split = config.split if has_cloud else None
    has_cloud = has_cloud and not config.split.never_send_raw
    try:
        seen, loaded, instead = probes.within(
            BUNDLE_TIMEOUT_S, lambda: timing.look_at_bundle(setting, application, has_cloud, most_bytes, split)
        )
    except TimeoutError:
        found = Findings("bundle")
        says = f"it cannot be read and loaded within {BUNDLE_TIMEOUT_S:g} s"
        found.problem(setting, says, "look at the disk, or a network mount of it", stops=True)
        return None, found.all
    return loaded, bundle_findings(seen, instead)


def _clouds(
    config: EdgeConfig, applications: Sequence[ApplicationSettings], loaded: Sequence[Loaded | None]
) -> Iterator[Finding]:
    there = config.cloud
    now = datetime.datetime.now(datetime.UTC)
    if not there.every_address():
        found = Findings("cloud")
        found.note("cloud", "none is configured: everything is answered on this device", "give --cloud HOST:PORT")
        yield from found.all
    about = there.accept_other_models, there.output, there.output_kind, there.payload_max_loss
    questions = []
    for application, each in zip(applications, loaded, strict=True):
        if each is not None and each.golden is not None and not config.split.never_send_raw:
            manifest = each.bundle.manifest
            digest = each.bundle.sha256(manifest.cloud.files[0])
            peer = Peer.of(manifest, digest, application.cloud_model or each.bundle.own_name, *about)
            questions.append((peer, each.golden.inputs))
    for address in there.every_address():
        targets = [Target(address, there.tls, there.token_file, *asked) for asked in questions] or [
            Target(address, there.tls, there.token_file, None, {})
        ]
        for target in targets:
            seen = look_at_cloud(target)
            yield from link_findings(seen, config.request.default_timeout_s, there.accept_other_models, now)
