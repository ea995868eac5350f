"""A recipe for models that are there already: two ONNX files and inputs; everything else has a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgemux.compression.recipe import Certify, Gates, Name, Pack, Positive, Section, decoded, read
from edgemux.multiplexer.errors import ConfigError

NO_LABELS = "none"


class Models(Section, frozen=True, kw_only=True):
    """ONNX files: the device's and the cloud's. Paths are relative to the recipe."""

    device: str
    cloud: str


class Inputs(Section, frozen=True, kw_only=True):
    """What the models are asked. path: a folder of pictures, an array (.npy) or arrays (.npz).

    labels: a .npy file of class numbers, by default what ``path`` itself says (sub-folders, or an array of labels);
    "none" to use none. classes: their names, in the order of the models' outputs.
    """

    path: str
    labels: str | None = None
    classes: tuple[str, ...] = ()


class Picture(Section, frozen=True, kw_only=True):
    """How a picture becomes what the models were trained on: value = (pixel * scale - mean) / std.

    What is left out follows from the models' inputs. mean, std: one number, or one a channel. layout: of the models'
    input, "flat" for a row of pixels, channel by channel.
    """

    mode: Literal["L", "RGB"] | None = None
    height: Positive | None = None
    width: Positive | None = None
    resample: Literal["nearest", "bilinear"] = "bilinear"
    invert: bool = False
    scale: Annotated[float, Meta(gt=0.0)] = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Meta(gt=0.0)], ...] = (1.0,)
    layout: Literal["NCHW", "NHWC", "flat"] | None = None


class Plan(Section, frozen=True, kw_only=True):
    """A whole recipe; ``name`` is the bundle's, by default the recipe's file name."""

    models: Models
    inputs: Inputs
    name: Name | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    preprocessing: Picture | None = None
    gates: Gates = Gates()
    certify: Certify = Certify()
    pack: Pack = Pack()


def is_plan(path: Path) -> bool:
    """Whether a recipe is of this kind: it has ``[models]``. Raises ConfigError when it is no TOML at all."""
    return "models" in decoded(read(path), dict, path.name)


def load(path: Path) -> Plan:
    """Read a recipe. Raises ConfigError naming the key that is wrong."""
    plan = decoded(read(path), Plan, path.name)
    check(plan, path.name)
    return plan if plan.name is not None else msgspec.structs.replace(plan, name=name_of(path))


def check(plan: Plan, name: str) -> None:
    """What the types cannot say. Raises ConfigError."""
    if len(plan.certify.alpha) != 1:
        raise ConfigError(f"{name}: one alpha is needed - at `$.certify.alpha`")


def name_of(path: Path) -> str:
    """A bundle's name made of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "own"


def without_places(plan: Plan) -> Plan:
    """The same with file names in place of paths: what may be told, or digested, of a plan."""
    change, name = msgspec.structs.replace, lambda path: Path(path).name
    labels = plan.inputs.labels and name(plan.inputs.labels)
    return change(
        plan,
        models=Models(device=name(plan.models.device), cloud=name(plan.models.cloud)),
        inputs=change(plan.inputs, path=name(plan.inputs.path), labels=labels),
    )


def quick(plan: Plan) -> Plan:
    """The same with a short fit of the gates and few timings."""
    change = msgspec.structs.replace
    return change(plan, gates=change(plan.gates, steps=200), pack=change(plan.pack, repeats=20))
