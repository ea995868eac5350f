"""An agent and the cloud's own service, with a bundle that has splits: real heads, real tails, the real wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.config import ModelSettings
from edgemux.edge import EdgeConfig, open_agent
from edgemux.edge.config import CloudSettings
from edgemux.edge.scheduler import SchedulerSettings
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.cloud_stand import standing
from tests.simulated_cloud import listening
from tests.split_stand import GOING_ON, PLAIN, with_splits

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]


async def test_the_cloud_s_own_service_ends_what_the_agent_s_heads_begin(
    tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    images, _ = pictures(150, 30)
    folder = with_splits(tiny_bundle, tmp_path / "bundle")
    opened = Bundle.open(folder)
    (whole,) = OnnxModel(opened.read("cloud.onnx"), "cloud").run({"image": images}, ["probabilities"])
    async with standing(ModelSettings(bundle=folder)) as made:
        service: Any = made.service
        async with listening(service) as cloud:
            config = EdgeConfig(
                bundle=folder,
                cloud=CloudSettings(address=cloud.address),
                split=SplitSettings(never_send_raw=True),
                scheduler=SchedulerSettings(scheme="off"),
            )
            async with open_agent(config) as agent:
                answers = [(await agent.infer({"image": images[i : i + 1]}, 20.0))[0] for i in range(len(images))]
        rows = {hosted.served.name: hosted.tally.rows for hosted in made.service.hosted}
    sent = [i for i, answer in enumerate(answers) if answer.prediction.route.placement is Placement.SPLIT]
    assert {answer.reason for answer in answers} <= {Reason.CONFIDENT, Reason.OFFLOADED, Reason.DEFERRED}
    assert sent and rows["fashion-mnist"] == 0
    assert sum(rows[f"fashion-mnist.{name}"] for name in (PLAIN, GOING_ON)) == len(sent)
    assert np.mean([answers[i].prediction.label == whole[i].argmax() for i in sent]) > 0.9
