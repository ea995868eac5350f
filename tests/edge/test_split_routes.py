"""The agent in process with a bundle that has splits: which way is taken, and what happens where it cannot be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge import Answer
from edgemux.edge.breaker import BreakerSettings
from edgemux.edge.config import LimitSettings
from edgemux.edge.events import CloudServes
from edgemux.edge.notices import Notices
from edgemux.edge.packing import LOOK_S
from edgemux.edge.peer import CALL_OVERHEAD_BYTES
from edgemux.edge.sample import Sample
from edgemux.edge.split_planning import SplitSettings
from edgemux.edge.status import status_of
from edgemux.edge.vigil import Withdrawal
from edgemux.multiplexer.bundle import Bundle, splits_of
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.simulated_cloud import SimulatedCloud, listening
from tests.split_stand import GOING_ON, PLAIN, SplitCloud, of_another_tail, with_splits

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]

PATIENT_S = 20.0
# Slow calls are what these tests are about.
NEVER_OPENS = BreakerSettings(failures=10**6, window=10**6, slow_s=PATIENT_S)
ALWAYS = SplitSettings(use="always")
NEVER_RAW = SplitSettings(never_send_raw=True)
WHOLE = "fashion-mnist"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle")


@pytest.fixture
async def there(bundle: Path) -> AsyncIterator[SplitCloud]:
    async with listening(SplitCloud(Bundle.open(bundle))) as cloud:
        assert isinstance(cloud, SplitCloud)
        yield cloud


async def answer_all(agent: Any, images: NDArray[np.uint8], timeout_s: float = PATIENT_S) -> list[Answer]:
    return [(await agent.infer({"image": images[i : i + 1]}, timeout_s))[0] for i in range(len(images))]


def places(answers: list[Answer]) -> set[Placement]:
    return {answer.prediction.route.placement for answer in answers}


async def offloaded(agent: Any, images: NDArray[np.uint8], count: int) -> list[Answer]:
    """Answers to the first inputs that the cloud is asked about, so many."""
    found: list[Answer] = []
    for i in range(len(images)):
        (answer,) = await agent.infer({"image": images[i : i + 1]}, PATIENT_S)
        if answer.prediction.route.placement is not Placement.EDGE:
            found.append(answer)
        if len(found) == count:
            break
    return found


async def test_splits_are_taken_on_a_squeezed_link_and_left_when_it_is_quick_again(
    there: SplitCloud,
    agent_of: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgemux.edge.split_executor.LOOK_S", 1.0)
    images, _ = pictures(600, 1)
    # So slow in the cloud that nobody would want it on a quick link, however busy this machine is.
    folder = with_splits(tiny_bundle, tmp_path / "bundle", tail_ms=50.0)
    there.rtt_s, there.bytes_per_s = 0.01, 2000.0
    async with agent_of(there.address, bundle=folder, breaker=NEVER_OPENS) as agent:
        await agent.cloud.ping(PATIENT_S)
        await offloaded(agent, images, 4)
        assert there.received[0][0] == WHOLE, "until the link is known"
        assert there.received[-1][0] != WHOLE
        assert sum(answered(agent, name) for name in (PLAIN, GOING_ON)) == len(there.received) - 1
        there.rtt_s, there.bytes_per_s = 0.0, float("inf")
        until = time.monotonic() + PATIENT_S
        while there.received[-2:] != [there.received[-1]] * 2 or there.received[-1][0] != WHOLE:
            assert time.monotonic() < until, "the whole input is never sent again"
            await agent.cloud.ping(PATIENT_S)
            await offloaded(agent, images, 2)


def answered(agent: Any, name: str) -> float:
    """Inputs that were answered by a split."""
    labels = {"model": WHOLE, "route": "split", "variant": name}
    value = agent.metrics.registry.get_sample_value
    return float(sum(value("edgemux_requests_total", labels | {"reason": r}) for r in ("offloaded", "deferred")))


@pytest.mark.parametrize(("large_s", "whole"), [(0.9, False), (0.01, True)])
async def test_the_way_follows_what_was_seen_of_the_link(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures, large_s: float, whole: bool
) -> None:
    images, _ = pictures(60, 1)
    quiet = {"probe_interval_s": 3600.0}
    async with agent_of(there.address, bundle=bundle, breaker=NEVER_OPENS, there=quiet) as agent:
        agent.cloud.link.observe(100, 0.01, time.monotonic())
        agent.cloud.link.observe(1000, large_s, time.monotonic())
        agent.splits._latest.latency.observe = lambda _: None
        agent.splits._latest.latency.mean_s = 5e-5  # whatever this machine is busy with
        (answer,) = await offloaded(agent, images, 1)
    assert (answer.prediction.route.placement is Placement.CLOUD) is whole
    assert there.models == {WHOLE} if whole else WHOLE not in there.models


async def test_the_link_is_as_the_newest_calls_say_and_a_split_is_expected_to_take_what_it_takes_there(
    there: SplitCloud, agent_of: Any, bundle: Path
) -> None:
    quiet = {"probe_interval_s": 3600.0}
    async with agent_of(there.address, bundle=bundle, breaker=NEVER_OPENS, there=quiet) as agent:
        splits, whole = agent.splits, agent.cloud.link
        half = splits.halves[PLAIN]
        half.tail.request_bytes = 500
        (parts,) = (peer.link for peer in half.tail.peers)
        whole.observe(100, 0.04, 10.0)
        whole.observe(1000, 0.24, 10.0)
        assert splits.link(10.0)[1] == pytest.approx(872 / 0.2)
        expected_s = splits.link(10.0)[0] + 500 / splits.link(10.0)[1]
        assert splits.predict_s(half, 10.0) == pytest.approx(expected_s + half.split.tail_ms / 1000)
        parts.observe(500, 0.14, 10.5)
        assert splits.predict_s(half, 10.5) == pytest.approx(half.tail.predict_s(10.5))
        assert splits.link(10.5)[1] == pytest.approx(500 / 0.1), "both kinds, at the same time"
        whole.observe(100, 0.04, 12.0)
        parts.observe(500, 0.041, 12.0)
        assert splits.link(12.0)[1] > 1e5, "the whole input was slow before"


async def test_answers_are_those_of_head_and_tail_run_by_hand(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    images, labels = pictures(120, 2)
    opened = Bundle.open(bundle)
    plain = next(split for split in splits_of(opened.manifest) if split.name == PLAIN)
    head, tail = (OnnxModel(opened.read(path), path) for path in (plain.head, plain.tail))
    (expected,) = tail.run({"sent": head.run({"image": images})[0]}, ["probabilities"])
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE, Placement.SPLIT}
    assert {a.reason for a in answers} <= {Reason.CONFIDENT, Reason.OFFLOADED, Reason.DEFERRED}
    assert WHOLE not in there.models and not any(a.degraded for a in answers)
    right = 0
    sent = [i for i, a in enumerate(answers) if a.prediction.route.placement is Placement.SPLIT]
    for i in sent:
        np.testing.assert_allclose(answers[i].prediction.probabilities, expected[i], atol=0.3)
        right += answers[i].prediction.label == expected[i].argmax()
    assert right == len(sent)
    assert np.mean([answers[i].prediction.label == labels[i] for i in sent]) > 0.9


async def test_a_head_goes_on_from_what_the_level_left_and_nothing_is_computed_twice(
    there: SplitCloud, agent_of: Any, tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    images, _ = pictures(120, 2)
    folder = with_splits(tiny_bundle, tmp_path / "bundle", (GOING_ON,))
    async with agent_of(there.address, bundle=folder, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        runs: list[int] = []
        for index, delta in enumerate(agent.family.chain._deltas):
            delta.run = counted(delta.run, runs, index + 1)
        for i in range(len(images)):
            runs.clear()
            await agent.infer({"image": images[i : i + 1]}, PATIENT_S)
            assert len(set(runs)) == len(runs)
    assert there.models == {f"{WHOLE}.{GOING_ON}"}


def counted(run: Callable[..., Any], runs: list[int], number: int) -> Callable[..., Any]:
    def wrapped(*given: Any) -> Any:
        runs.append(number)
        return run(*given)

    return wrapped


async def test_after_a_tail_that_failed_the_device_answers_with_what_it_has_computed(
    there: SplitCloud, agent_of: Any, tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    images, _ = pictures(120, 2)
    folder = with_splits(tiny_bundle, tmp_path / "bundle", (GOING_ON,))
    async with agent_of(None) as agent:
        alone = await answer_all(agent, images)
    there.tail = there.refusing(grpc.StatusCode.UNAVAILABLE)
    async with agent_of(there.address, bundle=folder, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, Reason.CLOUD_UNREACHABLE}
    for answer, other in zip(answers, alone, strict=True):
        if answer.prediction.route == other.prediction.route:
            np.testing.assert_allclose(answer.prediction.probabilities, other.prediction.probabilities, atol=1e-6)


def bending(cloud: SplitCloud) -> Callable[[Any, Any], Any]:
    async def spoil(request: Any, context: Any) -> Any:
        response = await cloud.continued(request, context)
        of_another_tail(response)
        return response

    return spoil


MISFITS = {
    "missing": lambda cloud: cloud.refusing(grpc.StatusCode.NOT_FOUND),
    "another digest": bending,
    "undecodable": lambda cloud: cloud.refusing(grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("misfit", MISFITS)
async def test_a_tail_that_does_not_fit_is_left_alone_and_the_whole_input_is_sent(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures, misfit: str
) -> None:
    images, _ = pictures(100, 3)
    there.tail = MISFITS[misfit](there)
    async with agent_of(there.address, bundle=bundle, split=ALWAYS) as agent:
        answers = await answer_all(agent, images)
        unserved = {each["unserved"] for each in status_of(agent)["split"]["routes"]}
        assert agent.vigil.state.reason is None
    assert places(answers) == {Placement.EDGE, Placement.CLOUD}
    assert {a.reason for a in answers} <= {Reason.CONFIDENT, Reason.OFFLOADED, Reason.DEFERRED}
    asked = [name for name, _ in there.received if name != WHOLE]
    assert len(asked) <= 4, "each tail twice, and then no more"
    assert "cloud_incompatible" in unserved


@pytest.mark.parametrize("misfit", MISFITS)
async def test_where_the_whole_input_may_not_be_sent_the_device_answers_and_says_why(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures, misfit: str
) -> None:
    images, _ = pictures(100, 3)
    there.tail = MISFITS[misfit](there)
    async with agent_of(there.address, bundle=bundle, split=NEVER_RAW) as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, Reason.CLOUD_INCOMPATIBLE}
    assert there.received and WHOLE not in there.models


async def test_whole_inputs_never_leave_where_they_must_not(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    images, _ = pictures(150, 4)
    async with agent_of(there.address, bundle=bundle, split=NEVER_RAW, audit_share=1.0) as agent:
        answers = await answer_all(agent, images)
        assert agent.metrics.registry.get_sample_value("edgemux_audit_total", {"model": WHOLE, "outcome": "agree"}) == 0
        assert status_of(agent)["split"]["never_send_raw"]
    assert places(answers) == {Placement.EDGE, Placement.SPLIT}
    assert there.received and WHOLE not in there.models
    assert max(size for _, size in there.received) < images[0].nbytes


async def test_without_a_split_that_may_be_used_the_device_answers_alone_and_says_so(
    cloud: SimulatedCloud, agent_of: Any, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    images, _ = pictures(100, 4)
    async with agent_of(cloud.address, split=NEVER_RAW, audit_share=1.0) as agent:
        answers = await answer_all(agent, images)
        assert status_of(agent)["split"] == {"never_send_raw": True, "answers_alone": True}
    assert cloud.seen == 0
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, Reason.NO_CLOUD}
    assert any("nothing may be sent" in said for said in caplog.messages)


async def test_budgets_and_metrics_count_the_bytes_of_what_the_head_makes(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    images, _ = pictures(60, 5)
    limits = LimitSettings(bytes_per_s=1e6)
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, limits=limits, breaker=NEVER_OPENS) as agent:
        await answer_all(agent, images)
        sent = sum(size + CALL_OVERHEAD_BYTES for _, size in there.received)
        value = agent.metrics.registry.get_sample_value
        assert there.received and value("edgemux_offload_bytes_total") == sent
        spent = agent.purse.limits(time.monotonic())["bytes"].spent
        assert sent <= spent <= sent + 100 * CALL_OVERHEAD_BYTES, "and the looks at the link"
        assert value("edgemux_energy_joules_total", {"model": WHOLE, "route": "split"}) == pytest.approx(sent * 8e-7)


async def test_a_silent_cloud_leaves_the_device_time_to_answer(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    images, _ = pictures(30, 6)
    there.tail = there.answer = there.silent
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        answers = await answer_all(agent, images, timeout_s=0.5)
    assert places(answers) == {Placement.EDGE}
    assert Reason.CLOUD_TIMEOUT in {a.reason for a in answers}


async def test_a_split_that_loses_too_much_is_not_used(
    agent_of: Any, there: SplitCloud, tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    images, _ = pictures(60, 7)
    folder = with_splits(tiny_bundle, tmp_path / "bundle", changed=0.5, n=100)
    async with agent_of(there.address, bundle=folder, split=ALWAYS) as agent:
        answers = await answer_all(agent, images)
        assert agent.splits is None
        assert status_of(agent)["split"]["left_alone"] == dict.fromkeys((PLAIN, GOING_ON), "loses_too_much")
    assert Placement.SPLIT not in places(answers)


async def test_split_answers_are_not_the_cloud_s_word_for_the_certificate(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    images, _ = pictures(80, 8)
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        compared: list[Any] = []
        agent.vigil.compared = lambda *given, **named: compared.append(given)
        answers = await answer_all(agent, images)
    assert Placement.SPLIT in places(answers) and not compared


async def test_a_head_that_fails_is_left_alone_and_the_whole_input_is_sent(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("it broke")

    images, _ = pictures(60, 9)
    async with agent_of(there.address, bundle=bundle, split=ALWAYS) as agent:
        for half in agent.splits.halves.values():
            half.head.run = broken
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE, Placement.CLOUD}
    assert there.models == {WHOLE}


@pytest.mark.parametrize("odd", ["too large a value", "another shape", "another type"])
async def test_a_head_that_makes_what_cannot_be_sent_has_failed(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures, odd: str
) -> None:
    images, _ = pictures(60, 9)
    made = {
        "too large a value": np.full((1, 10), 16, np.uint8),
        "another shape": np.zeros((1, 11), np.uint8),
        "another type": np.zeros((1, 10), np.float32),
    }[odd]
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, audit_share=0.5) as agent:
        for half in agent.splits.halves.values():
            half.split = msgspec.structs.replace(half.split, bits=4)
            half.head.run = lambda *_: made
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE, Placement.CLOUD}
    assert {a.reason for a in answers} <= {Reason.CONFIDENT, Reason.OFFLOADED, Reason.DEFERRED}
    assert there.models == {WHOLE}


async def test_of_many_inputs_at_once_one_is_sent_whole_to_look_at_the_link(
    there: SplitCloud, agent_of: Any, tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    images, _ = pictures(400, 15)
    folder = with_splits(tiny_bundle, tmp_path / "bundle", tail_ms=0.0)
    there.rtt_s, there.bytes_per_s = 0.05, 3000.0
    quiet = {"probe_interval_s": 3600.0}
    async with agent_of(there.address, bundle=folder, breaker=NEVER_OPENS, there=quiet) as agent:
        agent.cloud.link.observe(100, 0.05, time.monotonic())
        agent.cloud.link.observe(1000, 0.4, time.monotonic() - LOOK_S)
        calls = (agent.infer({"image": images[i : i + 1]}, PATIENT_S) for i in range(len(images)))
        answers = [answer for (answer,) in await asyncio.gather(*calls)]
    whole = [size for name, size in there.received if name == WHOLE]
    assert len(whole) == 1
    assert sum(a.prediction.route.placement is Placement.CLOUD for a in answers) == 1
    assert len(there.received) > 5


async def test_a_tail_that_is_there_by_now_is_asked_again_after_a_handshake(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemux.edge.agreement.RECHECK_S", 0.0)
    images, _ = pictures(100, 10)
    there.tail = there.refusing(grpc.StatusCode.NOT_FOUND)
    async with agent_of(there.address, bundle=bundle, split=NEVER_RAW) as agent:
        notices = Notices([agent])
        await answer_all(agent, images)
        list(notices.look(0.0))
        assert len(agent.splits.unserved) == 2
        there.tail, there.ready = there.continued, True
        for peer in agent.splits.unserved:
            await peer.ping(PATIENT_S)
        assert agent.splits.unserved == []
        said = {event.model for event in notices.look(1.0) if isinstance(event, CloudServes)}
        assert said == {f"{WHOLE}.{PLAIN}", f"{WHOLE}.{GOING_ON}"}
        assert Placement.SPLIT in places(await answer_all(agent, images))


async def test_after_a_withdrawal_the_cloud_is_sent_the_input_itself(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Pictures
) -> None:
    images, _ = pictures(100, 11)
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        agent.vigil.withdraw(Withdrawal.INPUT_SHIFT)
        answers = await answer_all(agent, images)
    assert Placement.CLOUD in places(answers) and there.models == {WHOLE}


async def test_without_the_level_below_it_a_split_is_not_offered(
    there: SplitCloud, agent_of: Any, tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    images, _ = pictures(100, 12)
    folder = with_splits(tiny_bundle, tmp_path / "bundle", (GOING_ON,))
    async with agent_of(there.address, bundle=folder, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        agent.family.lower_to(1)
        answers = await answer_all(agent, images)
    assert Placement.CLOUD in places(answers) and there.models == {WHOLE}


async def test_planning_takes_next_to_nothing(there: SplitCloud, agent_of: Any, bundle: Path) -> None:
    async with agent_of(there.address, bundle=bundle) as agent:
        now = time.monotonic()
        agent.cloud.link.observe(100, 0.01, now)
        agent.cloud.link.observe(1000, 0.2, now)
        sample = Sample({}, np.zeros((1, 5), np.float32), now + 1.0)
        times = []
        for i in range(200):
            began = time.perf_counter()
            agent.splits.offered(sample, 4, now + i)  # each is a new plan
            times.append(time.perf_counter() - began)
    assert sorted(times)[len(times) // 2] < 1e-3
