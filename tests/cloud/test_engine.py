"""The engine: requests in, batches through the model, answers out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.cloud.engine import Answer, Engine
from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.errors import DeadlineExceeded, ExecutionError, Overloaded, TooLarge, Unreachable

Make = Callable[..., Engine]
OUTPUTS = ("probabilities",)


def images(*classes: int) -> NDArray[np.uint8]:
    """Images whose classes are these, for the held backend."""
    array = np.zeros((len(classes), 28, 28), np.uint8)
    array[:, 0, 0] = classes
    return array


def soon(seconds: float = 25.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def ask(engine: Engine, *classes: int, seconds: float = 25.0) -> asyncio.Task[Answer]:
    return asyncio.create_task(engine.infer({"image": images(*classes)}, OUTPUTS, soon(seconds)))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop and the worker go on until something is so; the test's own timeout ends it otherwise."""
    while not condition():  # noqa: ASYNC110 - what is waited for is another thread's doing
        await asyncio.sleep(0.001)


async def test_a_quick_model_runs_inline_and_a_slow_one_in_a_thread(make_engine: Make, backend: Any) -> None:
    backend.permit(2)
    for row_s, inline in ((1e-5, True), (0.01, False)):
        engine = make_engine(row_s=row_s)
        assert engine.inline is inline
        answer = await engine.infer({"image": images(3)}, OUTPUTS, soon())
        assert answer.outputs["probabilities"].argmax() == 3
        assert answer.batch_rows == 1
        assert answer.compute_s >= 0


async def test_a_model_that_turns_out_to_be_slow_goes_over_to_a_thread(make_engine: Make, backend: Any) -> None:
    engine = make_engine(row_s=1e-5)
    threading.Timer(0.5, backend.permit).start()
    await ask(engine, 3)
    assert not engine.inline
    second = ask(engine, 4)
    await until(lambda: engine.batcher.busy)  # and the loop runs on
    backend.permit()
    assert (await second).outputs["probabilities"].argmax() == 4


async def test_requests_that_come_while_one_runs_share_the_next_batch(make_engine: Make, backend: Any) -> None:
    engine = make_engine(max_batch=4)
    first = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    later = [ask(engine, 2), ask(engine, 3, 4), ask(engine, 5)]
    await until(lambda: engine.batcher.queued_rows == 4)
    backend.permit(2)
    assert (await first).batch_rows == 1
    answers = await asyncio.gather(*later)
    assert [list(a.outputs["probabilities"].argmax(axis=1)) for a in answers] == [[2], [3, 4], [5]]
    assert [a.batch_rows for a in answers] == [4, 4, 4]
    assert all(a.queue_s >= 0 for a in answers)
    assert backend.batches == [1, 4]


async def test_an_expired_request_is_answered_while_the_batch_before_it_still_runs(
    make_engine: Make, backend: Any
) -> None:
    engine = make_engine(row_s=0.002)
    first = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    with pytest.raises(DeadlineExceeded):
        await engine.infer({"image": images(2)}, OUTPUTS, soon(0.05))
    assert not first.done()
    backend.permit()
    await first
    assert backend.batches == [1]


async def test_a_request_that_comes_after_its_deadline_is_refused(make_engine: Make) -> None:
    engine = make_engine()
    with pytest.raises(DeadlineExceeded):
        await engine.infer({"image": images(1)}, OUTPUTS, soon(-1.0))
    assert engine.batcher.busy is False


async def test_a_full_queue_refuses_and_serves_again_when_it_has_room(make_engine: Make, backend: Any) -> None:
    engine = make_engine(max_batch=4, max_queue=4)
    running = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    queued = [ask(engine, number) for number in range(4)]
    await until(lambda: engine.batcher.queued_rows == 4)
    with pytest.raises(Overloaded) as refusal:
        await engine.infer({"image": images(9)}, OUTPUTS, soon())
    assert refusal.value.retry_after_s is not None
    backend.permit(3)
    await asyncio.gather(running, *queued)
    assert (await engine.infer({"image": images(9)}, OUTPUTS, soon())).outputs["probabilities"].argmax() == 9


async def test_a_request_that_would_wait_past_its_deadline_is_refused_at_once(make_engine: Make, backend: Any) -> None:
    engine = make_engine(row_s=100.0)
    running = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    with pytest.raises(Overloaded):
        await engine.infer({"image": images(2)}, OUTPUTS, soon(20.0))
    backend.permit()
    await running


async def test_a_cancelled_request_leaves_the_queue_and_is_never_computed(make_engine: Make, backend: Any) -> None:
    engine = make_engine()
    first = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    gone, kept = ask(engine, 2), ask(engine, 3)
    await until(lambda: engine.batcher.queued_rows == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert engine.batcher.queued_rows == 1
    backend.permit(2)
    await first
    assert (await kept).batch_rows == 1


async def test_cancelling_a_request_that_runs_disturbs_nobody(make_engine: Make, backend: Any) -> None:
    engine = make_engine()
    running = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    after = ask(engine, 2)
    await until(lambda: engine.batcher.queued_rows == 1)
    running.cancel()
    backend.permit(2)
    assert (await after).outputs["probabilities"].argmax() == 2
    assert running.cancelled()


async def test_a_failing_model_fails_its_batch_and_leaks_nothing(
    make_engine: Make, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    backend.fail_next = True
    backend.permit(2)
    with pytest.raises(ExecutionError) as failure:
        await engine.infer({"image": images(1)}, OUTPUTS, soon())
    assert str(failure.value) == "the model failed"
    assert "secret" not in caplog.text
    assert any(said.startswith("batch failed error=RuntimeError at=") for said in caplog.messages)
    assert (await engine.infer({"image": images(2)}, OUTPUTS, soon())).outputs["probabilities"].argmax() == 2


async def test_more_rows_than_a_batch_are_refused_with_the_bound(make_engine: Make) -> None:
    with pytest.raises(TooLarge, match="at most 4"):
        await make_engine(max_batch=4).infer({"image": images(1, 2, 3, 4, 5)}, OUTPUTS, soon())


async def test_a_linger_gathers_requests_and_ends_by_itself(make_engine: Make, backend: Any) -> None:
    engine = make_engine(linger_s=0.05)
    backend.permit()
    answers = await asyncio.gather(ask(engine, 1), ask(engine, 2))
    assert [a.batch_rows for a in answers] == [2, 2]


async def test_a_closed_engine_takes_nothing_more(make_engine: Make) -> None:
    engine = make_engine()
    await engine.close()
    with pytest.raises(Unreachable):
        await engine.infer({"image": images(1)}, OUTPUTS, soon())


async def test_an_answer_for_the_watchdog_comes_from_where_batches_run_and_is_not_counted(
    make_engine: Make, backend: Any
) -> None:
    for row_s in (1e-5, 0.01):
        engine = make_engine(row_s=row_s)
        before = engine._tally.rows, engine._tally.batches
        backend.permit(1)
        assert (await engine.answer({"image": images(7)}, OUTPUTS))["probabilities"].argmax() == 7
        assert (engine._tally.rows, engine._tally.batches) == before
        assert not engine.batcher.busy


async def test_a_model_that_fails_the_watchdog_s_input_ends_nothing(make_engine: Make, backend: Any) -> None:
    engine = make_engine()
    backend.permit(2)
    backend.fail_next = True
    with pytest.raises(RuntimeError):
        await engine.answer({"image": images(7)}, OUTPUTS)
    assert (await engine.infer({"image": images(3)}, OUTPUTS, soon())).outputs["probabilities"].argmax() == 3


async def test_a_worker_that_hangs_gives_no_answer_to_the_watchdog(make_engine: Make, backend: Any) -> None:
    engine = make_engine()
    asked = asyncio.create_task(engine.answer({"image": images(7)}, OUTPUTS))
    done, _ = await asyncio.wait({asked}, timeout=0.1)
    assert not done
    backend.permit(1)
    assert (await asked)["probabilities"].argmax() == 7


async def test_what_comes_together_runs_together_inline(make_engine: Make, backend: Any) -> None:
    engine = make_engine(row_s=1e-5)
    backend.permit(2)
    answers = await asyncio.gather(*(ask(engine, number) for number in range(6)))
    assert [answer.outputs["probabilities"].argmax() for answer in answers] == list(range(6))
    assert backend.batches == [4, 2]


async def test_a_request_whose_time_ends_while_it_runs_is_told_then_and_not_when_the_batch_ends(
    make_engine: Make, backend: Any
) -> None:
    engine = make_engine()
    short, long = ask(engine, 1, seconds=0.05), None
    await until(lambda: engine.batcher.busy)
    long = ask(engine, 2)
    with pytest.raises(DeadlineExceeded):
        await short
    assert engine.batcher.busy
    backend.permit(2)
    assert (await long).outputs["probabilities"].argmax() == 2


async def test_requests_for_different_outputs_run_apart(make_engine: Make, backend: Any) -> None:
    engine = make_engine()
    first = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    label = asyncio.create_task(engine.infer({"image": images(7)}, ("label",), soon()))
    both = asyncio.create_task(engine.infer({"image": images(8)}, ("label", "probabilities"), soon()))
    await until(lambda: engine.batcher.queued_rows == 2)
    backend.permit(3)
    await first
    assert list((await label).outputs) == ["label"]
    assert list((await both).outputs) == ["label", "probabilities"]
    assert backend.batches == [1, 1, 1]


async def test_inputs_of_different_free_sizes_run_apart(make_engine: Make, backend: Any) -> None:
    backend.inputs = (Tensor("image", "UINT8", (-1, -1, 28)),)
    engine = make_engine()
    first = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    tall = [asyncio.create_task(engine.infer({"image": images(7).repeat(2, 1)}, OUTPUTS, soon())) for _ in range(2)]
    low = ask(engine, 8)
    await until(lambda: engine.batcher.queued_rows == 3)
    backend.permit(3)
    await asyncio.gather(first, low, *tall)
    assert backend.batches == [1, 2, 1]


async def test_a_model_without_a_batch_takes_one_request_at_a_time(make_engine: Make, backend: Any) -> None:
    backend.inputs, backend.outputs = (Tensor("image", "UINT8", (2, 28, 28)),), (Tensor("label", "INT64", (2,)),)
    engine = make_engine()
    backend.permit(2)
    answers = await asyncio.gather(*(engine.infer({"image": images(3, 4)}, ("label",), soon()) for _ in range(2)))
    assert [answer.outputs["label"].tolist() for answer in answers] == [[3, 4]] * 2
    assert backend.batches == [2, 2]


async def test_a_higher_priority_overtakes(make_engine: Make, backend: Any) -> None:
    engine = make_engine(max_batch=1)
    first = ask(engine, 1)
    await until(lambda: engine.batcher.busy)
    ended: list[int] = []
    for priority in (3, 0, 1):
        asked = asyncio.create_task(engine.infer({"image": images(1)}, OUTPUTS, soon(), priority))
        asked.add_done_callback(lambda _, mine=priority: ended.append(mine))
    await until(lambda: engine.batcher.queued_rows == 3)
    backend.permit(4)
    await first
    await until(lambda: len(ended) == 3)
    assert ended == [1, 0, 3]


async def test_requests_that_come_alone_pass_the_queue_by_and_a_crowd_is_noticed(
    make_engine: Make, backend: Any
) -> None:
    engine = make_engine(row_s=1e-5)
    backend.permit(1000)
    for number in range(40):
        answer = await engine.infer({"image": images(number % 10)}, OUTPUTS, soon())
        assert answer.outputs["probabilities"].argmax() == number % 10
    assert engine._company < 1.3
    assert engine._tally.rows == engine._tally.batches == 40
    backend.batches.clear()
    for _ in range(30):
        await asyncio.gather(*(ask(engine, number) for number in range(4)))
    assert backend.batches[:4] == [1, 1, 1, 1]
    assert backend.batches[-1] == 4


async def test_a_model_that_fails_a_lone_request_fails_only_that(make_engine: Make, backend: Any) -> None:
    engine = make_engine(row_s=1e-5, max_batch=1)
    backend.permit(2)
    backend.fail_next = True
    with pytest.raises(ExecutionError, match="the model failed"):
        await engine.infer({"image": images(1)}, OUTPUTS, soon())
    assert (await engine.infer({"image": images(2)}, OUTPUTS, soon())).outputs["probabilities"].argmax() == 2
