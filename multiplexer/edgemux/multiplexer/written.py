"""Things with parameters as text: ``prune(lasso, 0.5)``, ``max-softmax(threshold=0.9)``; and their making, checked.

Values are numbers, true, false, words and quoted text; by position first, then by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from edgemux.multiplexer.errors import ConfigError

T = TypeVar("T")
CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Written(msgspec.Struct, frozen=True):
    """A name and the parameters that were written behind it."""

    name: str
    positional: tuple[Any, ...]
    named: Mapping[str, Any]


def read(text: str, where: str, what: str, example: str) -> Written:
    """Parse one call. ``where`` opens every message, ``what`` is wanted there. Raises ConfigError."""
    match = CALL.fullmatch(text)
    if match is None:
        raise ConfigError(f"{where}: {text.strip()!r} is not a {what}; write it like {example}")
    name, inside = match.groups()
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in split_outside(inside, ",") if inside and inside.strip() else []:
        key, equals, value = part.partition("=")
        if not equals:
            if named:
                raise ConfigError(f"{where}: {name}: {part.strip()!r} must come before the named parameters")
            positional.append(_value(where, name, part))
        elif key.strip() in named:
            raise ConfigError(f"{where}: {name} gets {key.strip()!r} twice")
        else:
            named[key.strip()] = _value(where, name, value)
    return Written(name, tuple(positional), named)


def make(kind: Callable[..., T], written: Written, where: str, allowed: list[str], needed: list[str]) -> T:
    """``kind`` with the written parameters; a msgspec struct's are checked by its types.

    Raises ConfigError that says which parameter is unknown, missing or out of range, and what is allowed.
    """
    name, positional = written.name, written.positional
    if len(positional) > len(allowed):
        raise ConfigError(f"{where}: {name} takes at most {len(allowed)} parameters: {', '.join(allowed) or 'none'}")
    values = dict(zip(allowed, positional, strict=False))
    for key, value in written.named.items():
        if key not in allowed:
            raise ConfigError(f"{where}: {name} has no parameter {key!r}; it has {', '.join(allowed) or 'none'}")
        if key in values:
            raise ConfigError(f"{where}: {name} gets {key!r} twice")
        values[key] = value
    missing = [key for key in needed if key not in values]
    if missing:
        raise ConfigError(f"{where}: {name} needs {', '.join(missing)}")
    try:
        # The cast: mypy loses T where a callable turns out to be a class.
        typed = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        return cast(T, msgspec.convert(values, cast(Any, kind)) if typed else kind(**values))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name}: {error}") from error


def split_outside(text: str, separator: str) -> list[str]:
    """Split at separators that are in no brackets and no quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "()":
            depth += 1 if sign == "(" else -1
        elif sign == separator and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _value(where: str, name: str, text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if NUMBER.fullmatch(text):
        return float(text) if any(sign in text for sign in ".eE") else int(text)
    if WORD.fullmatch(text):
        return text
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        return text[1:-1]
    raise ConfigError(f"{where}: {name}: {text!r} is no number, word, true, false or quoted text")
