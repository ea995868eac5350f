"""The offline toolchain: recipes that turn a full model into a bundle, and passes that compress any classifier.

What is named here is the API. It is imported on use: a device without torch can still ask what hardware it is.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "compress": "pipeline",
    "Artifact": "artifact",
    "PassRecipe": "pass_recipe",
    "Samples": "samples",
    "family": "nested_models",
    "search": "recipe_search",
    "Need": "recipe_search",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
