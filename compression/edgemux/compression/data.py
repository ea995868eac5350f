"""Fashion-MNIST (Xiao et al. 2017, MIT licence): where to get it, how to check it, how to split it.

The digests are of the *uncompressed* IDX files, so that the Debian package, which packed them anew, and the
official download both pass.
"""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemux.compression import places
from edgemux.multiplexer.errors import ArtifactError, ConfigError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
TIMEOUT_S = 60.0
FILES = {
    "train-images": ("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels": ("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "test-images": ("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "test-labels": ("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}


@dataclass(frozen=True, slots=True)
class Split:
    """Images uint8 [n, 28, 28], labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> Split:
        """The images at ``index``, in that order."""
        return Split(self.images[index], self.labels[index])

    def sha256(self) -> str:
        """Digest in hex of the pixels followed by the labels: says which inputs a certificate is about."""
        content = self.images.tobytes() + self.labels.astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class DataSet:
    """Splits: ``train`` for models and gates, ``gate`` to calibrate both, ``certify``, ``test`` for reports only."""

    train: Split
    gate: Split
    certify: Split
    test: Split


def load(set_name: str, held_out: int, seed: int, limit: int | None = None, cache: Path | None = None) -> DataSet:
    """Get, check and split a data set.

    Raises ConfigError for an unknown set, ArtifactError for content with another digest.
    """
    if set_name != "fashion-mnist":
        raise ConfigError(f"unknown data set {set_name!r}; known: fashion-mnist")
    parts = {key: parse_idx(fetch(key, cache)) for key in FILES}
    train = Split(parts["train-images"], parts["train-labels"].astype(np.int64))
    test = Split(parts["test-images"], parts["test-labels"].astype(np.int64))
    rng = np.random.default_rng(seed)
    if limit is not None:
        train = train.take(stratified(train.labels, limit, rng)[0])
        test = test.take(stratified(test.labels, limit, rng)[0])
    held, rest = stratified(train.labels, held_out, rng)
    first, second = stratified(train.labels[held], held_out // 2, rng)
    return DataSet(train.take(rest), train.take(held[first]), train.take(held[second]), test)


def stratified(
    labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices in two, every class in the same proportion: (``count`` of them, the rest), both shuffled."""
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for value in np.unique(labels):
        members = order[labels[order] == value]
        # Ranks spread each class evenly over 0..1, so the lowest ``count`` hold every class in proportion.
        rank[members] = (np.arange(len(members)) * len(labels)) // len(members)
    by_rank = order[np.argsort(rank[order], kind="stable")]
    return rng.permutation(by_rank[:count]), rng.permutation(by_rank[count:])


def fetch(key: str, cache: Path | None = None) -> bytes:
    """The uncompressed IDX content: from the Debian package, the cache, or the official download.

    Raises ArtifactError when the content has another digest or cannot be had.
    """
    name, sha256 = FILES[key]
    cache = cache if cache is not None else places.cache("data")
    for folder in (DEBIAN, cache):
        path = folder / f"{name}.gz"
        if path.is_file():
            return checked(path.read_bytes(), name, sha256)
    packed = _download(name)
    content = checked(packed, name, sha256)
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / f"{name}.gz.part"
    part.write_bytes(packed)
    part.replace(cache / f"{name}.gz")
    return content


def checked(packed: bytes, name: str, sha256: str) -> bytes:
    """Unpack gzip content and compare its digest. Raises ArtifactError naming the file."""
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{name}.gz: not a complete gzip file") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(f"{name}.gz: its content does not have the published digest")
    return content


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """An IDX array of unsigned bytes, big-endian header (LeCun's format). Raises ArtifactError when it is none."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ArtifactError("not an IDX file of unsigned bytes")
    rank = content[3]
    shape = tuple(np.frombuffer(content, ">u4", rank, 4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ArtifactError("an IDX file whose size is not the one in its header")
    return values.reshape(shape).copy()


def _download(name: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{OFFICIAL}{name}.gz", timeout=TIMEOUT_S) as reply:
            content: bytes = reply.read()
    except OSError as error:
        raise ArtifactError(
            f"{name}.gz: not found and not downloadable; install the Debian package dataset-fashion-mnist"
        ) from error
    return content
