"""What is served when a bundle is not what it should be: the one before it, else only the cloud, else nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgemux.edge import EdgeConfig, open_agent
from edgemux.edge.config import CloudSettings
from edgemux.edge.loading import Fallback
from edgemux.edge.status import status_of_all
from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.multiplexer.errors import ArtifactError, ExecutionError

PATIENT_S = 20.0


@pytest.fixture
def copy_of(tiny_bundle: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``copy_of(name)``: the tiny bundle, to be damaged."""
    return lambda name: Path(shutil.copytree(tiny_bundle, tmp_path / name))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def exchange_levels(folder: Path) -> None:
    """Every digest is right, and level 2 is another graph than was exported as level 2."""
    shutil.copy(folder / "level-1.onnx", folder / "level-2.onnx")
    seal(folder, Bundle.open(folder).manifest)


async def ask(agent: Any, images: Any) -> list[Any]:
    return [(await agent.infer({"image": image[None]}, PATIENT_S))[0] for image in images]


def degraded(agent: Any) -> set[str]:
    value = agent.metrics.registry.get_sample_value
    causes = (*Fallback, "no_state")
    return {str(c) for c in causes if value("edgemux_degraded", {"model": "fashion-mnist", "cause": str(c)})}


@pytest.mark.parametrize("damage", [lambda folder: flip(folder / "level-3.onnx"), exchange_levels, shutil.rmtree])
async def test_a_bundle_that_cannot_be_trusted_leaves_the_previous_one(
    copy_of: Any, tiny_bundle: Path, pictures: Any, damage: Callable[[Path], Any]
) -> None:
    new = copy_of("new")
    damage(new)
    async with open_agent(EdgeConfig(bundle=new, previous_bundle=tiny_bundle)) as agent:
        answers = await ask(agent, pictures(5, 1)[0])
        assert {answer.prediction.route.placement for answer in answers} == {Placement.EDGE}
        assert degraded(agent) == {"previous_bundle"}
        assert status_of_all({"m": agent})["fallback"] == "previous_bundle"


async def test_without_any_level_that_can_be_trusted_the_cloud_answers_everything(
    cloud: Any, copy_of: Any, pictures: Any
) -> None:
    new, old = copy_of("new"), copy_of("old")
    flip(new / "level-1.onnx")
    flip(old / "pre_gate.onnx")
    config = EdgeConfig(bundle=new, previous_bundle=old, cloud=CloudSettings(cloud.address))
    async with open_agent(config) as agent:
        answers = await ask(agent, pictures(5, 1)[0])
        assert {answer.prediction.route.placement for answer in answers} == {Placement.CLOUD}
        assert {answer.reason for answer in answers} == {Reason.NO_MODEL}
        assert degraded(agent) == {"no_device_model"}
        cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE)
        for image in pictures(8, 2)[0]:
            with pytest.raises(ExecutionError):
                await ask(agent, image[None])
        cloud.answer = cloud.well


async def test_a_manifest_of_which_nothing_can_be_trusted_is_not_taken_for_a_cloud_s(cloud: Any, copy_of: Any) -> None:
    new = copy_of("new")
    flip(new / "manifest.json")
    with pytest.raises(ArtifactError, match="manifest"):
        async with open_agent(EdgeConfig(bundle=new, cloud=CloudSettings(cloud.address))):
            pass


async def test_what_is_wrong_with_the_bundle_that_was_asked_for_is_what_is_said(copy_of: Any) -> None:
    new, old = copy_of("new"), copy_of("old")
    flip(new / "level-3.onnx")
    flip(old / "level-1.onnx")
    with pytest.raises(ArtifactError, match="level-3"):
        async with open_agent(EdgeConfig(bundle=new, previous_bundle=old)):
            pass


async def test_a_bundle_that_is_well_is_no_fallback(tiny_bundle: Path) -> None:
    async with open_agent(EdgeConfig(bundle=tiny_bundle, previous_bundle=Path("/nowhere"))) as agent:
        assert degraded(agent) == set()
        assert np.isfinite(agent.metrics.registry.get_sample_value("edgemux_level", {"model": "fashion-mnist"}))
