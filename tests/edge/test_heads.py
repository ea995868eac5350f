"""Heads are looked at with the bundle: one that cannot be run, or makes something else than it must, is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.edge.heads import Alone
from edgemux.edge.loading import load
from edgemux.edge.split_planning import SplitSettings
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import MANIFEST, Bundle, Manifest, Tensor, seal, splits_of
from edgemux.multiplexer.chain import Activations
from edgemux.multiplexer.errors import ArtifactError
from tests.split_stand import GOING_ON, LEAST, PASSING, PLAIN, with_splits


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle")


@pytest.fixture(scope="module")
def golden_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("golden") / "bundle", golden=True)


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
        made.append(head.run(head.held(), activations))
        assert not head.passes_on
    assert made[0].dtype == np.uint8 and made[0].shape == (len(image["image"]), 10)
    assert np.abs(made[0].astype(int) - made[1]).max() <= 1


def test_without_leave_to_use_them_no_head_is_loaded(bundle: Path) -> None:
    assert load(bundle, None, None, False).heads == ()
    off = loaded(bundle, SplitSettings(use="off"))
    assert off.heads == () and set(off.alone.values()) == {Alone.OFF}
    lossy = loaded(bundle, SplitSettings(max_loss=0.0))
    assert lossy.heads == () and set(lossy.alone.values()) == {Alone.LOSS}


def test_levels_come_first_and_what_has_no_room_beside_them_is_not_loaded(bundle: Path) -> None:
    sizes, plain = Family(Bundle.open(bundle)).bytes_of, Bundle.open(bundle).file(f"{PLAIN}-head.onnx").bytes
    found = loaded(bundle, most_bytes=sizes[4] + plain)
    assert [(head.split.name, head.loaded) for head in found.heads] == [(PLAIN, True), (GOING_ON, False)]
    assert found.family.resident == 4 and found.resident_bytes == sizes[4] + plain and found.alone == {}
    tight = loaded(bundle, most_bytes=sizes[4] + plain - 1)
    assert tight.family.resident == 4 and [head.loaded for head in tight.heads] == [False, True]
    assert not any(head.loaded for head in loaded(bundle, most_bytes=sizes[4]).heads)


def test_a_head_that_there_can_never_be_room_for_is_said_to_be_left_alone(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = loaded(bundle, most_bytes=Family(Bundle.open(bundle)).bytes_of[1])
    assert found.heads == () and found.alone == dict.fromkeys((PLAIN, GOING_ON), Alone.MEMORY)
    assert sum("split left alone" in said and "reason=memory" in said for said in caplog.messages) == 2


def left(folder: Path) -> Any:
    """What is left of a bundle with bad heads: all but these."""
    found = loaded(folder)
    assert found.fallback is None and found.family.resident == 4
    return found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 2}, "more than 2 bits"),
        ({"sent": Tensor("sent", "UINT8", (-1, 11))}, "does not make UINT8"),
        ({"sent": Tensor("elsewhere", "UINT8", (-1, 10))}, "does not make elsewhere"),
    ],
)
def test_a_head_that_makes_something_else_than_its_manifest_says_is_left_alone(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = left(resealed(bundle, tmp_path / "bundle", **changes))
    assert found.heads == () and dict.fromkeys((PLAIN, GOING_ON), Alone.HEAD_WRONG) == found.alone
    assert sum(says in said for said in caplog.messages) == 2


def test_a_head_that_needs_what_nobody_leaves_is_left_alone(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    shutil.copy(folder / f"{GOING_ON}-head.onnx", folder / f"{PLAIN}-head.onnx")
    found = left(resealed(bundle, folder))
    assert [head.split.name for head in found.heads] == [GOING_ON] and found.alone == {PLAIN: Alone.HEAD_WRONG}
    assert any("fails on the bundle's golden inputs" in said for said in caplog.messages)


def test_a_head_that_is_no_model_is_left_alone_but_one_of_another_digest_is_a_damaged_bundle(
    bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    (folder / f"{PLAIN}-head.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=f"{PLAIN}-head.onnx"):
        loaded(folder)
    assert left(resealed(bundle, folder)).alone == {PLAIN: Alone.HEAD_WRONG}


def computing_otherwise(bundle: Path, folder: Path) -> Path:
    """A copy whose plain head has another constant: what it makes can still be sent, as with a wrong convolution."""
    shutil.copytree(bundle, folder)
    path = folder / f"{PLAIN}-head.onnx"
    content, least = path.read_bytes(), np.float32(LEAST).tobytes()
    assert content.count(least) == 1
    path.write_bytes(content.replace(least, np.float32(LEAST - 4.0).tobytes()))
    return resealed(bundle, folder)


def test_golden_codes_tell_a_head_that_computes_otherwise(
    golden_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(left(golden_bundle).heads) == 2
    found = left(computing_otherwise(golden_bundle, tmp_path / "bundle"))
    assert [head.split.name for head in found.heads] == [GOING_ON] and found.alone == {PLAIN: Alone.HEAD_WRONG}
    assert any("does not make the bundle's golden codes" in said for said in caplog.messages)


def test_without_golden_codes_such_a_head_is_not_told(bundle: Path, tmp_path: Path) -> None:
    assert len(left(computing_otherwise(bundle, tmp_path / "bundle")).heads) == 2


def test_golden_codes_that_do_not_fit_the_split_are_a_damaged_bundle(golden_bundle: Path, tmp_path: Path) -> None:
    for number, arrays in enumerate(
        (
            {},
            {"sent": np.zeros((8, 9), np.uint8)},
            {"sent": np.zeros((8, 10), np.int8)},
            {"sent": np.zeros((0, 10), np.uint8), "probabilities": np.zeros((0, 10), np.float32)},
            {"sent": np.zeros((8, 10), np.uint8), "probabilities": np.zeros((7, 10), np.float32)},
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(golden_bundle, folder)
        np.savez(folder / f"{PLAIN}-golden.npz", **arrays)
        with pytest.raises(ArtifactError, match=rf"^{PLAIN}-golden\.npz: its"):
            loaded(resealed(golden_bundle, folder))


def test_a_head_that_passes_the_input_on_is_no_way_to_keep_it_here(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    for name in (PLAIN, GOING_ON):
        shutil.copy(folder / PASSING, folder / f"{name}-head.onnx")
    resealed(bundle, folder, sent=Tensor("sent", "UINT8", (-1, 28, 28)))
    assert [head.passes_on for head in loaded(folder).heads] == [True, True]
    found = loaded(folder, SplitSettings(never_send_raw=True))
    assert found.heads == () and set(found.alone.values()) == {Alone.PASSES_ON}
