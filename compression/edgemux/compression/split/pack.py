"""A bundle and the two halves of a model -> the bundle with one more split, sealed again."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression.places import check_place, replacing
from edgemux.multiplexer.bundle import MANIFEST, Bundle, File, Manifest, Split, seal, splits_of
from edgemux.multiplexer.chain import PROBABILITIES, Chain, Golden, probabilities
from edgemux.multiplexer.codes import GoldenCodes, within
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import Array, OnnxModel


def add_split(bundle_dir: Path, out_dir: Path, split: Split, head_bytes: bytes, tail_bytes: bytes) -> Manifest:
    """Write the bundle of ``bundle_dir`` with one more split into ``out_dir``, which may be the same folder.

    Returns the manifest. The split's files get the names that it has for them; one that the bundle has already must be
    the same. What both halves make of the golden inputs is put beside them (``Split.golden``). Whatever is wrong,
    ``out_dir`` stays as it was. Raises ConfigError for a place or file name that cannot be used, ArtifactError for a
    bundle that is damaged, a split that makes no sense, halves that do not fit it or fail on the golden inputs.
    """
    check_place(out_dir, MANIFEST, "not a bundle")
    source = Bundle.open(bundle_dir)
    source.verify()
    manifest = source.manifest
    listed = {file.path: file for file in manifest.files}
    with replacing(out_dir) as part:
        for path in listed:
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / path, part / path)
        for name, content in ((split.head, head_bytes), (split.tail, tail_bytes)):
            _check_name(name)
            if name in listed and (part / name).read_bytes() != content:
                raise ConfigError(f"{name}: the bundle has another file of that name")
            listed[name] = listed.get(name) or File(name, 0, "")
            (part / name).write_bytes(content)
        plain = msgspec.structs.replace(split, golden=msgspec.UNSET)
        sealed = _sealed(part, manifest, plain, tuple(listed.values()))
        made = _made(Bundle.open(part), plain)
        golden = golden_file(split)
        _check_name(golden)
        if golden in listed:
            raise ConfigError(f"{golden}: the bundle has a file of that name")
        np.savez_compressed(part / golden, allow_pickle=False, **made.arrays())
        files = (*sealed.files, File(golden, 0, ""))
        sealed = _sealed(part, manifest, msgspec.structs.replace(split, golden=golden), files)
        check_split(Bundle.open(part), splits_of(sealed)[-1])
    return sealed


def without_splits(source: Bundle, out_dir: Path) -> Manifest:
    """Write a bundle without its splits, and their files, into the new folder ``out_dir``; returns the manifest."""
    manifest = source.manifest
    dropped = {file for split in splits_of(manifest) for file in (split.head, split.tail, split.golden)}
    files = tuple(file for file in manifest.files if file.path not in dropped)
    for file in files:
        (out_dir / file.path).parent.mkdir(parents=True, exist_ok=True)
        (out_dir / file.path).write_bytes(source.read(file.path))
    return seal(out_dir, msgspec.structs.replace(manifest, files=files, splits=msgspec.UNSET))


def golden_file(split: Split) -> str:
    """Where a bundle has what the halves of a split make of its golden inputs."""
    return f"{split.name}-golden.npz"


def _sealed(part: Path, manifest: Manifest, split: Split, files: tuple[File, ...]) -> Manifest:
    return seal(part, msgspec.structs.replace(manifest, files=files, splits=(*splits_of(manifest), split)))


def _check_name(name: str) -> None:
    if name in ("", ".", "..", MANIFEST) or PurePosixPath(name).name != name:
        raise ConfigError(f"{name!r}: not a name for a half's file")


def check_split(source: Bundle, split: Split) -> NDArray[np.uint8]:
    """What the head makes of the bundle's golden inputs, UINT8 [N, ...]. Raises ArtifactError naming a half's file.

    Both must be what the manifest says, and the tail's answers probabilities; how good they are is not looked at, but
    where the bundle has golden codes and answers of the split they must be those.
    """
    made = _made(source, split)
    golden = GoldenCodes.read(source, split)
    if golden is not None:
        golden.check_head(split.head, made.sent)
        tail = OnnxModel(source.read(split.tail), split.tail)
        golden.check_tail(split.tail, lambda sent: tail.run({split.sent.name: sent}, [PROBABILITIES])[0])
    return made.sent


def _made(source: Bundle, split: Split) -> GoldenCodes:
    """What both halves make of the golden inputs. Raises ArtifactError naming a half's file."""
    manifest, inputs = source.manifest, Golden(source).inputs
    head = OnnxModel(source.read(split.head), split.head)
    tail = OnnxModel(source.read(split.tail), split.tail)
    if tail.inputs != (split.sent.name,) or tail.input_types != ("tensor(uint8)",) or PROBABILITIES not in tail.outputs:
        raise ArtifactError(f"{split.tail}: must turn {split.sent.name} UINT8 into {PROBABILITIES}")
    given = _given(source, split.level, inputs)
    if head.outputs != (split.sent.name,) or not set(head.inputs) <= set(given):
        raise ArtifactError(f"{split.head}: must turn what there is at level {split.level} into {split.sent.name}")
    rows = len(next(iter(inputs.values())))
    for count in (1, rows):
        sent = _sent(head, split, {name: given[name][:count] for name in head.inputs}, count)
        answers = probabilities(
            split.tail,
            (count, len(manifest.classes)),
            lambda sent=sent: tail.run({split.sent.name: sent}, [PROBABILITIES])[0],  # type: ignore[misc]
        )
    return GoldenCodes(sent, answers)


def _given(source: Bundle, level: int, inputs: dict[str, Array]) -> dict[str, Array]:
    """What a head on that level can read, for all golden inputs."""
    return chain_up_to(source, level).known_at(level, inputs)


def chain_up_to(source: Bundle, level: int) -> Chain:
    """The levels of a bundle up to that one, loaded; none of them for 0."""
    files = source.manifest.levels[level - 1].files if level else ()
    return Chain([OnnxModel(source.read(file), file) for file in files], [t.name for t in source.manifest.inputs])


def _sent(head: OnnxModel, split: Split, given: dict[str, Array], count: int) -> NDArray[np.uint8]:
    try:
        sent: NDArray[np.uint8] = head.run(given)[0]
    except Exception as error:  # with any of the library's types
        raise ArtifactError(f"{split.head}: fails on the bundle's golden inputs") from error
    if sent.dtype != np.uint8 or sent.shape != (count, *split.sent.shape[1:]):
        raise ArtifactError(f"{split.head}: does not send UINT8 {[count, *split.sent.shape[1:]]}")
    if not within(split.bits, sent):
        raise ArtifactError(f"{split.head}: sends values of more than {split.bits} bits")
    return sent
