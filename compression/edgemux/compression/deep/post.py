"""``codebook``, ``int8_weights`` and ``fp16``: weights of an ONNX graph in fewer bits, without training; storage only.

ONNX Runtime turns them into float32 once, at load: smaller files at the same speed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import onnx

from edgemux.compression.deep import container
from edgemux.compression.deep.clusters import Start, shared
from edgemux.compression.deep.passes import BITS, STORAGE, Bits
from edgemux.compression.deep.scaling import Weight
from edgemux.compression.deep.storage import (
    Form,
    codebook_form,
    fp16_form,
    int8_form,
    output_axes,
    replaced_weights,
    restored,
    weights_of,
)
from edgemux.compression.passes import Gain, Pass, Setting, Stage, Subject
from edgemux.compression.to_onnx import shipped
from edgemux.multiplexer.errors import PassError


class Codebook(Pass, frozen=True):
    """``codebook(bits, start)``: at most 2**bits values in each weight, found by k-means; zeros stay zero.

    ``cluster`` trains them on, and loses less; this takes an ONNX file too. start: see ``cluster``.
    """

    label: ClassVar[str] = "codebook"
    stage: ClassVar[Stage] = "onnx"
    gives: ClassVar[frozenset[Gain]] = STORAGE

    bits: Bits = BITS
    start: Start = "linear"

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Codes and codebooks in the graph, and the container beside it."""
        graph = graph_with_weights(subject, setting, self.label)
        values = {}
        for name, weight in weights_of(graph):
            entries, codes = shared(weight, self.bits, self.start)
            values[name] = entries[codes]
        plain = replaced_weights(graph, values)
        after = subject.with_graph(restored(plain, codebook_form))
        return replace(after, files={container.FILE: container.encode(plain)})


class Int8Weights(Pass, frozen=True):
    """``int8_weights``: weights as int8 with one scale for each output channel; arithmetic stays in float32."""

    label: ClassVar[str] = "int8_weights"
    stage: ClassVar[Stage] = "onnx"
    gives: ClassVar[frozenset[Gain]] = STORAGE

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Cast and Mul before each layer."""
        graph = graph_with_weights(subject, setting, self.label)
        axes = output_axes(graph)

        def make(name: str, value: Weight) -> Form | None:
            return int8_form(name, value, axes[name])

        return subject.with_graph(restored(graph, make))


class Fp16(Pass, frozen=True):
    """``fp16``: weights as float16, but for those too large for it; arithmetic stays in float32."""

    label: ClassVar[str] = "fp16"
    stage: ClassVar[Stage] = "onnx"
    gives: ClassVar[frozenset[Gain]] = STORAGE

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """A Cast before each layer."""
        return subject.with_graph(restored(graph_with_weights(subject, setting, self.label), fp16_form))


def graph_with_weights(subject: Subject, setting: Setting, label: str) -> onnx.ModelProto:
    """The graph as it would be shipped. Raises PassError when it has no float32 weights left to store otherwise."""
    graph = shipped(subject, setting.samples)
    if next(weights_of(graph), None) is None:
        raise PassError(
            f"{label}: the graph holds no float32 weights; an earlier pass stores them in fewer bits already"
        )
    return graph
