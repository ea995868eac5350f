"""The family is checked at the start; whatever is wrong with it names a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgemux.edge.config import EdgeConfig
from edgemux.edge.server import open_agent
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.errors import ArtifactError


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def resealed(folder: Path) -> Bundle:
    """Vouch for what is there now, as an author who makes a mistake would."""
    seal(folder, Bundle.open(folder).manifest)
    return Bundle.open(folder)


def test_a_sound_family_passes(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    Family(bundle).check(Golden(bundle), bundle.manifest)


def test_a_level_in_the_place_of_another_is_refused_naming_the_file(copy: Path) -> None:
    shutil.copyfile(copy / "cloud.onnx", copy / "level-1.onnx")
    with pytest.raises(ArtifactError, match=r"^level-"):
        Family(resealed(copy))


def test_a_level_that_answers_otherwise_is_refused_naming_the_file(copy: Path) -> None:
    shutil.copyfile(copy / "cloud.onnx", copy / "level-4.onnx")
    bundle = resealed(copy)
    with pytest.raises(ArtifactError, match=r"^level-4\.onnx: does not give the bundle's golden answers"):
        Family(bundle).check(Golden(bundle), bundle.manifest)


@pytest.mark.parametrize("name", ["golden.npz", "pre_gate.onnx", "post_gate.onnx", "level-3.onnx"])
async def test_an_agent_does_not_start_on_garbage_and_names_the_file(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"garbage")
    resealed(copy)
    with pytest.raises(ArtifactError, match=rf"^{name}: "):
        async with open_agent(EdgeConfig(bundle=copy)):
            pass
