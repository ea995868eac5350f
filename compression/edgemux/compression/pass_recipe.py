"""A recipe of passes as a value: hashable, printable, and the same as text, as a list and as TOML.

Text: ``prune(lasso, 0.5) > distill(T=4) > int8``. Values are numbers, true, false, words and quoted text; a ``!``
after a pass keeps it even when measurement speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgemux.compression import passes
from edgemux.compression.passes import Pass
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.written import WORD, read, split_outside


class Step(msgspec.Struct, frozen=True):
    """One pass of a recipe; ``forced``: kept even when it makes the model slower."""

    what: Pass
    forced: bool = False

    def __str__(self) -> str:
        parts = []
        for item in msgspec.structs.fields(type(self.what)):
            value = getattr(self.what, item.name)
            if value != item.default:
                parts.append(f"{item.encode_name}={_printed(value)}")
        inside = f"({', '.join(parts)})" if parts else ""
        return f"{self.what.label}{inside}{'!' if self.forced else ''}"


class PassRecipe(msgspec.Struct, frozen=True):
    """Steps, in order. ``str`` gives a text that reads back as an equal recipe."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return " > ".join(map(str, self.steps))

    def prefixes(self) -> list[PassRecipe]:
        """Every beginning of the recipe, shortest first: what its results are cached by."""
        return [PassRecipe(self.steps[:end]) for end in range(1, len(self.steps) + 1)]

    @classmethod
    def of(cls, recipe: PassRecipe | str | Path | Iterable[Any]) -> PassRecipe:
        """A recipe from itself, text, a TOML file, or a list of texts, tables and passes.

        A table is ``{pass = "distill", T = 4}``, with ``force = true`` for the exclamation mark; a TOML file has the
        list under ``passes``. Raises ConfigError naming what is unknown and what is allowed.
        """
        if isinstance(recipe, PassRecipe):
            return recipe
        if isinstance(recipe, Path):
            return cls.of(_passes_of(recipe))
        if isinstance(recipe, str):
            texts = split_outside(recipe, ">")
            if any(not text.strip() for text in texts):
                raise ConfigError(f"recipe: {recipe!r} lacks a pass; write it like prune(lasso, 0.5) > int8")
            return cls(tuple(map(_step, texts)))
        return cls(tuple(_step(item) for item in recipe))


def _step(item: Any) -> Step:
    if isinstance(item, Step):
        return item
    if isinstance(item, Pass):
        return Step(item)
    if isinstance(item, Mapping):
        named = dict(item)
        name, forced = named.pop("pass", None), named.pop("force", False)
        if not isinstance(name, str) or not isinstance(forced, bool):
            raise ConfigError('recipe: a table names its pass, like {pass = "distill", T = 4}')
        return Step(passes.make(name, (), named), forced)
    if not isinstance(item, str):
        raise ConfigError(f"recipe: {item!r} is no pass; give text, a table or a pass")
    return _parsed(item)


def _parsed(text: str) -> Step:
    bare = text.rstrip()
    forced = bare.endswith("!")
    call = read(bare[:-1] if forced else bare, "recipe", "pass", "prune(lasso, 0.5)")
    return Step(passes.make(call.name, call.positional, call.named), forced)


def _printed(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and (not WORD.fullmatch(value) or value in ("true", "false")):
        return f'"{value}"' if '"' not in value else f"'{value}'"
    return str(value)


def _passes_of(path: Path) -> list[Any]:
    try:
        content = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not a TOML file ({error})") from error
    listed = content.get("passes")
    if not isinstance(listed, list) or set(content) != {"passes"}:
        raise ConfigError(f'{path.name}: needs one list, passes = ["prune(lasso, 0.5)", {{pass = "int8"}}]')
    return listed
