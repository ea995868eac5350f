"""The cloud server as a Ray Serve application: replicas of one service behind one address, scaled and replaced by Ray.

Ray is imported only after its environment is set, since it reads that when it is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import psutil

from edgemux.cloud.config import CloudConfig
from edgemux.cloud.events import RayFailed
from edgemux.cloud.ray_methods import TOKEN_FILE
from edgemux.cloud.ray_settings import ONGOING_PER_QUEUED, environment, own_cluster
from edgemux.cloud.server import prepare
from edgemux.multiplexer.errors import ConfigError, Unreachable
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.events import MOST_CHARACTERS, Draining, Name, tell
from edgemux.wire.security import Guard
from edgemux.wire.service import SERVICE
from edgemux.wire.stderr import say, unblocked_log

APPLICATION = "edgemux"
ALL = "0.0.0.0"  # Ray's gRPC servers offer nothing else
OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least; nothing of ours goes through it
START_PATIENCE_S = 120.0
STARTS = 3
PAUSE_S = 0.1

_log = logging.getLogger("edgemux.cloud")


def serve(config: CloudConfig) -> None:
    """Serve ``config`` on Ray until SIGTERM or SIGINT; prints one ready line. Blocks.

    Raises ConfigError (no protection and no --insecure, a port in use, Ray not to be had), ArtifactError (a model that
    does not work, found before Ray starts), Unreachable (the replicas did not come up).
    """
    check_reach(config)
    if config.tracing.endpoint is not None:
        raise ConfigError("tracing.endpoint: not with --engine ray, which has tracing of its own")
    models = asyncio.run(_tried(config))
    ports = _Ports.of(config)
    with tempfile.TemporaryDirectory(prefix="edgemux-ray-") as name:
        _set_environment(config, ports, Path(name))
        # Ray reports troubles of its own on stdout, where the ready line is waited for.
        ours = sys.stdout
        with unblocked_log(config.log), contextlib.redirect_stdout(sys.stderr), _running(config, ports, Path(name)):
            stop = _on_signals()
            _wait_until_answered(ports.grpc, config)
            with contextlib.redirect_stdout(ours):
                say(
                    f"edgemux cloud ready model={','.join(models)} grpc=127.0.0.1:{ports.grpc} "
                    f"http=127.0.0.1:{ports.http} metrics=127.0.0.1:{ports.metrics}"
                )
            stop.wait()


def check_reach(config: CloudConfig) -> None:
    """Raises ConfigError where others could reach what Ray opens, unless told that they may.

    Ray's gRPC servers listen on all interfaces and speak no TLS: what protects them is the network around them, or
    a proxy that ends TLS in front of them. A namespace with nothing but loopback needs neither.
    """
    if config.listen.tls.cert is not None:
        raise ConfigError(
            "listen.tls: Ray's gRPC servers speak no TLS: end it in a proxy in front, and give --insecure"
        )
    if config.listen.insecure or all(name == "lo" for _, name in socket.if_nameindex()):
        return
    raise ConfigError(
        "engine ray: listens on all interfaces without TLS, whatever listen.host says: "
        "give --insecure where the network is trusted, or run it in a namespace of its own"
    )


class _Ports(msgspec.Struct, frozen=True):
    """Taken by HAProxy, or by Ray's own proxy; ``stats`` is HAProxy's page."""

    grpc: int
    http: int
    metrics: int
    stats: int

    @classmethod
    def of(cls, config: CloudConfig) -> _Ports:
        """The configured ports, free ones in the place of 0. Raises ConfigError naming one that is in use."""
        listen = config.listen
        wanted = {"grpc": listen.grpc_port, "http": listen.http_port, "metrics": listen.metrics_port, "stats": 0}
        with contextlib.ExitStack() as held:
            found = {name: _free(held, name, port) for name, port in wanted.items()}
        return cls(**found)


def _free(held: contextlib.ExitStack, name: str, port: int) -> int:
    probe = held.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((ALL, port))
    except OSError as error:
        raise ConfigError(f"--{name}-port {port}: cannot listen on {ALL}:{port} ({error.strerror})") from error
    return int(probe.getsockname()[1])


async def _tried(config: CloudConfig) -> tuple[str, ...]:
    """The models' names, once they have been loaded and checked here: what is wrong with them is told by its name."""
    serving = await prepare(config)
    try:
        serving.servicer.check_fits(config.listen.max_message_bytes)
        Guard(config.listen.tls, config.listen.token_file)
        return serving.models
    finally:
        await serving.closed()


def _set_environment(config: CloudConfig, ports: _Ports, folder: Path) -> None:
    listen, settings = config.listen, config.ray
    made = environment(
        settings,
        folder,
        ports.metrics,
        ports.stats,
        max_message_bytes=listen.max_message_bytes,
        drain_s=listen.drain_s,
    )
    if settings.address is None:
        made |= own_cluster()
    if listen.token_file is not None:
        made[TOKEN_FILE] = str(listen.token_file.absolute())
    os.environ.update(made)


@contextlib.contextmanager
def _running(config: CloudConfig, ports: _Ports, folder: Path) -> Iterator[None]:
    """Ray with the application; at the end the replicas drain, and what was started is stopped."""
    try:
        import ray
        from ray import serve as ray_serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install '.[cloud,ray]'") from error
    _start(ray, config, folder)
    try:
        _deploy(ray_serve, config, ports)
        yield
        tell(_log, Draining(inside=0))
        _finish(folder, config.listen.drain_s)
    finally:
        if config.ray.address is None:
            ray_serve.shutdown()
        else:
            ray_serve.delete(APPLICATION)
        ray.shutdown()


def _finish(folder: Path, drain_s: float) -> None:
    """Let HAProxy take nobody in and finish what it has, for ``drain_s`` at most: Ray's own way to stop cuts it off."""
    ours = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name() == "haproxy" and any(str(folder) in word for word in process.cmdline())
    ]
    for process in ours:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGUSR1)
    psutil.wait_procs(ours, timeout=drain_s)


def _start(ray: Any, config: CloudConfig, folder: Path) -> None:
    """Ray on this machine, or the cluster that is named. Raises Unreachable.

    Ray gives its processes half a minute, which a busy machine may not have: it is tried again.
    """
    settings = config.ray
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "serve"}
    if settings.address is not None:
        how["address"] = settings.address
    else:
        how |= {
            "address": "local",
            "include_dashboard": settings.dashboard,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }
    for left in reversed(range(STARTS)):
        try:
            ray.init(**how)
            return
        except Exception as error:  # with any type, Exception itself included
            tell(_log, RayFailed(text=_end_of(error)))
            ray.shutdown()
            if not left:
                raise Unreachable("ray: cannot start, or reach the cluster; the log says why") from error


def _end_of(error: Exception) -> Name:
    """Ray tells the cause last. At the start, so that nobody's input can be in it."""
    return Name(str(error).strip()[-MOST_CHARACTERS:])


def _deploy(ray_serve: Any, config: CloudConfig, ports: _Ports) -> None:
    """Raises Unreachable when the replicas do not come up."""
    from edgemux.cloud.ray_replica import Replica

    settings = config.ray
    deployment = ray_serve.deployment(
        Replica,
        name="cloud",
        max_ongoing_requests=ONGOING_PER_QUEUED * config.admission.max_queue,
        graceful_shutdown_timeout_s=config.listen.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        **settings.scaling(),
    )
    ray_serve.start(
        proxy_location="HeadOnly" if settings.address is None else "EveryNode",
        http_options={"host": ALL, "port": ports.http},
        grpc_options={
            "port": ports.grpc,
            "grpc_servicer_functions": ["edgemux.cloud.ray_methods.add_to_server"],
            "enable_reflection": False,  # our descriptors are in a pool of their own
        },
    )
    try:
        ray_serve.run(deployment.bind(config), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        tell(_log, RayFailed(text=_end_of(error)))
        raise Unreachable("ray: the replicas did not come up; the log says why") from error


def _wait_until_answered(port: int, config: CloudConfig) -> None:
    """Until a call through the proxy is answered. Raises Unreachable."""
    give_up = threading.Event()
    timer = threading.Timer(START_PATIENCE_S, give_up.set)
    timer.daemon = True
    timer.start()
    token = _first_token(config)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ServerReady",
            request_serializer=oip.ServerReadyRequest.SerializeToString,
            response_deserializer=oip.ServerReadyResponse.FromString,
        )
        while not give_up.wait(PAUSE_S):
            with contextlib.suppress(grpc.RpcError):
                if ask(oip.ServerReadyRequest(), timeout=2.0, metadata=token).ready:
                    timer.cancel()
                    return
    raise Unreachable("ray: no call came through the proxy")


def _first_token(config: CloudConfig) -> tuple[tuple[str, str], ...]:
    guard = Guard(config.listen.tls, config.listen.token_file)
    return () if guard.tokens is None else (("authorization", f"Bearer {guard.tokens.current()[0]}"),)


def _on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
