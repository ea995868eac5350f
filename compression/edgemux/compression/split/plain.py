"""A cut of a bundle's cloud model as a split: what crosses is rounded to few bits, nothing is trained."""

from __future__ import annotations

import numpy as np

from edgemux.compression.split.material import Material, single
from edgemux.compression.split.rounding import rounded, steps_for
from edgemux.compression.split.trial import Made, Plan, tried
from edgemux.multiplexer.onnx_model import OnnxModel

# Rows by which steps are chosen.
MOST_ROWS = 512


def plain(material: Material, plan: Plan) -> Made:
    """Cut the cloud model where the plan says.

    Raises ConfigError for a cut that is not there, that does not send one tensor of numbers,
    whose head only hands the input on, or that NaN crosses;
    PassError for halves that answer otherwise than the whole.
    """
    cut, _ = single(material.whole, plan.at, trained=False)
    halves = material.whole.halves(cut)
    head = OnnxModel(halves.head.SerializeToString(), "head.onnx")
    (between,) = head.outputs
    index = material.fit[:MOST_ROWS]
    seen = [head.run({material.feed.tensor.name: rows}, [between])[0] for rows in material.feed.batches(index)]
    return tried(material, plan, *rounded(halves, between, steps_for(np.concatenate(seen), plan.bits)))
