"""The watch over the certificate: what withdraws it, what is said about that, and how a new one comes about."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge.config import DriftSettings
from edgemux.edge.gauges import export
from edgemux.edge.ledger import CAPACITY, Ledger
from edgemux.edge.sample import Sample
from edgemux.edge.status import status_of
from edgemux.edge.vigil import QUEUE, Standing, Vigil, Withdrawal
from edgemux.multiplexer.bundle import Bundle, Manifest
from edgemux.multiplexer.certify import KEEP_ALL
from edgemux.multiplexer.domain import Placement, Prediction, Route
from edgemux.multiplexer.usual import add_references

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]

PATIENT_S = 20.0
# Few inputs to learn from and to an alarm, so that tests are short.
QUICK = DriftSettings(run_length=1000.0, reference_inputs=200)
CLOUD = Route("cloud", Placement.CLOUD)
LEVEL_4 = Route("level-4", Placement.EDGE, 4)
MODEL = {"model": "fashion-mnist"}


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def answer(label: int, surest: float, route: Route = CLOUD) -> Prediction:
    probabilities = np.full(10, (1.0 - surest) / 9, np.float32)
    probabilities[label] = surest
    return Prediction(route, label, probabilities, surest)


def sample(surest: float | None = None, gain: float = 0.0) -> Sample:
    """An input that level 4 is as good at as the cloud, give or take ``gain``."""
    made = Sample({}, np.array([[0.5, 0.6, 0.7, 0.8, 0.8 + gain]], np.float32), 0.0)
    if surest is not None:
        made.answer = answer(3, surest, LEVEL_4)
    return made


class World:
    """Feeds a vigil, with no agent: dark pictures until told otherwise, and a chance to differ."""

    def __init__(self, manifest: Manifest, settings: DriftSettings = QUICK, audit_share: float = 0.01) -> None:
        self.vigil = Vigil(manifest, settings, audit_share, random.Random(1), lambda: 1e9)
        self.rng = np.random.default_rng(2)

    def inputs(self, count: int, light: float = 60.0) -> None:
        pictures = self.rng.normal(light, 10.0, (count, 28, 28)).clip(0, 255).astype(np.uint8)
        scores = self.rng.random((count, 5)).astype(np.float32)
        for start in range(0, count, 500):
            self.vigil.saw({"image": pictures[start : start + 500]}, scores[start : start + 500])
            self.vigil.step()

    def answers(self, count: int, most: float = 1.0) -> None:
        """Answers of level 4 whose confidence is uniform up to ``most``."""
        for _ in range(count):
            seen, surest = sample(), float(self.rng.uniform(0.1, most))
            terms = self.vigil.terms
            scores = np.array([[0.0, 0.0, 0.0, surest, 1.0]])
            self.vigil.answered(answer(3, surest, LEVEL_4), seen, scores, terms)
        self.vigil.step()

    def alarmed(self, reason: Withdrawal = Withdrawal.INPUT_SHIFT) -> World:
        """After an alarm, and knowing what is usual now."""
        self.vigil.withdraw(reason)
        self.inputs(QUICK.reference_inputs)
        return self

    def keeps(self, surest: float) -> bool:
        """Whether level 4 keeps an answer: by its calibrated confidence after an alarm, half of all before."""
        terms = self.vigil.terms
        if not terms.calibrations:
            return surest >= 0.5
        scores = terms.scores(answer(3, surest, LEVEL_4))[0]
        return bool(scores[4] - terms.defer[3] <= scores[3])

    def draws(self, count: int, differ: Callable[[float], float]) -> None:
        """Inputs drawn by chance, some of which went to the cloud by themselves; ``differ`` is the chance to."""
        for number in range(count):
            surest = float(self.rng.uniform(0.1, 1.0))
            seen = sample(surest)
            seen.epoch = self.vigil.terms.epoch
            other = 4 if self.rng.random() < differ(surest) else 3
            self.vigil.compared(seen, answer(other, 0.9), kept=self.keeps(surest), drawn=True)
            if number % 50 == 49:
                self.vigil.step()
        self.vigil.step()


def test_with_nothing_changed_the_bundle_s_certificate_stays_in_force(manifest: Manifest) -> None:
    world = World(manifest)
    world.inputs(5000)
    world.answers(3000)
    world.draws(300, lambda surest: 0.01)
    state = world.vigil.state
    assert (state.standing, state.reason) == (Standing.IN_FORCE, None)
    assert state.bound == 0.02
    assert not state.learning
    assert not world.vigil.terms.calibrations
    assert world.vigil.terms.defer == manifest.multiplexer.defer


def test_darker_pictures_withdraw_the_certificate(manifest: Manifest) -> None:
    world = World(manifest)
    world.inputs(1000)
    world.inputs(100, light=40.0)
    state = world.vigil.state
    assert (state.standing, state.reason, state.since_s) == (Standing.WITHDRAWN, Withdrawal.INPUT_SHIFT, 1e9)
    assert state.bound == 1.0, "nothing is known yet about what holds now"
    assert world.vigil.audit_share == QUICK.audit_share_alarm
    assert world.vigil.terms.offload_first == KEEP_ALL


def test_less_sure_answers_withdraw_the_certificate(manifest: Manifest) -> None:
    world = World(manifest)
    world.answers(1000)
    world.answers(200, most=0.5)
    assert world.vigil.state.reason is Withdrawal.SCORE_SHIFT


def test_audits_that_contradict_the_certificate_withdraw_it(manifest: Manifest) -> None:
    world = World(manifest)
    world.draws(200, lambda surest: 0.2)
    assert world.vigil.state.reason is Withdrawal.AUDITS
    assert world.vigil.state.bound > 0.1


def test_inputs_that_reach_the_device_only_because_the_cloud_is_away_do_not_look_like_a_shift(
    manifest: Manifest,
) -> None:
    world = World(manifest)
    world.answers(1000)
    for _ in range(300):
        hard = sample(gain=manifest.multiplexer.offload_first - 0.1)
        hard.scores[0, :4] = 0.1
        world.vigil.answered(
            answer(3, 0.2, LEVEL_4),
            hard,
            np.array([[0, 0, 0, 0.2, 1.0]]),
            world.vigil.terms,
        )
    world.vigil.step()
    assert world.vigil.state.standing is Standing.IN_FORCE


def test_after_an_alarm_max_softmax_decides_and_the_cloud_counts_as_right(manifest: Manifest) -> None:
    world = World(manifest)
    world.vigil.withdraw(Withdrawal.INPUT_SHIFT)
    terms = world.vigil.terms
    sure, unsure = (terms.scores(answer(3, surest, LEVEL_4))[0].tolist() for surest in (0.95, 0.4))
    assert sure[3] == pytest.approx(0.95, abs=1e-6)
    assert sure[4] - sure[3] < terms.defer[3] < unsure[4] - unsure[3]
    assert terms.defer == manifest.multiplexer.defer


def test_enough_draws_make_a_new_certificate_and_its_price_keeps_what_was_certified(manifest: Manifest) -> None:
    world = World(manifest).alarmed()
    world.draws(600, lambda surest: 0.3 * (surest < 0.7))
    state = world.vigil.state
    assert (state.standing, state.reason) == (Standing.RE_CERTIFIED, Withdrawal.INPUT_SHIFT)
    assert not state.alarmed
    new = state.recertified["level-4"]
    assert state.bound == new.alpha == 0.02
    assert 0.0 < new.doubt < 0.45
    assert world.keeps(1.0 - new.doubt + 0.01)
    assert not world.keeps(1.0 - new.doubt - 0.01)
    assert world.vigil.audit_share == 0.01


def test_a_level_that_starts_to_answer_without_a_certificate_makes_the_bound_one(manifest: Manifest) -> None:
    world = World(manifest).alarmed()
    world.draws(600, lambda surest: 0.0)
    assert world.vigil.state.bound == 0.02
    seen = sample()
    world.vigil.answered(answer(3, 0.9, Route("level-2", Placement.EDGE, 2)), seen, np.zeros((1, 5)), world.vigil.terms)
    world.vigil.step()
    assert world.vigil.state.bound == 1.0


def test_nothing_is_certified_before_it_is_known_what_is_usual_now(manifest: Manifest) -> None:
    world = World(manifest)
    world.vigil.withdraw(Withdrawal.INPUT_SHIFT)
    world.draws(600, lambda surest: 0.0)
    assert world.vigil.state.standing is Standing.WITHDRAWN
    world.inputs(QUICK.reference_inputs)
    assert world.vigil.state.standing is Standing.RE_CERTIFIED


def test_a_device_that_is_always_wrong_gets_no_new_certificate(manifest: Manifest) -> None:
    world = World(manifest).alarmed(Withdrawal.AUDITS)
    world.draws(1200, lambda surest: 0.9)
    state = world.vigil.state
    assert state.standing is Standing.WITHDRAWN
    assert not world.keeps(0.9)
    assert world.vigil.terms.calibrations[3].confidence(0.9) < 0.4, "the calibration has learned it"


def test_offloads_alone_teach_the_calibration_what_doubt_means(manifest: Manifest) -> None:
    world = World(manifest)
    world.vigil.withdraw(Withdrawal.INPUT_SHIFT)
    for _ in range(500):
        surest = float(world.rng.uniform(0.1, 0.8))
        seen = sample(surest)
        seen.epoch = world.vigil.terms.epoch
        other = 3 if world.rng.random() < surest / 2 else 4
        world.vigil.compared(seen, answer(other, 0.9), kept=False, drawn=False)
    world.vigil.step()
    assert world.vigil.terms.calibrations[3].confidence(0.6) == pytest.approx(0.3, abs=0.08)
    assert world.vigil.state.draws == 0, "they are no random sample"


def test_comparisons_from_before_the_alarm_are_not_counted_after_it(manifest: Manifest) -> None:
    world = World(manifest)
    old = sample(0.9)
    world.vigil.withdraw(Withdrawal.INPUT_SHIFT)
    world.vigil.compared(old, answer(4, 0.9), kept=True, drawn=True)
    world.vigil.step()
    assert world.vigil.state.draws == 0


def test_inputs_that_skip_the_device_count_as_not_kept(manifest: Manifest) -> None:
    world = World(manifest)
    for _ in range(10):
        world.vigil.compared(sample(), answer(4, 0.9), kept=False, drawn=True)
        world.vigil.compared(sample(), answer(4, 0.9), kept=False, drawn=False)
    world.vigil.step()
    assert (world.vigil.state.draws, world.vigil.state.differ) == (10, 0)


def test_switched_off_nothing_is_gathered_and_the_certificate_says_that_nobody_looks(manifest: Manifest) -> None:
    world = World(manifest, DriftSettings(enabled=False))
    world.inputs(100)
    world.answers(100)
    world.draws(100, lambda surest: 1.0)
    assert not world.vigil.due
    assert world.vigil.state.standing is Standing.UNWATCHED
    assert world.vigil.state.bound == 0.02


def test_of_inputs_that_are_alike_only_some_are_looked_at(manifest: Manifest) -> None:
    world = World(manifest, DriftSettings(run_length=1000.0, reference_inputs=200, every=10))
    world.inputs(1000)
    world.answers(1000)
    seen = [stream.seen for stream in (*world.vigil._input_streams, world.vigil._score_streams[3])]
    assert all(50 < count < 170 for count in seen)


def test_without_a_certificate_an_alarm_still_hands_over_to_max_softmax(manifest: Manifest) -> None:
    world = World(msgspec.structs.replace(manifest, certificate=None))
    world.draws(200, lambda surest: 0.02)
    assert 0.0 < world.vigil.state.bound < 0.2, "the draws' own interval"
    world.alarmed()
    world.draws(600, lambda surest: 0.0)
    state = world.vigil.state
    assert state.standing is Standing.NONE
    assert state.alarmed
    assert world.vigil.terms.calibrations
    assert not state.recertified


def test_a_price_that_kept_everything_does_not_do_so_after_an_alarm() -> None:
    assert Ledger(KEEP_ALL, 0.02, 0.025, random.Random(0)).price == 0.02
    assert Ledger(0.3, 0.02, 0.025, random.Random(0)).price == 0.3


def test_memory_is_bounded_however_much_comes_in(manifest: Manifest) -> None:
    world = World(manifest)
    world.vigil.withdraw(Withdrawal.INPUT_SHIFT)
    for _ in range(3 * QUEUE):
        seen = sample(0.9)
        seen.epoch = world.vigil.terms.epoch
        world.vigil.compared(seen, answer(3, 0.9), kept=True, drawn=True)
    assert len(world.vigil._comparisons) == QUEUE
    waiting = list(world.vigil._comparisons)
    for _ in range(3):
        world.vigil._comparisons.extend(waiting)
        world.vigil.step()
    drawn = world.vigil._ledgers[3]._drawn
    assert drawn.seen == 3 * QUEUE
    assert len(drawn.rows) == CAPACITY


def test_a_level_that_answers_nothing_keeps_nothing_and_one_that_does_keeps_all_for_what_is_known() -> None:
    ledger = Ledger(0.2, 0.02, 0.025, random.Random(0))
    assert ledger.risk_limit == 0.0
    ledger.used = True
    assert ledger.risk_limit == 1.0


def test_a_bundle_that_says_what_is_usual_is_held_against_it_from_the_first_input_on(
    tiny_bundle: Path, tmp_path: Path, pictures: Pictures
) -> None:
    usual = [{"image": pictures(1000, seed)[0]} for seed in (31, 32)]
    vigil = Vigil(add_references(shutil.copytree(tiny_bundle, tmp_path / "bundle"), *usual), QUICK, 0.01)
    assert not vigil.state.learning
    assert vigil.state.reference == "bundle"
    scores = np.full((300, 5), 0.5, np.float32)
    vigil.saw({"image": pictures(300, 33)[0] // 2}, scores)
    vigil.step()
    assert vigil.state.reason is Withdrawal.INPUT_SHIFT
    assert vigil.state.reference == "first inputs", "what is usual after a shift, no bundle knows"


# --- in an agent ------------------------------------------------------------------------------------------------------


async def serve_until(agent: Any, images: NDArray[np.uint8], done: Callable[[], bool]) -> bool:
    """Send the pictures again and again, with time for the watch in between."""
    for _ in range(100):
        for image in images:
            await agent.infer({"image": image[None]}, PATIENT_S)
        await asyncio.sleep(0.05)
        if done():
            return True
    return False


def washed_out(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (images // 2 + 90).astype(np.uint8)


async def test_washed_out_pictures_raise_an_alarm_that_status_and_metrics_show_and_then_certify_again(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    usual, _ = pictures(250, 21)
    changed, _ = pictures(250, 22)
    async with agent_of(cloud.address, drift=QUICK, audit_share=1.0, sensors=()) as agent:
        vigil, value = agent.vigil, agent.metrics.registry.get_sample_value
        assert await serve_until(agent, usual, lambda: not vigil.state.learning)
        export(agent, 0.0)
        assert vigil.state.standing is Standing.IN_FORCE
        assert (value("edgemux_drift", MODEL), value("edgemux_disagreement_upper_bound", MODEL)) == (0.0, 0.02)

        certificate: dict[str, Any] = {}

        def withdrawn() -> bool:
            certificate.update(status_of(agent)["certificate"])
            return bool(certificate["standing"] != "in_force")

        assert await serve_until(agent, washed_out(changed[:30]), withdrawn)
        export(agent, 0.0)
        assert certificate["withdrawn_because"] in {"input_shift", "score_shift"}
        assert status_of(agent)["drift"]["scores"] == "calibrated_confidence"
        assert value("edgemux_drift", MODEL) == float(vigil.state.alarmed)
        assert value("edgemux_disagreement_upper_bound", MODEL) == vigil.state.bound

        assert await serve_until(agent, washed_out(changed), lambda: vigil.state.standing is Standing.RE_CERTIFIED)
        export(agent, 0.0)
        shown = status_of(agent)
        assert shown["certificate"]["standing"] == "re_certified"
        assert shown["certificate"]["made_here"]["level-4"]["n"] >= 256
        assert shown["drift"]["alarm"] is None
        assert value("edgemux_drift", MODEL) == 0.0


async def test_a_watch_that_takes_for_ever_keeps_no_request_waiting(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    images, _ = pictures(30, 23)
    began, release = threading.Event(), threading.Event()
    async with agent_of(cloud.address, drift=QUICK) as agent:

        def stuck() -> None:
            began.set()
            release.wait()

        agent.vigil.step = stuck
        try:
            assert await serve_until(agent, images, began.is_set)
            for image in images:
                await agent.infer({"image": image[None]}, PATIENT_S)
        finally:
            release.set()


async def test_a_watch_that_fails_takes_the_certificate_with_it(agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(5, 24)
    async with agent_of(None, drift=QUICK) as agent:
        agent.vigil.step = lambda: 1 / 0
        assert await serve_until(agent, images, lambda: agent.vigil.state.reason is Withdrawal.WATCH_FAILED)
        assert agent.vigil.state.standing is Standing.WITHDRAWN
        assert not agent.vigil.due
        assert len(await agent.infer({"image": images}, PATIENT_S)) == 5
