"""What the device alone and the cloud alone would have answered: the bundle's models, really run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Chain
from edgemux.multiplexer.onnx_model import OnnxModel

BATCH = 50


def labels_of(bundle: Bundle, files: tuple[str, ...], images: NDArray[np.uint8]) -> list[int]:
    """The labels that the chain of ``files`` gives to UINT8 ``images`` [n, ...], one an image."""
    name = bundle.manifest.inputs[0].name
    chain = Chain([OnnxModel(bundle.read(path), path) for path in files], [name])
    parts = [chain.answer({name: images[start : start + BATCH]}) for start in range(0, len(images), BATCH)]
    labels: list[int] = np.concatenate(parts).argmax(axis=1).tolist()
    return labels
