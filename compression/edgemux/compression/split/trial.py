"""Two halves tried on inputs, beside the whole: bytes on the way, answers, times; and what the bundle says of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression.profile import macs
from edgemux.compression.split.costs import median_ms
from edgemux.compression.split.halves import Halves
from edgemux.compression.split.material import Material
from edgemux.compression.split.pack import chain_up_to
from edgemux.multiplexer.bundle import Split, Tensor
from edgemux.multiplexer.chain import PROBABILITIES
from edgemux.multiplexer.errors import PassError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.payload import encode, size_of

Arrays = Mapping[str, NDArray[Any]]
Pool = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]


class Tried(msgspec.Struct, frozen=True):
    """What was found on ``n`` inputs. accuracy, cloud_accuracy: shares that are right, None where nobody knows.

    changed: the share that gets another label than from the whole. whole_ms: of the cloud model on this machine.
    """

    n: int
    bytes: float
    accuracy: float | None
    cloud_accuracy: float | None
    changed: float
    head_ms: float
    tail_ms: float
    whole_ms: float
    head_macs: int
    tail_macs: int
    head_bytes: int
    tail_bytes: int


class Made(msgspec.Struct, frozen=True):
    """A split with its files, and what was found."""

    split: Split
    head: bytes
    tail: bytes
    tried: Tried


class Plan(msgspec.Struct, frozen=True):
    """What a split is to be. at: of the cut; level: that the head goes on from, 0 where it reads the input itself."""

    name: str
    at: int
    bits: int
    level: int = 0


def pool_of(material: Material, level: int) -> Pool:
    """Rows of inputs -> all that a head on that level can read of them, by name."""
    chain, name = chain_up_to(material.bundle, level), material.feed.tensor.name
    return lambda rows: chain.known_at(level, {name: rows})


def left_by(material: Material, level: int) -> tuple[str, ...]:
    """Names of the tensors that a device level itself leaves behind."""
    (file,) = material.bundle.manifest.levels[level - 1].files[-1:]
    outputs = OnnxModel(material.bundle.read(file), file).outputs
    return tuple(name for name in outputs if name != PROBABILITIES)


def tried(material: Material, plan: Plan, halves: Halves, sent_name: str) -> Made:
    """Try halves that send ``sent_name`` on the inputs that are kept for it. Raises PassError where they fail."""
    head_file, tail_file = halves.head.SerializeToString(), halves.tail.SerializeToString()
    head, tail = OnnxModel(head_file, "head.onnx"), OnnxModel(tail_file, "tail.onnx")
    pool = pool_of(material, plan.level)
    whole_labels, labels, size = [], [], 0
    for rows in material.feed.batches(material.test):
        whole = material.whole.model.run({material.feed.tensor.name: rows}, [PROBABILITIES])[0]
        sent = _run(head, pool(rows), sent_name)
        answers = _run(tail, {sent_name: sent}, PROBABILITIES)
        size += size_of(encode(f"bits{plan.bits}", sent, None))
        whole_labels.append(whole.argmax(axis=1))
        labels.append(answers.argmax(axis=1))
    one, clock = pool(material.feed.rows(material.test[:1])), time.thread_time
    feeds = {name: one[name] for name in head.inputs}
    found, plain = np.concatenate(labels), np.concatenate(whole_labels)
    truth = None if material.labels is None else material.labels[material.test]
    figures = Tried(
        n=len(found),
        bytes=round(size / len(found), 1),
        accuracy=None if truth is None else float((found == truth).mean()),
        cloud_accuracy=None if truth is None else float((plain == truth).mean()),
        changed=float((found != plain).mean()),
        head_ms=median_ms(head, feeds, clock),
        tail_ms=median_ms(tail, {sent_name: _run(head, one, sent_name)}, clock),
        whole_ms=median_ms(material.whole.model, {name: one[name] for name in material.whole.model.inputs}, clock),
        head_macs=macs(halves.head),
        tail_macs=macs(halves.tail),
        head_bytes=len(head_file),
        tail_bytes=len(tail_file),
    )
    return Made(
        _split(material, plan, Tensor(sent_name, "UINT8", (-1, *sent.shape[1:])), figures),
        head_file,
        tail_file,
        figures,
    )


def _run(model: OnnxModel, given: Arrays, output: str) -> NDArray[Any]:
    try:
        return model.run({name: given[name] for name in model.inputs}, [output])[0]
    except Exception as error:  # with any of the library's types
        raise PassError(f"{model.name}: fails on the inputs given") from error


def _split(material: Material, plan: Plan, sent: Tensor, found: Tried) -> Split:
    return Split(
        name=plan.name,
        head=f"{plan.name}-head.onnx",
        level=plan.level,
        tail=f"{plan.name}-tail.onnx",
        sent=sent,
        bits=plan.bits,
        bytes=found.bytes,
        head_ms=found.head_ms,
        tail_ms=found.tail_ms,
        tail_macs=found.tail_macs,
        n=found.n,
        accuracy=beside(material.bundle.manifest.cloud.accuracy, material.labelled, found),
        changed=found.changed,
    )


def beside(cloud: float, labelled: bool, found: Tried) -> float:
    """The accuracy that a manifest gives a split, to be read beside the cloud model's in the same manifest.

    That one was found on other inputs, so what counts is the difference on these. Where the truth is not known every
    changed label counts as a loss, and so it does where the bundle knows no truth but the cloud's answers.
    """
    lost = found.changed
    if labelled and found.accuracy is not None and found.cloud_accuracy is not None:
        lost = found.cloud_accuracy - found.accuracy
    return min(1.0, max(0.0, cloud - lost))
