"""Several applications in one agent process: each its own model, policy and estimates; one device and one cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemux.edge import ApplicationSettings, EdgeConfig, open_agent, open_agents
from edgemux.edge.config import CloudSettings, LimitSettings, load
from edgemux.edge.service import EdgeService
from edgemux.edge.status import status_of_all
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.errors import ConfigError, UnknownModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import get_parameters, make_request

PATIENT_S = 20.0


class Patient:
    """A call context without a deadline."""

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "test"


@pytest.fixture
def two(tiny_bundle: Path) -> EdgeConfig:
    """Two applications of one bundle, the second only on the device."""
    return EdgeConfig(
        applications=(
            ApplicationSettings(tiny_bundle, name="door"),
            ApplicationSettings(tiny_bundle, name="till", policy="device-only"),
        ),
        audit_share=0.0,
    )


def with_cloud(config: EdgeConfig, address: str, **settings: Any) -> EdgeConfig:
    return EdgeConfig(
        applications=config.applications, cloud=CloudSettings(address=address), audit_share=0.0, **settings
    )


async def ask(agent: Any, images: Any) -> list[Any]:
    return [(await agent.infer({"image": images[i : i + 1]}, PATIENT_S))[0] for i in range(len(images))]


async def test_each_application_answers_under_its_name_by_its_own_policy(
    two: EdgeConfig, cloud: Any, pictures: Any
) -> None:
    images, _ = pictures(60, 1)
    async with open_agents(with_cloud(two, cloud.address)) as agents:
        assert list(agents) == ["door", "till"]
        at_door, at_till = await ask(agents["door"], images), await ask(agents["till"], images)
    assert Placement.CLOUD in {answer.prediction.route.placement for answer in at_door}
    assert {answer.prediction.route.placement for answer in at_till} == {Placement.EDGE}


async def test_the_cloud_is_asked_for_the_bundle_s_own_model_or_the_one_that_is_set(
    tiny_bundle: Path, two: EdgeConfig, cloud: Any, pictures: Any
) -> None:
    asked = set()

    async def note(request: Any, context: Any) -> Any:
        asked.add(request.model_name)
        return await cloud.well(request, context)

    cloud.answer = note
    three = (*two.applications, ApplicationSettings(tiny_bundle, name="gate", cloud_model="resnet"))
    config = EdgeConfig(applications=three, cloud=CloudSettings(address=cloud.address), audit_share=0.0)
    async with open_agents(config) as agents:
        for agent in agents.values():
            await ask(agent, pictures(60, 1)[0])
    assert asked == {"fashion-mnist", "resnet"}


async def test_budgets_breaker_and_link_are_one_and_estimates_are_each_one_s_own(
    two: EdgeConfig, cloud: Any, pictures: Any
) -> None:
    limits = LimitSettings(offloads_per_s=1e-3, burst_s=5e3)
    config = EdgeConfig(
        applications=(two.applications[0], ApplicationSettings(two.applications[0].bundle, name="gate")),
        cloud=CloudSettings(address=cloud.address),
        audit_share=0.0,
        limits=limits,
    )
    async with open_agents(config) as agents:
        door, gate = agents.values()
        for agent in (door, gate):
            await ask(agent, pictures(100, 1)[0])
        assert 0 < cloud.seen <= 5
        assert door.cloud.breaker is gate.cloud.breaker
        assert door.cloud.link is gate.cloud.link
        assert door.purse is gate.purse is door.cloud.purse
        assert door.cloud.server is not gate.cloud.server
        assert door._device is not gate._device
        assert door.sampler is gate.sampler


async def test_metrics_and_status_tell_the_applications_apart(two: EdgeConfig, pictures: Any) -> None:
    async with open_agents(two) as agents:
        await ask(agents["door"], pictures(10, 1)[0])
        registry = agents["till"].metrics.registry
        count = {
            name: registry.get_sample_value("edgemux_request_duration_seconds_count", {"model": name, "route": "edge"})
            for name in agents
        }
        assert count == {"door": 10.0, "till": 0.0}
        shown = status_of_all(agents)
    assert set(shown["applications"]) == {"door", "till"}
    assert "certificate" in shown["applications"]["door"]
    assert "readings" in shown
    assert "level" not in shown


async def test_the_service_knows_all_of_them_and_no_other(two: EdgeConfig, pictures: Any) -> None:
    images, _ = pictures(1, 1)
    async with open_agents(two) as agents:
        service = EdgeService(agents, max_batch=8)
        for name in agents:
            response = await service.ModelInfer(make_request(name, {"image": images}), Patient())
            assert response.model_name == name
            assert get_parameters(response)["edgemux_route"] == "edge"
            assert (await service.ModelReady(oip.ModelReadyRequest(name=name), None)).ready
            assert (await service.ModelMetadata(oip.ModelMetadataRequest(name=name), None)).name == name
        index = await service.RepositoryIndex(oip.RepositoryIndexRequest(), None)
        assert [model.name for model in index.models] == ["door", "till"]
        assert not (await service.ModelReady(oip.ModelReadyRequest(name="fashion-mnist"), None)).ready
        with pytest.raises(UnknownModel):
            await service.ModelInfer(make_request("fashion-mnist", {"image": images}), Patient())
        refused = agents["door"].metrics.registry.get_sample_value
        assert refused("edgemux_refused_total", {"model": "other", "reason": "unknown_model"}) == 1
        assert {"/v2/models/door", "/v2/models/till"} <= set(service.pages()["/pages"]().body["pages"])
        service.close()


async def test_two_of_the_same_name_are_refused(tiny_bundle: Path) -> None:
    config = EdgeConfig(applications=(ApplicationSettings(tiny_bundle), ApplicationSettings(tiny_bundle)))
    with pytest.raises(ConfigError, match="several are named fashion-mnist"):
        async with open_agents(config):
            pass


async def test_one_agent_is_asked_for_where_there_is_one(two: EdgeConfig, tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="there are several"):
        async with open_agent(two):
            pass
    one = EdgeConfig(applications=(ApplicationSettings(tiny_bundle, name="door"),))
    async with open_agent(one) as agent:
        assert agent.manifest.name == "door"


TWO = """
[[applications]]
bundle = "a"
name = "door"
latency_s = 0.05
accuracy = 0.9
weight = 2.0

[[applications]]
bundle = "b"
policy = "device-only"
cloud_model = "resnet"
"""


def test_applications_are_read_from_the_file_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(TWO)
    door, other = load(file, {}).every_application()
    assert (door.bundle, door.name, door.latency_s, door.accuracy, door.weight) == (Path("a"), "door", 0.05, 0.9, 2.0)
    assert (other.name, other.policy, other.cloud_model, other.weight) == (None, "device-only", "resnet", 1.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('bundle = "c"\n' + TWO, "not both"),
        (TWO + "weight = 0.0", r"applications\[1\].*weight"),
        (TWO + "weight = nan", r"applications\[1\].*weight"),
        (TWO + "latency_s = 0.0", r"latency_s"),
        (TWO + "accuracy = 1.5", r"accuracy"),
        (TWO + 'name = ""', r"name"),
        (TWO + 'name = "a b"', r"name"),
        (TWO + "level = 3", r"applications\[1\]\.level: no such setting"),
        (TWO + '[cloud]\nmodel = "x"', r"cloud\.model"),
        ("", "bundle"),
    ],
)
def test_a_wrong_application_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load(file, {})
