"""The whole pipeline on a few images: every stage for real, and a bundle that the servers' code accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.bundle import MANIFEST, Bundle
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel


def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path, recipe_path: Path, torch: Any) -> None:
    from edgemux.compression.build import build

    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not a bundle"):
        build(recipe_path, out=tmp_path, quick=True, work=tmp_path / "work")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_quick_build_goes_from_recipe_to_a_bundle_that_loads(tmp_path: Path, recipe_path: Path, torch: Any) -> None:
    from edgemux.compression import data
    from edgemux.compression.build import build
    from edgemux.compression.chain import run_levels

    try:
        data.fetch("train-images")
    except ArtifactError:
        pytest.skip("Fashion-MNIST is neither installed nor downloadable here")
    work = tmp_path / "work"
    folder = build(recipe_path, out=tmp_path / "bundle", quick=True, work=work)
    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest
    assert [level.accuracy > 0.3 for level in manifest.levels] == [True] * 4
    assert manifest.certificate is not None and len(manifest.certificate.levels) == 4
    assert set(manifest.provenance.verdicts) >= {"levels: weights as int8", "cloud: int8 weights"}
    golden = bundle.arrays(manifest.golden)
    chain = [OnnxModel(bundle.read(level.files[-1]), level.name) for level in manifest.levels]
    for level, answers in zip(manifest.levels, run_levels(chain, golden["image"]), strict=True):
        assert np.allclose(answers, golden[level.name], atol=1e-6)
    pre = OnnxModel(bundle.read(manifest.multiplexer.pre_gate), "pre")
    assert np.allclose(pre.run({"image": golden["image"]})[0], golden["scores"], atol=1e-6)
    text = (folder / MANIFEST).read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text
    # Once more: every stage is there already, and the models come out the same.
    again = Bundle.open(build(recipe_path, out=tmp_path / "bundle", quick=True, work=work))
    for level in manifest.levels:
        assert again.sha256(level.files[-1]) == bundle.sha256(level.files[-1])
