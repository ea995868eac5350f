"""Large pictures over a slow link: a form that the build has measured is sent, and the cloud reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.cli.link import Conditions, Link
from edgemux.edge import EdgeConfig, open_agent
from edgemux.edge.config import CloudSettings, RequestSettings
from edgemux.edge.packing import usable
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.payload import LOSSLESS, RAW
from tests import large_pictures

SLOW = Conditions(round_trip_s=0.01, bits_per_s=2e6)
PATIENT = RequestSettings(default_timeout_s=20.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return large_pictures.build(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def large_cloud(bundle: Path, serving: Any) -> Iterator[str]:
    with serving("cloud", "--bundle", str(bundle)) as server:
        yield server.grpc


def test_a_build_measures_what_each_form_costs(bundle: Path) -> None:
    payloads = Bundle.open(bundle).manifest.payloads
    assert payloads is not msgspec.UNSET
    found = {each.encoding: each for each in payloads}
    raw = found[RAW]
    assert raw.bytes == large_pictures.SIDE**2 * 3
    assert raw.changed == 0.0
    for each in payloads:
        assert each.n >= 500
        assert each.accuracy_interval[0] <= each.accuracy <= each.accuracy_interval[1]
        if each.encoding in LOSSLESS:
            assert (each.accuracy, each.changed) == (raw.accuracy, 0.0)
    assert found["webp-60"].accuracy < raw.accuracy - 0.1, "the stripes are gone"
    assert found["jpeg-95"].bytes < raw.bytes / 4
    kept = [each.encoding for each in usable(Bundle.open(bundle).manifest, CloudSettings().payload_max_loss)]
    assert "webp-60" not in kept
    assert set(kept) > set(LOSSLESS)


async def test_over_a_slow_link_a_small_form_is_sent_and_answered_nearly_as_the_tensor(
    bundle: Path, large_cloud: str
) -> None:
    images, _ = large_pictures.pictures(24, seed=5)
    opened = Bundle.open(bundle)
    told = OnnxModel(opened.read("cloud.onnx"), "cloud.onnx").run({"image": images})[0].argmax(1)
    async with Link(SLOW) as link:
        link.lead_to(large_cloud)
        there = CloudSettings(address=link.address)
        config = EdgeConfig(bundle=bundle, cloud=there, policy="cloud-only", request=PATIENT, audit_share=0.0)
        async with open_agent(config) as agent:
            answers = []
            for image in images:
                answers += await agent.infer({"image": image[None]})
            assert agent.cloud is not None
            (peer,) = agent.cloud.peers
            encoding = peer.encoding
            sent = agent.metrics.registry.get_sample_value("edgemux_offload_payloads_total", {"payload": encoding})
    assert {answer.prediction.route.placement for answer in answers} == {Placement.CLOUD}
    assert encoding not in LOSSLESS, "221 ms a tensor, some 20 a JPEG"
    assert sent is not None
    assert sent >= 10
    assert np.mean([answer.prediction.label for answer in answers] == told) >= 0.9
