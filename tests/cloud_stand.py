"""A cloud's models without ports: its service, and the repository that fills it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from edgemux.cloud.config import CloudConfig, ModelSettings
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.repository import Repository
from edgemux.cloud.service import CloudService
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import make_request, read_outputs


class Context:
    """A call without a deadline."""

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return "test"


class Stand:
    """A service and its repository."""

    def __init__(self, config: CloudConfig) -> None:
        self.metrics = Metrics()
        self.service = CloudService([], config.admission, self.metrics, config.batching)
        self.repository = Repository(config, self.service, self.metrics)
        self.told: list[tuple[str, bool]] = []
        self.repository.announce = self.announce

    async def announce(self, name: str, ready: bool) -> None:
        self.told.append((name, ready))

    async def ask(self, name: str, version: str = "") -> float:
        """What the model makes of 0."""
        request = make_request(name, {"x": np.zeros((1, 2), np.float32)})
        request.model_version = version
        response = await self.service.ModelInfer(request, Context())
        served = self.service.check_model(name, version)
        return float(read_outputs(response, served.outputs, 1)["y"][0, 0])

    async def index(self, ready: bool = False) -> list[tuple[str, str, str, str]]:
        response = await self.service.RepositoryIndex(oip.RepositoryIndexRequest(ready=ready), None)
        return [(each.name, each.version, each.state, each.reason) for each in response.models]

    async def load(self, name: str) -> None:
        await self.repository.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=name), None)

    async def unload(self, name: str) -> None:
        await self.repository.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name=name), None)


@contextlib.asynccontextmanager
async def standing(*models: ModelSettings, **how: Any) -> AsyncIterator[Stand]:
    """``how``: of the configuration."""
    made = Stand(CloudConfig(models=models, **how))
    try:
        await made.repository.open()
        yield made
    finally:
        await made.repository.close()
        await made.service.stop()
