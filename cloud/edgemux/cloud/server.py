"""The cloud server's process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgemux.cloud.config import CloudConfig
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.processes import serve_many
from edgemux.cloud.repository import Repository
from edgemux.cloud.service import CloudService
from edgemux.wire.process import Seat, Serving, run


def serve(config: CloudConfig) -> None:
    """Serve the configured models until SIGTERM or SIGINT; prints one ready line. Blocks.

    Raises ConfigError (a port in use, naming it) and ArtifactError (naming the file) before anything is served.
    """
    if config.processes == 1:
        run(config.listen, lambda: prepare(config), admin=config.admin, new_loop=_quick_loop())
    else:
        serve_many(config.listen, config.processes, serve_seated, config)


def serve_seated(config: CloudConfig, seat: Seat) -> None:
    """``serve`` as one of several processes. Blocks; raises like it."""
    run(config.listen, lambda: prepare(config), seat, new_loop=_quick_loop())


def _quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop that takes less time for each request, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


async def prepare(config: CloudConfig) -> Serving:
    """Load, check and measure every model. Raises ArtifactError."""
    metrics = Metrics()
    service = CloudService([], config.admission, metrics, config.batching)
    service.processes = config.processes
    repository = Repository(config, service, metrics)

    async def closed() -> None:
        await repository.close()
        await service.stop()

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
