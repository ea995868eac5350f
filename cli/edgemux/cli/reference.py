"""What the device alone and the cloud alone would have answered: the bundle's models, really run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import Array, OnnxModel

BATCH = 50
PROBABILITIES = "probabilities"


def labels_of(bundle: Bundle, files: tuple[str, ...], images: NDArray[np.uint8]) -> list[int]:
    """The labels that the chain of ``files`` gives to UINT8 ``images`` [n, ...], one an image."""
    models = [OnnxModel(bundle.read(path), path) for path in files]
    name = bundle.manifest.inputs[0].name
    parts = [_run(models, {name: images[start : start + BATCH]}) for start in range(0, len(images), BATCH)]
    labels: list[int] = np.concatenate(parts).argmax(axis=1).tolist()
    return labels


def _run(models: list[OnnxModel], pool: dict[str, Array]) -> Array:
    """Run the chain: each model takes what it names from the pool and adds what it makes; the last one answers."""
    answer: Array | None = None
    for model in models:
        try:
            feeds = {name: pool[name] for name in model.inputs}
        except KeyError as error:
            raise ArtifactError(f"{model.name}: nothing before it makes its input {error.args[0]!r}") from error
        made = dict(zip(model.outputs, model.run(feeds), strict=True))
        answer = made.pop(PROBABILITIES, None)
        pool |= made
    if answer is None:
        raise ArtifactError(f"{models[-1].name}: has no output {PROBABILITIES!r}")
    return answer
