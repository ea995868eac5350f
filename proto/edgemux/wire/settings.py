"""A process's settings: one TOML file, decoded into frozen structs, with the command line on top.

Unknown keys are errors: a misspelt limit that is silently ignored is worse than a process that does not start.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from edgemux.multiplexer.errors import ConfigError

T = TypeVar("T")

# msgspec's messages, read only to name the key the way a user writes it.
_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<at>.*)`)?$", re.DOTALL)
_INDEX = re.compile(r"\[[^]]*\]")
_FIELD = re.compile(r"^Object (?P<what>contains unknown|missing required) field `(?P<name>[^`]*)`$")


def load_settings(kind: type[T], path: Path | None, overrides: Mapping[str, Any]) -> T:
    """Decode the TOML file ``path`` (None: an empty one) into ``kind``, ``overrides`` first.

    Override keys are dotted, "listen.grpc_port"; a value of None leaves the file's. Raises ConfigError naming the
    file, or the key and what is wrong with it.
    """
    settings = {} if path is None else _read(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    for key, value in given.items():
        _put(settings, key, value)
    _complete(settings, kind)
    try:
        return msgspec.convert(settings, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        key, reason = _explain(str(error), kind)
        source = "" if path is None or key in given else f"{path}: "
        raise ConfigError(f"{source}{key}: {reason}" if key else f"{source}{reason}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path}: not a TOML file ({error})") from error


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the tables on its way."""
    *tables, name = key.split(".")
    at = settings
    for depth, table in enumerate(tables):
        inner = at.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(tables[: depth + 1])}: must be a table")
        at = inner
    at[name] = value


def _complete(settings: dict[str, Any], kind: type) -> None:
    """Fill tables that are given in part from the struct's own default, which may differ from its type's."""
    for field in msgspec.structs.fields(kind):
        given = settings.get(field.encode_name)
        if isinstance(given, dict) and isinstance(field.default, msgspec.Struct):
            for key, value in msgspec.to_builtins(field.default, enc_hook=str).items():
                given.setdefault(key, value)


def _decode(kind: type, value: Any) -> Any:
    """What TOML has no type for: paths. msgspec turns the TypeError into its own error, with the place."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected a path, got {type(value).__name__}")


def _explain(message: str, kind: type) -> tuple[str, str]:
    """(dotted key, reason) of one of msgspec's validation messages about a ``kind``."""
    found = _AT.match(message)
    assert found is not None  # the pattern matches any text
    at, reason = found["at"] or "", found["reason"]
    field = _FIELD.match(reason)
    if field is None:
        words = _words(kind, _INDEX.sub("", at).split(".")) if reason.startswith("Invalid enum value") else []
        choices = f"; known are {', '.join(words)}" if words else ""
        return at, reason[:1].lower() + reason[1:] + choices
    key = f"{at}.{field['name']}" if at else field["name"]
    return key, "no such setting" if field["what"] == "contains unknown" else "missing"


def _words(kind: Any, keys: Sequence[str]) -> list[str]:
    """What the setting at ``keys``, from ``kind`` on, may be, where that is a word out of a few."""
    if get_origin(kind) is Literal:
        return [] if keys else [str(word) for word in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        inner = get_type_hints(kind).get(keys[0]) if keys else None
        return _words(inner, keys[1:])
    return [word for each in get_args(kind) for word in _words(each, keys)]
