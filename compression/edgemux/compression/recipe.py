"""A recipe: everything that decides what a build produces, as one TOML file.

Decoded into frozen structs that refuse unknown keys, so a misspelt setting is an error and not a silent default.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from edgemux.multiplexer.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]
T = TypeVar("T")
Share = Annotated[float, Meta(gt=0.0, lt=1.0)]
# A smaller risk needs more inputs than anybody has.
Risk = Annotated[float, Meta(ge=1e-9, lt=1.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all sections of a recipe share: frozen, and no unknown keys."""


class Data(Section, frozen=True, kw_only=True):
    """Which images, and how many training images (stratified) no model may see.

    limit: use only this many training images and this many test images, for quick builds.
    """

    set: str
    held_out: Positive
    limit: Positive | None = None


class Augment(Section, frozen=True, kw_only=True):
    """Random changes of a training image. shift_px: largest shift; erase: P(a rectangle is overwritten with noise)."""

    flip: bool = True
    shift_px: Annotated[int, Meta(ge=0, le=8)] = 2
    erase: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    erase_px: Annotated[int, Meta(ge=1, le=20)] = 10


class Schedule(Section, frozen=True, kw_only=True):
    """SGD with Nesterov momentum under a one-cycle learning rate."""

    epochs: Positive
    batch: Positive
    peak_rate: Annotated[float, Meta(gt=0.0)]
    momentum: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.9
    weight_decay: NonNegative = 5e-4
    warm_up: Share = 0.2
    bf16: bool = True


class Cloud(Section, frozen=True, kw_only=True):
    """The full model: stem, body and head widths in channels, and how it is trained."""

    widths: tuple[Positive, Positive, Positive]
    blocks: tuple[Positive, Positive]
    label_smoothing: Annotated[float, Meta(ge=0.0, lt=1.0)]
    schedule: Schedule
    augment: Augment


class Family(Section, frozen=True, kw_only=True):
    """The nested device models: channels of each layer per level (cumulative), and how they learn from the cloud's.

    distill: share of the loss that follows the teacher; temperature_t: softening of both sides (Hinton et al. 2015).
    quantise_last: share of the epochs, at the end, that are trained with int8-rounded weights.
    """

    conv1: tuple[Positive, ...]
    conv2: tuple[Positive, ...]
    conv3: tuple[Positive, ...]
    conv4: tuple[Positive, ...]
    loss_weights: tuple[float, ...]
    distill: Annotated[float, Meta(ge=0.0, le=1.0)]
    temperature_t: Annotated[float, Meta(gt=0.0)]
    quantise_last: Annotated[float, Meta(ge=0.0, le=1.0)]
    schedule: Schedule
    augment: Augment

    @property
    def levels(self) -> int:
        """How many levels the family has."""
        return len(self.conv1)


class Gates(Section, frozen=True, kw_only=True):
    """The two gates: hidden units, and their fit. members: nets whose mean the post-gate is, each of post_hidden units.

    steps: by default what 64 passes over the rows take, or fewer.
    """

    pre_hidden: Positive = 16
    post_hidden: Positive = 32
    members: Positive = 2
    steps: Positive | None = None
    rate: Annotated[float, Meta(gt=0.0)] = 0.003
    weight_decay: NonNegative = 0.01
    skip_agreement: Share = 0.9


class Certify(Section, frozen=True, kw_only=True):
    """What to certify per level: P(kept on the device, differs from the cloud) <= alpha, confidence 1 - delta."""

    alpha: tuple[Risk, ...] = (0.05,)
    delta: Risk = 0.1
    grid: Positive = 200


class Quantise(Section, frozen=True, kw_only=True):
    """Which compressions to try. Each is kept only where it pays: at most max_loss of accuracy, no more time.

    static_int8: int8 arithmetic in the cloud model; "measure" puts its figures among the verdicts and keeps float32.
    """

    weights_int8: bool
    static_int8: Literal["off", "measure", "use"]
    max_loss: NonNegative


class Pack(Section, frozen=True, kw_only=True):
    """What goes beside the models. samples: stratified test images; golden: inputs with recorded outputs."""

    version: str = "1"
    samples: Annotated[int, Meta(ge=0)] = 200
    golden: Positive = 8
    repeats: Positive = 100


class Recipe(Section, frozen=True, kw_only=True):
    """A whole recipe."""

    name: Name
    seed: Annotated[int, Meta(ge=0)]
    data: Data
    cloud: Cloud
    family: Family
    gates: Gates
    certify: Certify
    quantise: Quantise
    pack: Pack


def load(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigError naming the key that is wrong."""
    recipe = decoded(read(path), Recipe, path.name)
    _check(recipe, path.name)
    return recipe


def read(path: Path) -> bytes:
    """The bytes of a recipe. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def decoded(content: bytes, kind: type[T], name: str) -> T:
    """A TOML file as a ``kind``. Raises ConfigError naming the file and the key that is wrong."""
    try:
        return msgspec.toml.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not a TOML file ({error})") from error


def _check(recipe: Recipe, name: str) -> None:
    """What the types cannot say: widths rise with the level, and every per-level list has one entry per level."""
    family = recipe.family
    for key in ("conv1", "conv2", "conv3", "conv4"):
        widths: tuple[int, ...] = getattr(family, key)
        if len(widths) != family.levels:
            raise ConfigError(f"{name}: {len(widths)} widths for {family.levels} levels - at `$.family.{key}`")
        if any(low >= high for low, high in pairwise(widths)):
            raise ConfigError(f"{name}: widths must rise from level to level - at `$.family.{key}`")
    if len(family.loss_weights) != family.levels:
        raise ConfigError(f"{name}: one weight per level is needed - at `$.family.loss_weights`")
    if len(recipe.certify.alpha) not in (1, family.levels):
        raise ConfigError(f"{name}: one alpha, or one per level, is needed - at `$.certify.alpha`")


def quick(recipe: Recipe) -> Recipe:
    """The same recipe on a few images for one or two epochs: every stage for real, in a minute or so."""
    change = msgspec.structs.replace
    return change(
        recipe,
        data=change(recipe.data, limit=3000, held_out=1000),
        cloud=change(recipe.cloud, schedule=change(recipe.cloud.schedule, epochs=2, batch=64)),
        family=change(recipe.family, schedule=change(recipe.family.schedule, epochs=4, batch=64)),
        gates=change(recipe.gates, steps=100),
        pack=change(recipe.pack, samples=min(recipe.pack.samples, 100), repeats=50),
    )


def digest(*parts: object) -> str:
    """sha256 in hex of the canonical JSON of the given values: what caches and bundles are keyed by."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()
