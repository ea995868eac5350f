"""What a bundle's cloud model is cut with: its files, somebody's inputs, and which of these are for what.

Splits of one bundle are compared with its cloud model, so inputs without labels will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.own.feed import Feed, check_labels
from edgemux.compression.own.inputs import Inputs, decoded, find
from edgemux.compression.own.plan import Inputs as Where
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.cuts import Cut
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ConfigError

FEWEST = 20
# A head of nothing else hands the input on: in another order, of another type, on another scale.
_MOVING = "Cast Dropout Flatten Identity Reshape Squeeze Transpose Unsqueeze"
_SCALING = "Add DequantizeLinear Div Mul QuantizeLinear Sub"
HANDING_ON = frozenset((*_MOVING.split(), *_SCALING.split()))
# Of graphs that compute in integers; what a pair gives are real numbers.
OCTETS = ("UINT8", "INT8")


@dataclass(frozen=True)
class Material:
    """fit, test: rows of the inputs, none in both. labels: int64 [count], None where there are none.

    sha256: of the inputs' content. labelled: whether the bundle's accuracies are shares of right answers, and not of
    answers that are the cloud model's.
    """

    bundle: Bundle
    whole: Whole
    feed: Feed
    labels: NDArray[np.int64] | None
    fit: NDArray[np.int64]
    test: NDArray[np.int64]
    sha256: str

    @property
    def labelled(self) -> bool:
        return bool(self.bundle.manifest.provenance.measured.get("labelled", 1.0))


def material(folder: Path, inputs: str, labels: str | None, root: Path, fit_share: float) -> Material:
    """A bundle's cloud model, and inputs for it. ``inputs`` and ``labels`` are relative to ``root``.

    fit_share: of the inputs, for what is chosen or trained by them; the others are for figures.

    Raises ArtifactError for a bundle that is damaged, ConfigError for inputs that it does not take or that are too few,
    labels that it has no classes for, and PassError for a model that cannot be cut.
    """
    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest
    if len(manifest.inputs) != 1:
        raise ConfigError(f"{manifest.name}: takes {len(manifest.inputs)} inputs; a bundle of one can be cut here")
    (tensor,) = manifest.inputs
    found = find(Where(path=inputs, labels=labels), root)
    if found.files:
        if manifest.preprocessing is None:
            raise ConfigError(
                f"--inputs: pictures, and {manifest.name} takes {tensor.name} {tensor.datatype}; give .npy"
            )
        found = _with_classes(decoded(found, manifest.preprocessing, root), manifest.classes)
    if found.count < FEWEST:
        raise ConfigError(f"--inputs: {found.count} are too few; at least {FEWEST} are needed")
    if found.labels is not None:
        check_labels(found.labels, len(manifest.classes))
    feed = Feed(found, tensor)
    row = feed.rows(np.zeros(1, np.int64))
    if row.ndim != len(tensor.shape) or any(
        size not in (-1, given) for size, given in zip(tensor.shape[1:], row.shape[1:], strict=True)
    ):
        raise ConfigError(f"--inputs: rows of {list(row.shape[1:])}, the bundle takes {list(tensor.shape[1:])}")
    file = manifest.cloud.files[0]
    whole = Whole(bundle.read(file), file, {tensor.name: row.shape})
    order = np.random.default_rng(0).permutation(found.count)
    first = int(fit_share * found.count)
    return Material(bundle, whole, feed, found.labels, order[:first], order[first:], found.sha256)


def _with_classes(found: Inputs, classes: tuple[str, ...]) -> Inputs:
    """Labels that are numbers of the bundle's classes. Raises ConfigError for a folder that is none of them."""
    if found.labels is None or not found.classes:
        return found
    numbers = {name: number for number, name in enumerate(classes)}
    if all(name.isdecimal() for name in (*found.classes, *classes)):
        numbers |= {name: int(name) for name in found.classes}
    strange = next((name for name in found.classes if name not in numbers), None)
    if strange is not None:
        raise ConfigError(f"--inputs: folder {strange!r} is none of the bundle's classes")
    of = np.array([numbers[name] for name in found.classes], np.int64)
    return replace(found, labels=of[found.labels], classes=classes)


def single(whole: Whole, index: int, trained: bool) -> tuple[Cut, str]:
    """A cut that one tensor of numbers crosses, and which. trained: whether the head there will not be run.

    Raises ConfigError that says which cuts would do.
    """
    cut = whole.at(index)
    wrong = _wrong(whole, cut, trained)
    if not wrong:
        return cut, cut.tensors[0]
    able = [each.index for each in whole.cuts if not _wrong(whole, each, trained)]
    others = f"cuts that will do: {', '.join(map(str, able))}" if able else "no cut of this model will do"
    raise ConfigError(f"--at: {wrong}; {others}")


def _wrong(whole: Whole, cut: Cut, trained: bool) -> str:
    """What a split cannot do with a cut; empty where it can."""
    if len(cut.tensors) > 1:
        return f"{len(cut.tensors)} tensors cross cut {cut.index} ({', '.join(cut.tensors)}), a split sends one"
    (name,) = cut.tensors
    measured = whole.measured[name]
    if not measured.datatype.startswith("FP") and (trained or measured.datatype not in OCTETS):
        needed = "real numbers" if trained else "real numbers, or whole ones of 8 bits,"
        return f"{name} at cut {cut.index} is {measured.datatype}, {needed} are needed"
    if not measured.rows:
        return f"{name} at cut {cut.index} does not count inputs in its first axis, so they cannot be sent one by one"
    if not trained and whole.head_operators(cut) <= HANDING_ON:
        return f"the head of cut {cut.index} only hands the input on; send the whole input instead"
    return ""
