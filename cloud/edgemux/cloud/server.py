"""The cloud server's process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from edgemux.cloud.config import CloudConfig
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.processes import serve_many
from edgemux.cloud.repository import Repository
from edgemux.cloud.service import CloudService
from edgemux.wire.events import tell
from edgemux.wire.process import Seat, Serving, run
from edgemux.wire.spell import Overload
from edgemux.wire.tracing import open_tracer

# How often it is looked whether requests are being refused.
LOOK_S = 0.5

_log = logging.getLogger("edgemux.cloud")


def serve(config: CloudConfig) -> None:
    """Serve the configured models until SIGTERM or SIGINT; prints one ready line. Blocks.

    Raises ConfigError (a port in use, naming it) and ArtifactError (naming the file) before anything is served.
    """
    if config.processes == 1:
        run(config.listen, lambda: prepare(config), admin=config.admin, new_loop=_quick_loop(), log=config.log)
    else:
        serve_many(config.listen, config.processes, serve_seated, config, config.log)


def serve_seated(config: CloudConfig, seat: Seat) -> None:
    """``serve`` as one of several processes. Blocks; raises like it."""
    run(config.listen, lambda: prepare(config), seat, new_loop=_quick_loop(), log=config.log)


def _quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop that takes less time for each request, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


async def _attend(metrics: Metrics) -> None:
    """Say when more comes in than can be answered, until cancelled."""
    overload = Overload()
    while True:
        await asyncio.sleep(LOOK_S)
        event = overload.look(metrics.overloads(), time.monotonic())
        if event is not None:
            tell(_log, event)


async def prepare(config: CloudConfig) -> Serving:
    """Load, check and measure every model. Raises ArtifactError."""
    metrics = Metrics()
    tracer = open_tracer(config.tracing, "edgemux-cloud")
    service = CloudService([], config.admission, metrics, config.batching, tracer)
    service.processes = config.processes
    repository = Repository(config, service, metrics)
    attending = asyncio.ensure_future(_attend(metrics))

    async def closed() -> None:
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)
        await repository.close()
        await service.stop()
        await asyncio.to_thread(tracer.close)

    try:
        await repository.open()
    except BaseException:
        await closed()
        raise

    def drain() -> None:
        service.draining = True

    return Serving(
        name="cloud",
        models=repository.names,
        servicer=service,
        registry=metrics.registry,
        pages=service.pages(),
        drain=drain,
        closed=closed,
        well=service.well,
        admin=repository,
        announced=repository.announced,
        live=service.live,
    )
