"""Two users' models -> the ONNX files of a bundle: the same inputs, the same classes, calibrated probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression.models import CLOUD, REPORT, Exported, level_file
from edgemux.compression.own.answers import check_finite
from edgemux.compression.own.entry import Entry, array_entry, picture_entry, preprocessing
from edgemux.compression.own.feed import Feed, check_labels
from edgemux.compression.own.given import Given
from edgemux.compression.own.inputs import Inputs, decoded
from edgemux.compression.own.plan import Picture, Plan
from edgemux.compression.own.wrap import Wrapped, kind_of, logits_of, wrap
from edgemux.compression.verify import self_contained
from edgemux.multiplexer.bundle import Preprocessing
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.calibrate import temperature

# Enough for one number, and few enough for a large cloud model.
TEMPERATURE_ROWS = 2000


@dataclass(frozen=True)
class Pair:
    """Device and cloud with their ways in, and how encoded pictures are decoded, None where there are none."""

    device: Given
    cloud: Given
    device_entry: Entry
    cloud_entry: Entry
    preprocessing: Preprocessing | None


def paired(plan: Plan, device: Given, cloud: Given, inputs: Inputs, root: Path) -> tuple[Pair, Inputs]:
    """How both models take the inputs; and the inputs, which are decoded now if they are pictures.

    Raises ConfigError naming the file when a model does not take them, or not what the other takes.
    """
    how = plan.preprocessing if plan.preprocessing is not None or not inputs.files else Picture()
    if how is None:
        shape = inputs.take(np.zeros(1, np.int64)).shape[1:]
        entries = array_entry(device, shape), array_entry(cloud, shape)
        if device.datatype != cloud.datatype:
            raise ConfigError(f"{cloud.file}: takes {cloud.datatype}, {device.file} takes {device.datatype}")
        named = Entry(entries[0].tensor)  # the cloud's own name for it is not needed
        return Pair(device, cloud, named, named, None), inputs
    made = preprocessing(how, device)
    device_entry, cloud_entry = picture_entry(how, made, device), picture_entry(how, made, cloud)
    if inputs.files:
        return Pair(device, cloud, device_entry, cloud_entry, made), decoded(inputs, made, root)
    _check_pixels(inputs, device_entry)
    return Pair(device, cloud, device_entry, cloud_entry, made), inputs


def _check_pixels(inputs: Inputs, entry: Entry) -> None:
    row = inputs.take(np.zeros(1, np.int64))
    wanted = entry.tensor.shape[1:]
    if row.dtype != np.uint8 or row.shape[1:] not in (wanted, (*wanted, 1)):
        raise ConfigError(
            f"inputs: [preprocessing] needs pictures as uint8 {['n', *wanted]}, they are {row.dtype} "
            f"{['n', *row.shape[1:]]}"
        )


def write(pair: Pair, feed: Feed, inputs: Inputs, index: NDArray[np.int64], folder: Path) -> None:
    """Write ``level1.onnx``, ``cloud.onnx`` and ``models.json``; temperatures are fitted on the rows ``index``.

    Raises ConfigError naming a file that does not fit the other or answers NaN, or labels or classes that it lacks.
    """
    labels = inputs.labels
    index = index[:TEMPERATURE_ROWS]
    device, cloud = (
        wrap(given, entry, feed.rows(index[:3]))
        for given, entry in ((pair.device, pair.device_entry), (pair.cloud, pair.cloud_entry))
    )
    raw_device, raw_cloud = _raw(device, feed, index), _raw(cloud, feed, index)
    kinds = kind_of(raw_device), kind_of(raw_cloud)
    at_device, at_cloud = logits_of(raw_device, kinds[0]), logits_of(raw_cloud, kinds[1])
    if at_device.shape != at_cloud.shape:
        raise ConfigError(
            f"{pair.cloud.file}: answers {at_cloud.shape[1]} classes, {pair.device.file} answers {at_device.shape[1]}"
        )
    if labels is not None:
        check_labels(labels, at_cloud.shape[1])
    class_names(inputs, at_cloud.shape[1])
    truth = at_cloud.argmax(axis=1) if labels is None else labels[index]
    # Without labels the cloud is right by definition, and no temperature says how sure it may be.
    cooled = temperature(at_device, truth), 1.0 if labels is None else temperature(at_cloud, truth)
    for made, kind, value, name in zip((device, cloud), kinds, cooled, (level_file(1), CLOUD), strict=True):
        graph = made.finished(kind, value)
        self_contained(name, graph)
        (folder / name).write_bytes(graph.SerializeToString(deterministic=True))
    verdicts = {
        f"{role}: answer": f"{made.given.file} answers {kind} in {made.output!r}; temperature {value:.3g}"
        for role, made, kind, value in zip(("device", "cloud"), (device, cloud), kinds, cooled, strict=True)
    }
    measured = {"level1_temperature": cooled[0], "cloud_temperature": cooled[1]}
    report = Exported("as given", "as given", verdicts, measured)
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


def _raw(made: Wrapped, feed: Feed, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """What a model answers to rows of the inputs, as it is. Raises ConfigError naming its file."""
    model = OnnxModel(made.raw().SerializeToString(), made.given.file)
    try:
        raw: NDArray[np.float32] = feed.answers(model, index)
    except ConfigError:
        raise
    except Exception as error:  # with any of the library's types
        raise ConfigError(f"{made.given.file}: fails on the inputs given") from error
    check_finite(made.given.file, raw)
    return raw


def class_names(inputs: Inputs, classes: int) -> tuple[str, ...]:
    """A name for each class that the models answer. Raises ConfigError when there are others than these."""
    if not inputs.classes:
        return tuple(str(number) for number in range(classes))
    if all(name.isdecimal() for name in inputs.classes) and len(inputs.classes) <= classes:
        return tuple(str(number) for number in range(classes))
    if len(inputs.classes) != classes:
        raise ConfigError(
            f"inputs: {len(inputs.classes)} classes, the models answer {classes}; name all in `$.inputs.classes`"
        )
    # The protocol's metadata has one string for all names.
    if any("," in name for name in inputs.classes):
        raise ConfigError("inputs: the name of a class holds a comma")
    return inputs.classes
