"""Heads are looked at with the bundle: one that cannot be run, or makes what cannot be sent, is not served."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.edge.loading import load
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import MANIFEST, Bundle, Manifest, Tensor, seal, splits_of
from edgemux.multiplexer.chain import Activations
from edgemux.multiplexer.errors import ArtifactError
from tests.split_stand import GOING_ON, PASSING, PLAIN, with_splits


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle")


def resealed(bundle: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose splits are changed, sealed again; files that were changed before are vouched for."""
    if not folder.exists():
        shutil.copytree(bundle, folder)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    splits = tuple(msgspec.structs.replace(each, **changes) for each in splits_of(manifest))
    seal(folder, msgspec.structs.replace(manifest, splits=splits))
    return folder


def loaded(folder: Path, split: SplitSettings | None = None, most_bytes: float = float("inf")) -> Any:
    return load(folder, None, None, False, most_bytes, split or SplitSettings())


def test_heads_are_loaded_and_make_what_is_sent_of_an_input_or_of_what_a_level_left(bundle: Path) -> None:
    found = loaded(bundle)
    assert [head.split.name for head in found.heads] == [PLAIN, GOING_ON]
    image = {"image": found.golden.inputs["image"]}
    made = []
    for head in found.heads:
        activations = Activations(image)
        if head.split.level:
            found.family.chain.reach(head.split.level, activations)
        made.append(head.run(activations))
        assert not head.passes_on
    assert made[0].dtype == np.uint8 and made[0].shape == (len(image["image"]), 10)
    assert np.abs(made[0].astype(int) - made[1]).max() <= 1


def test_without_leave_to_use_them_no_head_is_loaded(bundle: Path) -> None:
    assert load(bundle, None, None, False).heads == ()
    assert loaded(bundle, SplitSettings(use="off")).heads == ()
    assert loaded(bundle, SplitSettings(max_loss=0.0)).heads == ()


def test_a_head_on_a_level_that_may_not_be_loaded_is_left_out(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    first = Bundle.open(bundle).size(manifest.levels[0].files)
    assert [head.split.name for head in loaded(bundle, most_bytes=first).heads] == [PLAIN]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 2}, "more than 2 bits"),
        ({"sent": Tensor("sent", "UINT8", (-1, 11))}, "does not make UINT8"),
        ({"sent": Tensor("elsewhere", "UINT8", (-1, 10))}, "does not make elsewhere"),
    ],
)
def test_a_head_that_makes_something_else_than_its_manifest_says_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArtifactError, match=says):
        loaded(resealed(bundle, tmp_path / "bundle", **changes))


def test_a_head_that_needs_what_nobody_leaves_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    shutil.copy(folder / f"{GOING_ON}-head.onnx", folder / f"{PLAIN}-head.onnx")
    with pytest.raises(ArtifactError, match="fails on the bundle's golden inputs"):
        loaded(resealed(bundle, folder))


def test_a_head_that_passes_the_input_on_is_no_way_to_keep_it_here(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    for name in (PLAIN, GOING_ON):
        shutil.copy(folder / PASSING, folder / f"{name}-head.onnx")
    resealed(bundle, folder, sent=Tensor("sent", "UINT8", (-1, 28, 28)))
    assert [head.passes_on for head in loaded(folder).heads] == [True, True]
    assert loaded(folder, SplitSettings(never_send_raw=True)).heads == ()
