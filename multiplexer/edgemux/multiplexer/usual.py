"""What a bundle's inputs and scores usually are, for the agent to notice when they no longer are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle, Manifest, seal
from edgemux.multiplexer.chain import Activations, Chain
from edgemux.multiplexer.drift import References, light_of, numbers_of, reference_of
from edgemux.multiplexer.gates import Gates, Scores, gain_after, gain_before
from edgemux.multiplexer.onnx_model import OnnxModel

# Rows run at once: enough for speed, few enough for memory.
ROWS = 256

Floats = NDArray[np.float64]
Tensors = Mapping[str, NDArray[Any]]


class Seen(msgspec.Struct, frozen=True):
    """Numbers of the inputs [n], and per level the post-gate's gains [m] of those that the pre-gate does not skip."""

    pre_gate_gain: Floats
    brightness: Floats
    contrast: Floats
    levels: tuple[Floats, ...]


def add_references(folder: Path, placing: Tensors, counted: Tensors) -> Manifest:
    """Put references into a sealed bundle's manifest and seal it again; returns the manifest.

    placing, counted: inputs by name [n, ...], some hundred of each at least. The first only place the bins; the others
    are counted and must be as served: none that a gate was fitted to, no copies. Where the pre-gate leaves a level none
    of either, the bundle stays without references, and an agent learns them. Raises ArtifactError for a bad file.
    """
    bundle = Bundle.open(folder)
    gates = Gates(bundle)
    names = tuple(level.files[-1] for level in bundle.manifest.levels)
    chain = Chain([OnnxModel(bundle.read(name), name) for name in names], placing)
    first, second = (look(bundle.manifest, gates, chain, tensors) for tensors in (placing, counted))
    if not all(len(gains) for seen in (first, second) for gains in seen.levels):
        return bundle.manifest
    references = References(
        pre_gate_gain=reference_of(first.pre_gate_gain, second.pre_gate_gain),
        brightness=reference_of(first.brightness, second.brightness),
        contrast=reference_of(first.contrast, second.contrast),
        levels=tuple(reference_of(*pair) for pair in zip(first.levels, second.levels, strict=True)),
    )
    return seal(folder, msgspec.structs.replace(bundle.manifest, references=references))


def look(manifest: Manifest, gates: Gates, chain: Chain, tensors: Tensors) -> Seen:
    """What the agent would see of these inputs, every level's answer to each of them."""
    light: list[Floats] = []
    before: list[Scores] = []
    gains: list[list[float]] = [[] for _ in manifest.levels]
    image = manifest.inputs[0].name
    for start in range(0, len(tensors[image]), ROWS):
        rows = {name: tensor[start : start + ROWS] for name, tensor in tensors.items()}
        light.append(light_of(numbers_of(rows[image])))
        before.append(gates.before(rows))
        activations = Activations(rows)
        for level in range(1, len(gains) + 1):
            answers = chain.run(level, activations)
            for number, scores in enumerate(before[-1]):
                if not skipped(scores.tolist(), level, manifest.multiplexer.offload_first):
                    after = gates.after(answers[number : number + 1], level, scores[None])
                    gains[level - 1].append(float(gain_after(after, level)[0]))
    brightness, contrast = np.concatenate(light).T
    return Seen(
        pre_gate_gain=gain_before(np.concatenate(before)),
        brightness=brightness,
        contrast=contrast,
        levels=tuple(np.array(gain) for gain in gains),
    )


def skipped(scores: list[float], level: int, offload_first: float) -> bool:
    """Whether the pre-gate sends an input to the cloud at once where ``level`` is the highest that can be afforded."""
    return scores[-1] - offload_first > max(scores[:level])
