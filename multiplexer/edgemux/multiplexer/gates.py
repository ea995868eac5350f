"""The multiplexer's two gates: P(correct) per route, from the raw input and again from the device's answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle, Manifest
from edgemux.multiplexer.chain import Golden, probabilities
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import OnnxModel

Scores = NDArray[np.float32]


def gain_before(scores: NDArray[Any]) -> NDArray[np.float64]:
    """What the pre-gate expects of the cloud over the best level, FP64 [N], from its scores [N, routes]."""
    wide = scores.astype(np.float64)
    gain: NDArray[np.float64] = wide[:, -1] - wide[:, :-1].max(axis=1)
    return gain


def gain_after(scores: NDArray[Any], level: int) -> NDArray[np.float64]:
    """What the post-gate expects of the cloud over the level that answered, FP64 [N], from its scores [N, routes]."""
    wide = scores.astype(np.float64)
    gain: NDArray[np.float64] = wide[:, -1] - wide[:, level - 1]
    return gain


class Gates:
    """Both gates of a bundle. Columns of a score array follow ``routes``: levels by rising number, then the cloud."""

    def __init__(self, bundle: Bundle) -> None:
        """Load and check the gates. Raises ArtifactError naming the file."""
        files = bundle.manifest.multiplexer
        self.routes = files.routes
        self._pre = OnnxModel(bundle.read(files.pre_gate), files.pre_gate)
        self._post = OnnxModel(bundle.read(files.post_gate), files.post_gate)
        for model, inputs, output in (
            (self._pre, {tensor.name for tensor in bundle.manifest.inputs}, "scores"),
            (self._post, {"probabilities", "level", "scores"}, "scores_after"),
        ):
            if not set(model.inputs) <= inputs or model.outputs != (output,):
                raise ArtifactError(f"{model.name}: not a gate, its inputs or outputs have other names")
        self._one_hot = np.eye(len(self.routes) - 1, dtype=np.float32)[:, None, :]

    def before(self, tensors: Mapping[str, NDArray[Any]]) -> Scores:
        """Pre-gate: scores FP32 [N, routes] from the raw input tensors of N rows."""
        scores: Scores = self._pre.run({name: tensors[name] for name in self._pre.inputs})[0]
        return scores

    def after(self, probabilities: NDArray[Any], level: int, scores: Scores) -> Scores:
        """Post-gate: scores FP32 [1, routes] given a level's answer, FP32 [1, classes], and the pre-gate's scores."""
        feeds = {"probabilities": probabilities, "level": self._one_hot[level - 1], "scores": scores}
        after: Scores = self._post.run({name: feeds[name] for name in self._post.inputs})[0]
        return after

    def check(self, golden: Golden, manifest: Manifest) -> None:
        """Run both gates on the golden inputs. Raises ArtifactError naming the file of one that is not a gate.

        Pre-gate: the recorded scores for all rows as one batch. Post-gate: scores for each level's answer to one row.
        """
        width = len(self.routes)
        scores = golden.check("scores", self._pre.name, width, self.before)
        for level in manifest.levels:
            answer = golden.recorded(level.name, len(manifest.classes))[:1]
            probabilities(self._post.name, (1, width), partial(self.after, answer, level.level, scores[:1]))
