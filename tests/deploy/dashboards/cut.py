"""The starter bundle with two more splits, so that the run has some whatever the bundle itself has.

The cloud's model is cut at the last place where one tensor crosses, before its last layer, and sends 8 bits a value:
that is cheap to send, and loses next to nothing. What the manifest says of it is made up. One that says to lose much is
left alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgemux.compression.split.costs import Whole
from edgemux.compression.split.pack import add_split
from edgemux.multiplexer.bundle import Bundle, Split, Tensor
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.split_bundle import dequantised, quantised

USED, LOSSY = "late-cut", "lossy-cut"


def with_cuts(source: Path, folder: Path) -> Path:
    """A copy of a bundle in ``folder``, which is returned, with the splits USED and LOSSY."""
    shutil.copytree(source, folder)
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    whole = Whole.read(folder / manifest.cloud.files[0])
    halves = whole.halves(next(cut for cut in reversed(whole.cuts[:-1]) if len(cut.tensors) == 1))
    (tensor,) = (value.name for value in halves.head.graph.output)
    made = OnnxModel(halves.head.SerializeToString(), "head").run(Golden(bundle).inputs)[0]
    low, step = float(made.min()), float(np.ptp(made)) / 200
    files = quantised(halves.head, tensor, low, step, 8), dequantised(halves.tail, tensor, low, step)
    sent, right = Tensor("sent", "UINT8", (-1, *made.shape[1:])), manifest.cloud.accuracy
    for name, accuracy in ((USED, right), (LOSSY, right / 2)):
        names = {"head": f"{name}-head.onnx", "tail": f"{name}-tail.onnx"}
        measured = {"n": 10**6, "accuracy": accuracy, "changed": 0.0, "bytes": 120.0}
        times = {"head_ms": 2.0, "tail_ms": 0.1, "tail_macs": 1000}
        split = Split(name=name, level=0, sent=sent, bits=8, **names, **measured, **times)  # type: ignore[arg-type]
        add_split(folder, folder, split, *files)
    return folder
