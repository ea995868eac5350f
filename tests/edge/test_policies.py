"""The agent runs the baselines too, and refuses a policy that it does not know before it loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.edge import EdgeConfig, open_agent
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.features import feature_count, place_of_largest
from edgemux.multiplexer.learned import Net, Router

CLASSES = 10


async def places(agent: Any, images: Any) -> list[Placement]:
    answers = [(await agent.infer({"image": images[i : i + 1]}, 20.0))[0] for i in range(len(images))]
    assert {answer.reason for answer in answers} <= {Reason.CONFIDENT, Reason.DEFERRED, Reason.OFFLOADED}
    return [answer.prediction.route.placement for answer in answers]


async def test_a_threshold_decides_what_leaves_the_device(cloud: Any, agent_of: Any, pictures: Any) -> None:
    images, _ = pictures(60, 1)
    shares = []
    for threshold in (0.0, 0.8, 1.1):
        async with agent_of(cloud.address, policy=f"max-softmax(threshold={threshold})") as agent:
            shares.append((await places(agent, images)).count(Placement.CLOUD) / len(images))
    assert shares[0] == 0.0
    assert 0.0 < shares[1] < 1.0
    assert shares[2] == 1.0


@pytest.mark.parametrize("policy", ["random(0.5)", "margin(0.5)", "entropy(0.3)", "temperature(0.8, 2)", "round-robin"])
async def test_every_kind_of_baseline_answers(cloud: Any, agent_of: Any, pictures: Any, policy: str) -> None:
    async with agent_of(cloud.address, policy=policy) as agent:
        assert Placement.EDGE in await places(agent, pictures(40, 2)[0])


async def test_a_fixed_level_answers_with_that_level(agent_of: Any, pictures: Any) -> None:
    images, _ = pictures(10, 3)
    async with agent_of(None, policy="fixed-level(level=2)") as agent:
        answers = [(await agent.infer({"image": images[i : i + 1]}, 20.0))[0] for i in range(len(images))]
    assert {answer.prediction.route.level for answer in answers} == {2}


async def test_a_learned_router_s_weights_are_a_file(cloud: Any, agent_of: Any, pictures: Any, tmp_path: Path) -> None:
    w1 = np.zeros((1, feature_count(CLASSES)))
    w1[0, place_of_largest(CLASSES)] = -1.0  # the smaller the largest log-probability, the higher the score
    Router(Net(w1, np.zeros(1), np.ones((1, 1)), np.zeros(1)), "answer", 2.0).write(tmp_path / "router.npz")
    text = f'learned(weights="{tmp_path / "router.npz"}", threshold=0.57)'
    async with agent_of(cloud.address, policy=text) as agent:
        assert set(await places(agent, pictures(60, 4)[0])) == {Placement.EDGE, Placement.CLOUD}


async def test_a_net_for_another_number_of_classes_is_refused_before_it_is_asked(agent_of: Any, tmp_path: Path) -> None:
    net = Net(np.zeros((1, feature_count(3))), np.zeros(1), np.ones((1, 1)), np.zeros(1))
    Router(net, "answer", 0.5).write(tmp_path / "three.npz")
    with pytest.raises(ConfigError, match="weights: the net reads 9 numbers, and an answer of 10 classes has 25"):
        async with agent_of(None, policy=f'learned("{tmp_path / "three.npz"}")'):
            pass


@pytest.mark.parametrize("policy", ["no-such", "max-softmax", "max-softmax(level=1)", "expected-gain(1)", "("])
async def test_a_wrong_policy_is_refused_before_anything_is_loaded(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ConfigError, match=r"^policy: "):
        async with open_agent(EdgeConfig(bundle=tmp_path / "nowhere", policy=policy)):
            pass
