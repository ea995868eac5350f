"""What fails at a tail keeps the tail from being asked, and not the cloud; what comes between is as with any route."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from edgemux.edge.breaker import Breaker, BreakerSettings, State
from edgemux.edge.gauges import export
from edgemux.edge.heads import Alone
from edgemux.edge.loading import Fallback
from edgemux.edge.notices import Notices
from edgemux.edge.service import EdgeService
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.wire.codec import add_checksum, get_parameters, make_request
from tests.simulated_cloud import listening
from tests.split_stand import GOING_ON, PLAIN, SplitCloud, of_another_tail, with_splits

PATIENT_S = 20.0
ALWAYS, NEVER_RAW = SplitSettings(use="always"), SplitSettings(never_send_raw=True)
NEVER_OPENS = BreakerSettings(failures=10**6, window=10**6, slow_s=PATIENT_S)
# Opens at the third failure, and is closed for everybody by the first success.
QUICK = BreakerSettings(slow_s=PATIENT_S, open_s=0.02, max_open_s=0.05, ramp_s=0.0, jitter=0.0)
WHOLE = "fashion-mnist"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle", golden=True)


@pytest.fixture(scope="module")
def one(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a single split, so that all that is cut goes to one tail."""
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("one") / "bundle", (PLAIN,), golden=True)


@pytest.fixture
async def there(bundle: Path) -> AsyncIterator[SplitCloud]:
    async with listening(SplitCloud(Bundle.open(bundle))) as cloud:
        assert isinstance(cloud, SplitCloud)
        yield cloud


async def answer_all(agent: Any, images: Any, timeout_s: float = PATIENT_S) -> list[Any]:
    return [(await agent.infer({"image": images[i : i + 1]}, timeout_s))[0] for i in range(len(images))]


def places(answers: list[Any]) -> set[Placement]:
    return {answer.prediction.route.placement for answer in answers}


def opened(settings: BreakerSettings = QUICK) -> tuple[Breaker, Any]:
    """A cloud's breaker, and one of a tail that has just opened."""
    cloud = Breaker(settings)
    tail = cloud.of_tail()
    for _ in range(3):
        tail.failed(tail.begin(0.0), 0.0)
    return cloud, tail


def test_what_fails_at_a_tail_opens_its_own_breaker_alone() -> None:
    cloud, tail = opened()
    assert (cloud.state(0.01), tail.state(0.01)) == (State.CLOSED, State.OPEN)
    assert tail.failing(0.01) and cloud.failures == 0 and not tail.allows(0.01) and not tail.admits(0.01, 0.0)
    probe = tail.begin(0.5)
    assert probe.probe and not probe.also.probe and not tail.allows(0.5) and cloud.allows(0.5)
    tail.succeeded(probe, 0.001, 0.5)
    assert tail.state(0.5) is State.CLOSED and not tail.failing(0.5)


def test_a_cloud_that_is_gone_opens_its_breaker_and_keeps_every_tail_from_being_asked() -> None:
    cloud = Breaker(QUICK)
    tail, other = cloud.of_tail(), cloud.of_tail()
    for _ in range(3):
        tail.gone(tail.begin(0.0), 0.0)
    assert [each.state(0.01) for each in (cloud, tail, other)] == [State.OPEN] * 3
    assert not tail.failing(0.01) and tail.begin(0.01) is None
    probe = other.begin(0.5)
    assert probe.also.probe and not tail.allows(0.5)
    other.succeeded(probe, 0.001, 0.5)
    assert [each.state(0.5) for each in (cloud, tail, other)] == [State.CLOSED] * 3


def test_a_slow_tail_is_a_slow_tail_and_who_gives_up_says_nothing() -> None:
    settings = msgspec.structs.replace(QUICK, slow_s=0.1)
    cloud = Breaker(settings)
    tail = cloud.of_tail()
    for _ in range(3):
        tail.succeeded(tail.begin(0.0), 0.2, 0.0)
    assert (cloud.state(0.01), tail.state(0.01)) == (State.CLOSED, State.OPEN)
    cloud, tail = opened()
    tail.cancelled(tail.begin(0.5))
    assert tail.allows(0.5), "another may be the probe"
    tail.heard(0.5)
    assert tail.state(0.5) is State.HALF_OPEN


def not_numbers(cloud: SplitCloud) -> Callable[[Any, Any], Any]:
    async def spoil(request: Any, context: Any) -> Any:
        response = await cloud.continued(request, context)
        response.raw_output_contents[0] = np.full(10, np.nan, np.float32).tobytes()
        add_checksum(response)
        return response

    return spoil


FAILURES: dict[str, Callable[[SplitCloud], Any]] = {
    "failing": lambda cloud: cloud.refusing(grpc.StatusCode.INTERNAL),
    "not numbers": not_numbers,
    "silent": lambda cloud: cloud.silent,
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_tail_that_fails_is_left_alone_the_whole_input_is_sent_and_it_is_found_well_again(
    there: SplitCloud, agent_of: Any, one: Path, pictures: Any, failure: str
) -> None:
    images, _ = pictures(100, 21)
    there.tail = FAILURES[failure](there)
    timeout_s = 0.3 if failure == "silent" else PATIENT_S
    async with agent_of(there.address, bundle=one, split=ALWAYS, breaker=QUICK, policy="cloud-only") as agent:
        notices = Notices([agent])
        until = time.monotonic() + PATIENT_S
        answers: list[Any] = []
        while Placement.CLOUD not in places(answers):
            assert time.monotonic() < until, "the whole input is never sent"
            answers += await answer_all(agent, images[:10], timeout_s)
            assert agent.cloud.state(time.monotonic()) is State.CLOSED
        alone = agent.left_alone(time.monotonic())
        assert alone in ({PLAIN: Alone.TAIL_FAILING}, {})  # now and then it is tried
        assert Placement.SPLIT not in places(answers)
        there.tail = there.continued
        while Placement.SPLIT not in places(await answer_all(agent, images)):
            assert time.monotonic() < until, "the tail is never asked again"
            await asyncio.sleep(0.02)
        assert not [event for event in notices.look(time.monotonic()) if hasattr(event, "split")]


async def test_a_tail_that_is_left_alone_is_in_the_status_and_others_take_its_place(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(150, 22)
    failing = there.refusing(grpc.StatusCode.INTERNAL)

    async def only_plain_fails(request: Any, context: Any) -> Any:
        return await (failing if request.model_name.endswith(PLAIN) else there.continued)(request, context)

    there.tail = only_plain_fails
    never_again = msgspec.structs.replace(QUICK, open_s=PATIENT_S, max_open_s=PATIENT_S)
    async with agent_of(there.address, bundle=bundle, split=NEVER_RAW, breaker=never_again) as agent:
        for half in agent.splits.halves.values():
            half.latency.observe(1e-5 if half.split.name == PLAIN else 1e-3)
        answers = await answer_all(agent, images)
        tried = [name for name, _ in there.received if name.endswith(PLAIN)]
        if len(tried) >= 3:
            assert agent.left_alone(time.monotonic()) == {PLAIN: Alone.TAIL_FAILING}
    assert len(tried) <= 4
    assert {answer.prediction.route.variant for answer in answers} & {GOING_ON}


async def test_where_the_cloud_is_gone_its_breaker_opens_whatever_is_sent(
    agent_of: Any, bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(20, 23)
    async with agent_of("127.0.0.1:9", bundle=bundle, split=ALWAYS, policy="cloud-only") as agent:
        answers = await answer_all(agent, images)
        assert Alone.TAIL_FAILING not in agent.left_alone(time.monotonic()).values()
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CLOUD_UNREACHABLE, Reason.BREAKER}


async def test_a_head_that_takes_all_the_time_leaves_the_device_its_answer(
    there: SplitCloud, agent_of: Any, one: Path, pictures: Any
) -> None:
    images, _ = pictures(30, 24)
    async with agent_of(there.address, bundle=one, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        (half,) = agent.splits.halves.values()
        run = half.head.run

        def slow(*given: Any) -> Any:
            time.sleep(0.2)
            return run(*given)

        half.head.run = slow
        answers = await answer_all(agent, images, timeout_s=0.15)
        assert agent.cloud.state(time.monotonic()) is State.CLOSED
    assert places(answers) == {Placement.EDGE}
    assert Reason.CLOUD_TIMEOUT in {answer.reason for answer in answers}
    assert all(answer.elapsed_s < 0.5 for answer in answers)


async def test_inputs_that_are_cut_share_calls_and_are_answered_as_alone(
    there: SplitCloud, agent_of: Any, one: Path, pictures: Any
) -> None:
    images, _ = pictures(64, 25)
    settings = {"bundle": one, "split": ALWAYS, "breaker": NEVER_OPENS, "policy": "cloud-only"}
    async with agent_of(there.address, **settings) as agent:
        alone = await answer_all(agent, images)
    async with agent_of(there.address, there={"most_together": 16}, **settings) as agent:
        await agent.infer({"image": images[:1]}, PATIENT_S)  # which tells that the cloud is ours
        there.received.clear()
        found = await agent.infer({"image": images}, PATIENT_S)
    assert places(alone) == places(found) == {Placement.SPLIT}
    assert len(there.received) < 32 and there.models == {f"{WHOLE}.{PLAIN}"}
    for mine, other in zip(alone, found, strict=True):
        np.testing.assert_allclose(mine.prediction.probabilities, other.prediction.probabilities, atol=1e-5)


class Call:
    """What a gRPC call is to the service."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    def time_remaining(self) -> float:
        return PATIENT_S

    def set_trailing_metadata(self, _: Any) -> None:
        return


async def test_a_batch_says_which_split_has_answered(
    there: SplitCloud, agent_of: Any, one: Path, pictures: Any
) -> None:
    images, _ = pictures(6, 26)
    async with agent_of(there.address, bundle=one, split=ALWAYS, breaker=NEVER_OPENS, policy="cloud-only") as agent:
        service = EdgeService({WHOLE: agent}, 256)
        said = await service.ModelInfer(make_request(WHOLE, {"image": images}), Call())
        service.close()
    parameters = get_parameters(said)
    assert (parameters["edgemux_route"], parameters["edgemux_variant"]) == (
        ",".join(["split"] * 6),
        ",".join([PLAIN] * 6),
    )


async def test_the_bundle_before_it_brings_its_own_heads_whose_tails_may_be_gone(
    there: SplitCloud, agent_of: Any, bundle: Path, tmp_path: Path, pictures: Any
) -> None:
    images, _ = pictures(60, 27)
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    (damaged / "level-1.onnx").write_bytes(b"damaged")
    settings = {"bundle": damaged, "previous_bundle": bundle, "split": NEVER_RAW}
    async with agent_of(there.address, breaker=NEVER_OPENS, **settings) as agent:
        assert agent.fallback is Fallback.PREVIOUS and len(agent.splits.halves) == 2
        assert Placement.SPLIT in places(await answer_all(agent, images))

    async def renewed(request: Any, context: Any) -> Any:
        response = await there.continued(request, context)
        of_another_tail(response)
        return response

    there.tail = renewed  # the cloud has the new bundle's
    async with agent_of(there.address, **settings) as agent:
        assert places(await answer_all(agent, images)) == {Placement.EDGE}
        assert Alone.CLOUD_INCOMPATIBLE in agent.left_alone(time.monotonic()).values()


async def test_a_cloud_whose_bundle_was_replaced_is_asked_for_tails_again_when_it_has_the_old_one(
    there: SplitCloud, agent_of: Any, one: Path, pictures: Any
) -> None:
    images, _ = pictures(60, 28)
    digest = there.digests[f"{WHOLE}.{PLAIN}"]
    async with agent_of(there.address, bundle=one, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        assert Placement.SPLIT in places(await answer_all(agent, images))
        there.digests[f"{WHOLE}.{PLAIN}"] = "f" * 64
        assert Placement.CLOUD in places(await answer_all(agent, images))
        assert agent.left_alone(time.monotonic()) == {PLAIN: Alone.CLOUD_INCOMPATIBLE}
        there.digests[f"{WHOLE}.{PLAIN}"], there.ready = digest, True
        (tail,) = agent.splits.unserved
        tail.agreement.recheck_s = 0.0
        await tail.ping(PATIENT_S)
        assert Placement.SPLIT in places(await answer_all(agent, images))


async def test_metrics_say_which_way_is_taken_and_which_splits_are_left_alone(
    there: SplitCloud, agent_of: Any, tiny_bundle: Path, tmp_path: Path, pictures: Any
) -> None:
    images, _ = pictures(40, 29)
    folder = with_splits(tiny_bundle, tmp_path / "bundle")
    there.tail = there.refusing(grpc.StatusCode.NOT_FOUND)
    async with agent_of(there.address, bundle=folder, split=ALWAYS, policy="cloud-only") as agent:
        value = agent.metrics.registry.get_sample_value

        def chosen() -> set[str]:
            export(agent, time.monotonic())
            ways = (PLAIN, GOING_ON, agent.manifest.cloud.name)
            return {name for name in ways if value("edgemux_split_chosen", {"model": WHOLE, "variant": name})}

        def alone(name: str, reason: str) -> float | None:
            found = value("edgemux_split_left_alone", {"model": WHOLE, "variant": name, "reason": reason})
            return None if found is None else float(found)

        assert chosen() == {agent.manifest.cloud.name}
        answers = await answer_all(agent, images)
        assert Placement.CLOUD in places(answers)
        chosen()
        assert alone(PLAIN, "cloud_incompatible") == alone(GOING_ON, "cloud_incompatible") == 1
        for half in agent.splits.halves.values():
            half.tail.agreement.holds()
        there.tail = there.continued
        await answer_all(agent, images)
        assert chosen() <= {PLAIN, GOING_ON}
        assert alone(PLAIN, "cloud_incompatible") is None
        there.tail = there.refusing(grpc.StatusCode.INTERNAL)
        agent.splits.halves[PLAIN].head.wrong = True
        export(agent, time.monotonic())
        assert alone(PLAIN, "head_wrong") == 1 and alone(GOING_ON, "head_wrong") is None
        sizes = value("edgemux_offload_payload_bytes_total", {"payload": "bits8"})
        whole = value("edgemux_offload_payload_bytes_total", {"payload": "raw"})
        assert sizes + whole == value("edgemux_offload_bytes_total") and min(sizes, whole) > 0


async def test_of_several_clouds_another_one_ends_what_was_begun(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(100, 13)
    async with listening(SplitCloud(Bundle.open(bundle))) as other:
        assert isinstance(other, SplitCloud)
        there.tail = there.refusing(grpc.StatusCode.UNAVAILABLE)
        clouds = {"addresses": (there.address, other.address)}
        async with agent_of(None, bundle=bundle, split=NEVER_RAW, breaker=NEVER_OPENS, there=clouds) as agent:
            answers = await answer_all(agent, images)
        assert {a.prediction.peer for a in answers if a.prediction.route.placement is Placement.SPLIT} == {1}
        assert WHOLE not in there.models | other.models


async def test_where_the_whole_input_must_not_leave_the_breaker_is_probed_with_what_a_head_makes(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(200, 14)
    quick = BreakerSettings(failures=1, window=20, open_s=0.01, max_open_s=0.02)
    there.tail = there.refusing(grpc.StatusCode.UNAVAILABLE)
    async with agent_of(there.address, bundle=bundle, split=NEVER_RAW, breaker=quick) as agent:
        await answer_all(agent, images)
        assert Reason.BREAKER in {a.reason for a in await answer_all(agent, images)}
        there.tail = there.continued
        until = time.monotonic() + PATIENT_S
        while Placement.SPLIT not in places(await answer_all(agent, images)):
            assert time.monotonic() < until, "the cloud is never found again"
            await asyncio.sleep(0.02)
    assert WHOLE not in there.models
