"""Whether the device's models still answer as they did when they were loaded; asked now and then, for a watchdog."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import numpy as np

from edgemux.multiplexer.bundle import Manifest
from edgemux.multiplexer.chain import GOLDEN_TOLERANCE, Golden
from edgemux.multiplexer.onnx_model import Array


class SelfCheck:
    """One golden input, and what each level must answer. Nothing of it is counted or paid: it is nobody's request."""

    def __init__(
        self, golden: Golden, manifest: Manifest, answer: Callable[[int, Mapping[str, Array]], Awaitable[Array | None]]
    ) -> None:
        """``answer`` runs a level as requests do: in the event loop, or in the thread that must answer then."""
        self._answer = answer
        self.inputs = {name: array[:1].copy() for name, array in golden.inputs.items()}
        width = len(manifest.classes)
        self._expected = {level.level: golden.recorded(level.name, width)[:1].copy() for level in manifest.levels}

    async def well(self, most_level: int) -> bool:
        """Whether every loaded level up to ``most_level``, the smallest in any case, gives its golden answer."""
        for level, expected in self._expected.items():
            if level <= max(1, most_level):
                given = await self._answer(level, self.inputs)
                if given is not None and not np.allclose(given, expected, rtol=0.0, atol=GOLDEN_TOLERANCE):
                    return False
        return True
