"""Inputs that somebody brings along: pictures in folders, or arrays; read where they are, some rows at a time."""

from __future__ import annotations

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.own.plan import NO_LABELS
from edgemux.compression.own.plan import Inputs as Where
from edgemux.multiplexer.bundle import Preprocessing
from edgemux.multiplexer.errors import ConfigError, InputError

Array = NDArray[Any]
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LABELS = ("y", "labels", "label")
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Inputs:
    """``count`` inputs; ``take(index)`` gives some as one array [n, ...], ``names`` says what to call each in errors.

    labels: int64 [count], None when there are none. classes: names of the classes that the labels stand for, empty
    when they have none. files: the pictures, empty for arrays. sha256: of the content, whatever it is called.
    """

    count: int
    take: Callable[[NDArray[np.int64]], Array]
    sha256: str
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def find(where: Where, root: Path) -> Inputs:
    """Look at what is there; pictures are not decoded before ``decoded`` says how. Raises ConfigError."""
    path = root / where.path
    if path.is_dir():
        found = _folder(path, where)
    elif path.suffix == ".npy":
        found = _array(_opened(path), where, digest(path))
    elif path.suffix == ".npz":
        found = _archive(path, where)
    else:
        wanted = "a folder of pictures, an array (.npy) or arrays (.npz)"
        raise ConfigError(f"inputs: {where.path}: {f'not {wanted}' if path.exists() else 'not there'}")
    if where.labels == NO_LABELS:
        return replace(found, labels=None)
    if where.labels is not None:
        return replace(found, labels=_numbers(_opened(root / where.labels), f"labels: {where.labels}", found.count))
    return found


def decoded(inputs: Inputs, how: Preprocessing, root: Path) -> Inputs:
    """The pictures of a folder as UINT8 [n, height, width] or [n, height, width, 3], just as the servers decode them.

    ``take`` raises ConfigError naming a picture that does not decode.
    """
    try:
        from edgemux.wire.image import decode_images  # as the servers do, with what they need and arrays do not
    except ModuleNotFoundError as error:
        raise ConfigError(f"inputs: pictures need {error.name}: pip install '.[train,edge]' in a checkout") from error

    def one(path: Path) -> NDArray[np.uint8]:
        try:
            return decode_images("picture", [path.read_bytes()], how)[0]
        except (InputError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix("picture: ")
            raise ConfigError(f"inputs: {_short(path, root)}: {reason}") from error

    return replace(inputs, take=lambda index: np.stack([one(inputs.files[row]) for row in index]))


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def digest(*paths: Path) -> str:
    """sha256 in hex of the files' contents."""
    sha256 = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                sha256.update(block)
    return sha256.hexdigest()


def _folder(path: Path, where: Where) -> Inputs:
    """Pictures in sub-folders named by their class, or in no sub-folder."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    within = {folder.name: _pictures(folder.rglob("*")) for folder in folders}
    within = {name: files for name, files in within.items() if files}
    loose = _pictures(path.iterdir())
    if loose and within:
        raise ConfigError(f"inputs: {where.path}: pictures beside folders of pictures; have either")
    if not loose and not within:
        raise ConfigError(f"inputs: {where.path}: holds no {', '.join(PICTURES)} files")
    if loose:
        return Inputs(len(loose), _undecoded, digest(*loose), files=tuple(loose))
    classes = _ordered(tuple(within), where)
    numbers = {name: number for number, name in enumerate(classes)}
    files = [(file, numbers[name]) for name in within for file in within[name]]
    labels = np.array([label for _, label in files], np.int64)
    sha256 = hashlib.sha256(digest(*(file for file, _ in files)).encode() + labels.tobytes()).hexdigest()
    return Inputs(len(files), _undecoded, sha256, labels, classes, tuple(file for file, _ in files))


def _pictures(entries: Any) -> list[Path]:
    found = (entry for entry in entries if entry.suffix.lower() in PICTURES and not entry.name.startswith("."))
    return sorted(entry for entry in found if entry.is_file())


def _undecoded(index: NDArray[np.int64]) -> Array:
    raise AssertionError("pictures are decoded first")


def _ordered(names: tuple[str, ...], where: Where) -> tuple[str, ...]:
    """The classes in the order of the models' outputs: as the recipe says, by number, else by name."""
    if where.classes:
        strange = sorted(set(names) - set(where.classes))
        if strange:
            raise ConfigError(f"inputs: {where.path}: folder {strange[0]!r} is not among `$.inputs.classes`")
        return where.classes
    if all(name.isdecimal() for name in names):
        by_number = {int(name): name for name in names}
        return tuple(by_number.get(number, str(number)) for number in range(max(by_number) + 1))
    return tuple(sorted(names))


def _archive(path: Path, where: Where) -> Inputs:
    """The one array that holds no labels, with the one that does."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"inputs: {where.path}: not an archive of plain arrays") from error
    labels = [arrays.pop(name) for name in LABELS if name in arrays]
    if len(arrays) != 1:
        raise ConfigError(
            f"inputs: {where.path}: one array of inputs is needed, and one of labels named {', '.join(LABELS)}; "
            f"it holds {', '.join(sorted(arrays)) or 'no inputs'}"
        )
    found = _array(next(iter(arrays.values())), where, digest(path))
    if not labels:
        return found
    return replace(found, labels=_numbers(labels[0], f"labels: {where.path}", found.count))


def _opened(path: Path) -> Array:
    """An array file, mapped and not read. Raises ConfigError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path.name}: not there") from error
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path.name}: not a file of one plain array") from error
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{path.name}: not a file of one plain array")
    return array


def _array(array: Array, where: Where, sha256: str) -> Inputs:
    if array.ndim == 0 or not len(array):
        raise ConfigError(f"inputs: {where.path}: holds no rows")
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"inputs: {where.path}: numbers are needed, it holds {array.dtype}")
    return Inputs(len(array), lambda index: np.asarray(array[index]), sha256, classes=where.classes)


def _numbers(labels: Array, what: str, count: int) -> NDArray[np.int64]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ConfigError(f"{what}: {count} whole numbers are needed, found {labels.dtype} {list(labels.shape)}")
    return np.asarray(labels).astype(np.int64)
