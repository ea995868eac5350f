"""A backend that computes when it is told to, and engines around it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from edgemux.cloud.admission import AdmissionSettings, BatchTime
from edgemux.cloud.batcher import BatchingSettings
from edgemux.cloud.engine import Engine
from edgemux.cloud.statistics import Tally
from edgemux.multiplexer.bundle import Tensor

CLASSES = 10
# The event loop must never wait for a test's mistake longer than this.
PATIENCE_S = 30.0


class HeldBackend:
    """The class of an image is its first pixel, modulo ten. Every batch waits for a permit."""

    inputs = (Tensor("image", "UINT8", (-1, 28, 28)),)
    outputs = (Tensor("probabilities", "FP32", (-1, CLASSES)), Tensor("label", "INT64", (-1,)))

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fail_next = False
        self._permits = threading.Semaphore(0)

    def permit(self, batches: int = 1) -> None:
        self._permits.release(batches)

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        if not self._permits.acquire(timeout=PATIENCE_S):
            raise TimeoutError("no permit")
        image = inputs["image"]
        self.batches.append(len(image))
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("secret detail at /etc/passwd")
        label = image[:, 0, 0].astype(np.int64) % CLASSES
        every = {"probabilities": np.eye(CLASSES, dtype=np.float32)[label], "label": label}
        return {name: every[name] for name in outputs}

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend()


@pytest_asyncio.fixture
async def make_engine(backend: HeldBackend) -> AsyncIterator[Callable[..., Engine]]:
    """Engines around the held backend; in a thread unless ``row_s`` says that it is quick."""
    engines: list[Engine] = []

    def make(
        row_s: float = 0.01,
        linger_s: float = 0.0,
        max_batch: int = 4,
        max_queue: int = 8,
        tally: Tally | None = None,
    ) -> Engine:
        engine = Engine(
            backend,
            BatchTime(row_s, row_s * 1.5, max_batch),
            BatchingSettings(max_batch=max_batch, linger_s=linger_s),
            AdmissionSettings(max_queue=max_queue),
            tally or Tally(),
        )
        engines.append(engine)
        return engine

    yield make
    backend.permit(1000)
    for engine in engines:
        await engine.close()
