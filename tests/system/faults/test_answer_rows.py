"""Rows 11, 16 to 18, 20 to 25 and 29: a cloud that is there, and answers as it must not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from tests.system.faults import answers
from tests.system.faults.load import Load
from tests.system.faults.rows import USUAL, Row, check
from tests.system.faults.stage import Stage, agent_process, found_by
from tests.system.faults.table import Found

BAD, GONE, TIMEOUT = frozenset({"cloud_bad_answer"}), frozenset({"cloud_unreachable"}), frozenset({"cloud_timeout"})
DENIED = frozenset({"cloud_denied"})
OTHER, FULL = frozenset({"cloud_incompatible"}), frozenset({"cloud_overloaded"})
PUSHBACK_S = 0.7
# An answer that is later than this counts as a failure of the cloud, however long its client would wait.
SLOW_S = 1.0


@pytest.fixture
def simulated(on_stage: Stage) -> Iterator[Stage]:
    """The stage, led to the simulated cloud, which is well."""
    on_stage.lead_to_the_simulated_cloud()
    on_stage.well()
    yield on_stage
    on_stage.answer(on_stage.simulated.well)


def bent(bend: Callable[[Any], None]) -> Callable[[Stage], None]:
    return lambda stage: stage.answer(answers.meant(stage.simulated, bend))


def saying(content: bytes) -> Callable[[Stage], None]:
    return lambda stage: stage.answer(answers.raw(content))


def refusing(code: grpc.StatusCode) -> Callable[[Stage], None]:
    return lambda stage: stage.answer(stage.simulated.refusing(code))


def slow(delay_s: float) -> Callable[[Stage], None]:
    return lambda stage: stage.answer(answers.slow(stage.simulated, delay_s))


ROWS: tuple[Row[Stage], ...] = (
    Row(11, "slow, just under the deadline", slow(0.3), TIMEOUT | {"deferred"}, opens=False),
    Row(11, "slow, over the deadline", slow(0.6), TIMEOUT),
    Row(11, "slower than a cloud may be", slow(SLOW_S + 0.2), TIMEOUT | {"deferred"}, timeout_s=3.0, requests=240),
    Row(16, "wrong shape", bent(answers.transposed), BAD),
    Row(16, "wrong rank", bent(answers.of_another_rank), BAD),
    Row(16, "wrong datatype", bent(answers.doubles), BAD),
    Row(16, "one class more", bent(answers.one_class_more), BAD),
    Row(16, "one class less", bent(answers.one_class_less), BAD),
    Row(16, "content cut short", bent(answers.cut_short), BAD),
    Row(16, "claims an enormous shape", bent(answers.claims_too_much), BAD),
    Row(17, "NaN", bent(answers.nothing_is_a_number), BAD),
    Row(17, "infinity", bent(answers.one_is_infinite), BAD),
    Row(17, "no distribution", bent(answers.no_distribution), BAD),
    Row(18, "2 MB of answer", bent(answers.oversize), FULL | BAD | TIMEOUT, opens=False),
    Row(20, "another id", bent(answers.another_id), BAD),
    Row(20, "the answer before", lambda s: s.answer(answers.previous(s.simulated)), BAD),
    Row(20, "two answers in one", bent(answers.two_answers), BAD),
    Row(21, "OK and an empty message", saying(b""), BAD),
    Row(21, "OK and no message", saying(b"\xff\xff\xff"), BAD),
    Row(23, "INTERNAL", refusing(grpc.StatusCode.INTERNAL), GONE | BAD),
    Row(23, "UNKNOWN", refusing(grpc.StatusCode.UNKNOWN), GONE | BAD),
    Row(23, "CANCELLED", refusing(grpc.StatusCode.CANCELLED), GONE | BAD),
    Row(23, "ABORTED", refusing(grpc.StatusCode.ABORTED), GONE | BAD),
    Row(23, "DATA_LOSS", refusing(grpc.StatusCode.DATA_LOSS), GONE | BAD),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_accepted_request_gets_one_answer(
    row: Row[Stage], simulated: Stage, report: Callable[[Found], None]
) -> None:
    row = row_with_repair(row)
    check(row, simulated, report)


def row_with_repair(row: Row[Stage]) -> Row[Stage]:
    """The cloud answers well again."""
    return replace(row, repair=lambda stage: stage.answer(stage.simulated.well))


def test_row_22_a_cloud_that_is_full_is_left_alone_for_as_long_as_it_says_and_is_not_taken_to_be_ill(
    simulated: Stage, report: Callable[[Found], None]
) -> None:
    seen_s: list[float] = []
    states: set[int] = set()

    def watch(stage: Stage, load: Load) -> None:
        for _ in range(12):
            load.more(16)
            states.add(stage.agent.breaker())

    def fill(stage: Stage) -> None:
        stage.answer(answers.overloaded(PUSHBACK_S, seen_s))

    row = row_with_repair(Row(22, f"full, come back in {PUSHBACK_S:g} s", fill, FULL, during=watch, opens=False))
    check(row, simulated, report)
    assert states == {0}
    # Requests that were under way together are one visit, also when the machine was busy meanwhile.
    gaps = [later - earlier for earlier, later in itertools.pairwise(seen_s) if later - earlier > PUSHBACK_S / 2]
    assert len(gaps) >= 2
    assert min(gaps) >= PUSHBACK_S - 0.1
    assert len(seen_s) <= 10 * (len(gaps) + 1)


UNWILLING = (
    (23, grpc.StatusCode.PERMISSION_DENIED, DENIED),
    (24, grpc.StatusCode.UNIMPLEMENTED, OTHER),
    (24, grpc.StatusCode.FAILED_PRECONDITION, OTHER),
    (29, grpc.StatusCode.UNAUTHENTICATED, DENIED),
)


@pytest.mark.parametrize(("number", "code", "causes"), UNWILLING, ids=lambda value: getattr(value, "name", None))
def test_a_cloud_that_does_not_serve_what_is_wanted_is_not_asked_until_it_says_that_it_does(
    number: int, code: grpc.StatusCode, causes: frozenset[str], simulated: Stage, report: Callable[[Found], None]
) -> None:
    stage = simulated
    complaints = stage.agent.server.errors().count("cloud unserved")
    with stage.load() as load:
        load.more(40)
        began_s = time.monotonic()
        stage.simulated_is_ready(False)
        stage.answer(stage.simulated.refusing(code))
        # Two inputs have to be refused, and by chance few want the cloud.
        load.wait(lambda: stage.agent.server.errors().count("cloud unserved") > complaints)
        asked = stage.simulated.seen
        load.more(120)
        assert stage.simulated.seen == asked
        stage.answer(stage.simulated.well)
        load.more(40)
        assert stage.simulated.seen == asked, "asked again before it has said that it serves what is wanted"
        stage.simulated_is_ready(True)
        stage.proxy.reset()
        repaired_s = stage.heal()
        recovery_s = stage.recovery_s(load, repaired_s)
        load.more(20)
    verdict = stage.judge(load)
    report(found_by(verdict, number, f"{code.name}, until a new hand-shake", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    during = [e for e in load.entries if began_s <= e.sent_s < repaired_s]
    reasons = {e.reason for e in during if e.answered}
    assert causes <= reasons <= causes | USUAL
    assert stage.agent.server.errors().count("cloud unserved") == complaints + 1
    assert recovery_s <= 3.0


def test_row_25_answers_of_another_model_are_counted_and_refused_by_default(
    simulated: Stage, report: Callable[[Found], None]
) -> None:
    stage = simulated
    before = stage.agent.metric("edgemux_other_model_total")
    with stage.load() as load:
        load.more(40)
        began_s = time.monotonic()
        stage.simulated_is_ready(False)
        stage.answer(answers.meant(stage.simulated, answers.of_another_model))
        load.more(160)
        stage.answer(stage.simulated.well)
        stage.simulated_is_ready(True)
        stage.proxy.reset()
        repaired_s = stage.heal()
        recovery_s = stage.recovery_s(load, repaired_s)
    verdict = stage.judge(load)
    report(found_by(verdict, 25, "another model, refused", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    during = [e for e in load.entries if began_s <= e.sent_s < repaired_s]
    assert "cloud_incompatible" in {e.reason for e in during}
    assert stage.agent.metric("edgemux_other_model_total") > before


def test_row_25_answers_of_another_model_count_where_the_configuration_says_so(
    on_stage: Stage, serving: Any, tmp_path: Path, tiny_bundle: Path, report: Callable[[Found], None]
) -> None:
    stage = on_stage
    stage.answer(answers.meant(stage.simulated, answers.of_another_model))
    accepting = {"accept_other_models": True}
    with agent_process(serving, tmp_path, tiny_bundle, stage.simulated.address, cloud=accepting) as agent:
        with agent.load(stage.backstage, stage.pictures) as load:
            load.more(120)
        verdict = stage.judge_of(agent, load)
        report(found_by(verdict, 25, "another model, accepted", load))
        assert verdict.faults + verdict.refused == ()
        assert sum(e.route == "cloud" for e in load.entries) > len(load.entries) / 3
        assert agent.metric("edgemux_other_model_total") > 0
        certificate = agent.server.get("/status")[1]["certificate"]
    stage.answer(stage.simulated.well)
    assert certificate["standing"] == "withdrawn"
