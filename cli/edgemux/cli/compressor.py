"""`edgemux compress`: a model and data from the command line, a recipe or a need, an artifact in a folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgemux.compression import data as datasets
from edgemux.compression import passes
from edgemux.compression.artifact import Artifact
from edgemux.compression.pass_recipe import PassRecipe
from edgemux.compression.pipeline import compress
from edgemux.compression.recipe_search import Found, Need, search
from edgemux.compression.samples import Samples
from edgemux.multiplexer.errors import ArtifactError, ConfigError

SET = "fashion-mnist"
SEED = 0
HELD_OUT = 5000


def model_of(text: str, weights: Path | None) -> Any:
    """The path of an ONNX file, or the net that ``package.module:callable`` makes, with weights if given.

    Raises ConfigError when there is no such thing, ArtifactError for weights that are not of this net.
    """
    module_name, colon, attribute = text.partition(":")
    if not colon:
        if not text.endswith(".onnx"):
            raise ConfigError(f"model: {text!r} is neither an .onnx file nor package.module:callable")
        if weights is not None:
            raise ConfigError("--weights: an ONNX file has its own")
        return Path(text)
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        net = getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"model: {text!r} cannot be called without arguments ({error})") from error
    finally:
        sys.path.pop(0)
    if not isinstance(net, torch.nn.Module):
        raise ConfigError(f"model: {text!r} makes a {type(net).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(net, weights)
    return net


def _load_weights(net: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"--weights: {path}: no such file")
    try:
        net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:  # unpickling refused, or keys and shapes that differ
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{path.name}: not a state_dict of this net ({reason[:160]})") from error


def samples_of(text: str) -> Samples:
    """``fashion-mnist``, or an .npz file with train_x, train_y, test_x and test_y."""
    if text != SET:
        return Samples.of(Path(text))
    images = datasets.load(SET, HELD_OUT, SEED)
    return Samples.of_splits(images.train, images.test)


def by_recipe(
    model: Any, data: str, recipe: str, target: str, effort: float, out: Path, tell: Callable[[str], None]
) -> Artifact:
    """Compress by a recipe (text, or the path of a TOML file) and save."""
    steps = PassRecipe.of(Path(recipe) if recipe.endswith(".toml") else recipe)
    Artifact.check_place(out)
    artifact = compress(model, samples_of(data), steps, target, effort=effort, tell=tell)
    artifact.save(out)
    return artifact


def by_need(
    model: Any, data: str, need: str, budget: str, target: str, effort: float, out: Path, tell: Callable[[str], None]
) -> Found:
    """Search for recipes; save the most accurate that keeps the need, where there is one."""
    wanted = Need.of(need)
    Artifact.check_place(out)
    found = search(model, samples_of(data), wanted, budget, target, effort=effort, tell=tell)
    if found.best is not None:
        found.best.artifact.save(out)
    return found


def passes_for_people() -> str:
    """A line a pass: its parameters with their defaults, and what it promises."""
    lines = []
    for name in passes.known():
        kind = passes.kind_of(name)
        fields = [f"{field.encode_name}={_shown(field)}" for field in msgspec.structs.fields(kind)]
        gives = ", ".join(sorted(kind.gives)) or "prepares for another"
        lines.append(f"{name}({', '.join(fields)})  —  {kind.stage}; gives: {gives}")
    return "\n".join(lines)


def _shown(field: Any) -> str:
    value = field.default
    return "required" if value is msgspec.NODEFAULT else str(value).lower() if isinstance(value, bool) else str(value)
