"""The cloud server's process."""

from __future__ import annotations

from edgemux.cloud.config import CloudConfig
from edgemux.cloud.hosting import open_all
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.processes import serve_many
from edgemux.cloud.service import CloudService, Hosted
from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.process import Seat, Serving, run


def serve(config: CloudConfig) -> None:
    """Serve the configured models until SIGTERM or SIGINT; prints one ready line. Blocks.

    Raises ConfigError (a port in use, naming it) and ArtifactError (naming the file) before anything is served.
    """
    if config.processes == 1:
        run(config.listen, lambda: prepare(config))
    else:
        serve_many(config.listen, config.processes, serve_seated, config)


def serve_seated(config: CloudConfig, seat: Seat) -> None:
    """``serve`` as one of several processes. Blocks; raises like it."""
    run(config.listen, lambda: prepare(config), seat)


async def prepare(config: CloudConfig) -> Serving:
    """Load, check and measure every model. Raises ArtifactError."""
    metrics = Metrics()
    hosted: list[Hosted] = []
    for settings in config.every_model():
        versions = await open_all(settings, config, metrics)
        name = versions[-1].served.name
        if any(each.served.name == name for each in hosted):
            raise ConfigError(f"models: several are named {name}; give each a name of its own")
        hosted += versions
    service = CloudService(hosted, config.admission, metrics, config.batching)

    def drain() -> None:
        service.draining = True

    return Serving(
        name="cloud",
        models=tuple(dict.fromkeys(each.served.name for each in hosted)),
        servicer=service,
        registry=metrics.registry,
        pages=service.pages(),
        drain=drain,
        closed=service.stop,
        well=service.well,
    )
