"""How a bundle's input becomes a user's model's: as it is, or from the pixels of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgemux.compression.glance import KINDS
from edgemux.compression.graph import Graph
from edgemux.compression.own.given import Given
from edgemux.compression.own.plan import Picture
from edgemux.multiplexer.bundle import Preprocessing, Tensor
from edgemux.multiplexer.errors import ConfigError

CHANNELS = {"L": 1, "RGB": 3}
PICTURE = "image"
# Names that bundles use for other things.
TAKEN = ("probabilities", "label", "scores", "scores_after", "level", "level1", "cloud")


@dataclass(frozen=True)
class Entry:
    """tensor: the bundle's input. picture and layout: set where it is a picture that the model takes as numbers."""

    tensor: Tensor
    picture: Picture | None = None
    layout: str = ""


def preprocessing(how: Picture, device: Given) -> Preprocessing:
    """What is left out of ``how`` follows from the model's input. Raises ConfigError naming the file."""
    channels, height, width, _ = _axes(how, device)
    mode = how.mode or {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ConfigError(f"{device.file}: takes {_spelt(device)}, and pictures have 1 or 3 channels")
    sizes = (how.height or height, how.width or width)
    if -1 in sizes:
        raise ConfigError(f"{device.file}: leaves the size of pictures open; set height and width in [preprocessing]")
    for name in ("mean", "std"):
        if len(getattr(how, name)) not in (1, CHANNELS[mode]):
            raise ConfigError(f"preprocessing: {name} needs one number, or one for each of {CHANNELS[mode]} channels")
    return Preprocessing(mode, *sizes, how.resample, how.invert)


def picture_entry(how: Picture, made: Preprocessing, given: Given) -> Entry:
    """A picture for this model. Raises ConfigError naming the file when the model takes something else."""
    channels, height, width, layout = _axes(how, given)
    wanted = (CHANNELS[made.mode], made.height, made.width)
    found = tuple(size if open_ == -1 else open_ for open_, size in zip((channels, height, width), wanted, strict=True))
    if found != wanted or (layout == "flat" and given.shape[1] not in (-1, int(np.prod(wanted)))):
        raise ConfigError(
            f"{given.file}: takes {_spelt(given)}, pictures here are {made.mode} {made.height}x{made.width}"
        )
    if not given.datatype.startswith("FP") and given.datatype != "UINT8":
        raise ConfigError(f"{given.file}: takes {_spelt(given)}; pictures can be had as floats or UINT8")
    shape = (-1, made.height, made.width, *((3,) if made.mode == "RGB" else ()))
    return Entry(Tensor(PICTURE, "UINT8", shape), how, layout)


def array_entry(given: Given, shape: tuple[int, ...]) -> Entry:
    """Rows of ``shape``, under the model's own name for them. Raises ConfigError naming the file.

    Sizes that the model leaves open are those of the rows at hand: these are what gets certified.
    """
    fits = len(shape) == len(given.shape) - 1 and all(
        wanted in (-1, size) for size, wanted in zip(shape, given.shape[1:], strict=True)
    )
    if not fits:
        raise ConfigError(f"{given.file}: takes {_spelt(given)}, a row of the inputs is {list(shape)}")
    plain = given.input.isidentifier() and given.input not in TAKEN
    return Entry(Tensor(given.input if plain else "input", given.datatype, (-1, *shape)))


def enter(graph: Graph, entry: Entry, given: Given, to: str) -> None:
    """Append the nodes from the bundle's input to the model's, which is called ``to``."""
    name = graph.input(entry.tensor.name, KINDS[entry.tensor.datatype], entry.tensor.shape[1:])
    how = entry.picture
    if how is None:
        graph.add("Identity", name, to=to)
        return
    x = name
    if given.datatype != "UINT8":
        mean, std = (np.array(values, np.float64) for values in (how.mean, how.std))
        x = graph.add("Cast", x, to_type=TensorProto.FLOAT)
        x = graph.add("Mul", x, graph.constant((how.scale / std).astype(np.float32)))
        x = graph.add("Add", x, graph.constant((-mean / std).astype(np.float32)))
    x = _laid_out(graph, x, entry, len(given.shape))
    graph.add("Cast", x, to=to, to_type=KINDS[given.datatype])


def _laid_out(graph: Graph, x: str, entry: Entry, rank: int) -> str:
    """Pixels [n, h, w] or [n, h, w, 3] in the model's own order."""
    colour = len(entry.tensor.shape) == 4
    if entry.layout == "NHWC":
        return x if colour else graph.add("Unsqueeze", x, graph.constant(np.array([3], np.int64)))
    if colour:
        x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    elif rank == 4:
        x = graph.add("Unsqueeze", x, graph.constant(np.array([1], np.int64)))
    return graph.add("Flatten", x, axis=1) if entry.layout == "flat" else x


def _axes(how: Picture, given: Given) -> tuple[int, int, int, str]:
    """Channels, height, width and layout of a model's input, -1 for what it leaves open. Raises ConfigError."""
    sizes = given.shape[1:]
    channels = CHANNELS.get(how.mode or "", -1)
    if len(sizes) == 1 and how.height and how.width:
        count = channels if channels > 0 else sizes[0] // (how.height * how.width)
        return count, how.height, how.width, "flat"
    if len(sizes) == 2:
        return 1, *sizes, "NHW"
    if len(sizes) == 1:
        raise ConfigError(f"{given.file}: takes {_spelt(given)}; set height and width in [preprocessing] for a picture")
    if len(sizes) != 3:
        raise ConfigError(f"{given.file}: takes {_spelt(given)}, which is not a picture")
    last = how.layout == "NHWC" or (how.layout is None and sizes[0] not in (1, 3) and sizes[2] in (1, 3))
    return (sizes[2], *sizes[:2], "NHWC") if last else (*sizes, "NCHW")


def _spelt(given: Given) -> str:
    return f"{given.input} {given.datatype} {list(given.shape)}"
