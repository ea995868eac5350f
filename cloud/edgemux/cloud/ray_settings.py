"""What Ray Serve is told: how many replicas, where, and the environment that its processes read when they start."""

from __future__ import annotations

import math
import secrets
from pathlib import Path

import msgspec

# Beyond what the queue holds: our own admission refuses, with when to come back, before Ray's does.
ONGOING_PER_QUEUED = 4
# How long a replica that is taken away still takes requests: HAProxy knows within a second or so.
SETTLE_S = 2.0


class RaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``address``: of a running cluster, "auto" or HOST:PORT; none starts Ray on this machine.

    ``replicas`` is fixed unless ``max_replicas`` is given: then there are ``min_replicas`` to ``max_replicas``, so many
    that each has ``target_ongoing`` requests under way. ``haproxy`` and ``throughput_optimized`` are Ray's own modes;
    without them a request costs five times as much. ``upscale_s`` and ``downscale_s``: how long the load must be
    there before replicas are added or taken away.
    """

    address: str | None = None
    replicas: int = 1
    min_replicas: int = 1
    max_replicas: int | None = None
    target_ongoing: float = 8.0
    upscale_s: float = 5.0
    downscale_s: float = 60.0
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    haproxy: bool = True
    throughput_optimized: bool = True
    dashboard: bool = False

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.min_replicas < 1:
            raise ValueError("replicas and min_replicas must be at least 1")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        for name in ("target_ongoing", "cpus_per_replica"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive")
        for name in ("upscale_s", "downscale_s", "gpus_per_replica"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")

    def scaling(self) -> dict[str, object]:
        """Ray's deployment options for the number of replicas."""
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        return {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "initial_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing,
                "upscale_delay_s": self.upscale_s,
                "downscale_delay_s": self.downscale_s,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 3.0,
            }
        }


def environment(
    settings: RaySettings, folder: Path, metrics_port: int, stats_port: int, **limits: float
) -> dict[str, str]:
    """What must stand in the environment before Ray is imported, and on every node of a cluster.

    ``folder`` holds HAProxy's files. ``limits``: ``max_message_bytes`` and ``drain_s``.
    """
    settle = str(min(SETTLE_S, limits["drain_s"]))
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(settings.haproxy)),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": str(int(settings.throughput_optimized)),
        # HAProxy sends requests past Ray's handles, which then know nothing of the load: replicas do.
        "RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE": str(int(not settings.haproxy)),
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(int(limits["max_message_bytes"])),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": settle,
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(max(SETTLE_S, limits["drain_s"])),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    }


def own_cluster() -> dict[str, str]:
    """For Ray on this machine alone: its control plane runs whatever it is sent, so it takes a secret of this run."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
