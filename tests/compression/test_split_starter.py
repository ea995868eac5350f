"""benchmarks/split_starter.py: the starter bundle's splits are what its manifest says, and can be exchanged."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from edgemux.multiplexer.bundle import Bundle, Split, splits_of
from edgemux.multiplexer.errors import ConfigError

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "deploy" / "bundles" / "fashion-mnist"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import split_starter

    monkeypatch.setattr(split_starter, "TIMED", 3)
    return split_starter


def timeless(split: Split) -> Split:
    return msgspec.structs.replace(split, head_ms=0.0, tail_ms=0.0)


def test_the_starter_bundle_s_splits_are_as_right_as_its_manifest_says(script: ModuleType) -> None:
    starter = script.Starter(STARTER)
    samples = script.samples_of(starter).take(np.arange(300))
    splits = splits_of(starter.manifest)
    assert splits
    for split, halves in zip(splits, script.held(starter), strict=True):
        found = script.measure(starter, halves, samples)
        # Three hundred of the ten thousand that the manifest is about: four standard deviations and more.
        assert abs(found.accuracy - split.accuracy) < 0.07 and abs(found.changed - split.changed) < 0.06
        assert found.bytes == pytest.approx(split.bytes, abs=5)
        same = {"n": split.n, "accuracy": split.accuracy, "changed": split.changed, "bytes": split.bytes}
        assert timeless(msgspec.structs.replace(found, **same, golden=split.golden)) == timeless(split)


def test_exchanging_splits_leaves_the_rest_of_the_bundle_as_it_was_and_nothing_of_the_old_ones(
    script: ModuleType, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(STARTER, tmp_path / "bundle"))
    starter = script.Starter(folder)
    split, halves = splits_of(starter.manifest)[0], script.held(starter)[0]
    other = msgspec.structs.replace(split, name="other", head="other_head.onnx", tail="other_tail.onnx")
    script.exchange(starter, [(other, halves)])
    changed = Bundle.open(folder)
    changed.verify()
    assert [each.name for each in splits_of(changed.manifest)] == ["other"]
    assert {path.name for path in folder.iterdir()} == {file.path for file in changed.manifest.files} | {
        "manifest.json"
    }
    script.exchange(script.Starter(folder), [(each, half) for each, half in _all(script)])
    assert Bundle.open(folder).manifest == Bundle.open(STARTER).manifest


def _all(script: ModuleType) -> list[tuple[Split, object]]:
    starter = script.Starter(STARTER)
    return list(zip(splits_of(starter.manifest), script.held(starter), strict=True))


@pytest.mark.parametrize("name", ["continuation", "continuation-3", "-4", "none-4"])
def test_halves_that_are_not_there_are_refused_by_name(script: ModuleType, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        script.taken(tmp_path, [name])


def test_a_tail_that_several_splits_have_is_one_file(script: ModuleType, tmp_path: Path) -> None:
    for name, tail in (("a-4", b"one"), ("b-4", b"one"), ("c-2", b"other")):
        (tmp_path / f"{name}-head.onnx").write_bytes(name.encode())
        (tmp_path / f"{name}-tail.onnx").write_bytes(tail)
    taken = script.taken(tmp_path, ["a-4", "b-4", "c-2"])
    assert [(each.name, each.bits, each.tail_file) for each in taken] == [
        ("a", 4, "a_tail.onnx"),
        ("b", 4, "a_tail.onnx"),
        ("c", 2, "c_tail.onnx"),
    ]
    with pytest.raises(ConfigError, match="a-4"):
        script.taken(tmp_path, ["a-4", "a-4"])
