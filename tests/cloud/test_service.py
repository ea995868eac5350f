"""The servicer over a real channel: what clients send, and what they get."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.engine import Engine
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.service import CloudService, Hosted
from edgemux.cloud.statistics import Outcome
from edgemux.multiplexer.bundle import Bundle
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import bind, open_channel, server_options
from edgemux.wire.codec import get_parameters, make_request, read_outputs
from edgemux.wire.model_service import Served as ServedModel
from edgemux.wire.service import SERVICE, Door, Stub, register

MODEL = "fashion-mnist"
PATIENCE_S = 25.0


class Served(msgspec.Struct):
    """A service around the held backend, on a port of its own."""

    stub: Stub
    channel: Any
    service: CloudService
    engine: Engine
    metrics: Metrics
    backend: Any
    bundle: Bundle
    door: Door


@pytest_asyncio.fixture
async def served(tiny_bundle: Path, make_engine: Callable[..., Engine], backend: Any) -> AsyncIterator[Served]:
    bundle = Bundle.open(tiny_bundle)
    metrics, door = Metrics(), Door()
    tally = metrics.of(MODEL, "1")
    engine = make_engine(max_batch=4, max_queue=4, tally=tally)

    async def well() -> bool:
        return True

    hosted = Hosted(ServedModel.of(bundle.manifest, "test", 4), engine, tally, "f" * 64, well)
    service = CloudService([hosted], AdmissionSettings(max_queue=4), metrics)
    server = grpc.aio.server(options=server_options())
    port = bind(server, "127.0.0.1", 0)
    register(server, service, door)
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield Served(Stub(channel), channel, service, engine, metrics, backend, bundle, door)
    backend.permit(1000)
    await server.stop(None)
    service.close()


def images(*classes: int) -> NDArray[np.uint8]:
    array = np.zeros((len(classes), 28, 28), np.uint8)
    array[:, 0, 0] = classes
    return array


def infer(served: Served, *classes: int, **fields: Any) -> Awaitable[Any]:
    request = make_request(MODEL, {"image": images(*classes)}, **fields)
    return served.stub.ModelInfer(request, timeout=PATIENCE_S)  # type: ignore[no-any-return]


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def count(served: Served, outcome: Outcome) -> float | None:
    labels = {"model": MODEL, "outcome": outcome.value}
    return served.metrics.registry.get_sample_value("edgemux_cloud_requests_total", labels)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for is another thread's doing
        await asyncio.sleep(0.001)


async def test_an_answer_holds_probabilities_label_and_what_it_took(served: Served) -> None:
    served.backend.permit()
    response = await infer(served, 3, 8, request_id="mine")
    outputs = read_outputs(response, served.bundle.manifest.outputs, 2)
    assert list(outputs["label"]) == [3, 8]
    assert outputs["probabilities"].shape == (2, 10)
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "mine")
    parameters = get_parameters(response)
    assert parameters["edgemux_model_digest"] == "f" * 64
    assert parameters["edgemux_batch_size"] == 2
    assert isinstance(parameters["edgemux_queue_ms"], float)
    assert isinstance(parameters["edgemux_compute_ms"], float)
    assert count(served, Outcome.ANSWERED) == 1


async def test_only_the_requested_outputs_come_back_in_the_order_asked(served: Served) -> None:
    served.backend.permit(2)
    for names in (["label"], ["label", "probabilities"]):
        request = make_request(MODEL, {"image": images(5)})
        for name in names:
            request.outputs.add(name=name)
        response = await served.stub.ModelInfer(request, timeout=PATIENCE_S)
        assert [output.name for output in response.outputs] == names


@pytest.mark.parametrize(("name", "version", "field"), [("other", "", "model_name"), (MODEL, "9", "model_version")])
async def test_an_unknown_model_or_version_is_not_found(served: Served, name: str, version: str, field: str) -> None:
    request = make_request(name, {"image": images(1)})
    request.model_version = version
    error = await refusal(served.stub.ModelInfer(request, timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert (error.details() or "").startswith(f"{field}: ")
    error = await refusal(served.stub.ModelMetadata(oip.ModelMetadataRequest(name=name, version=version), timeout=9))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    ready = await served.stub.ModelReady(oip.ModelReadyRequest(name=name, version=version), timeout=9)
    assert ready.ready is False


async def test_the_timeout_parameter_is_kept_while_another_batch_runs(served: Served) -> None:
    running = asyncio.ensure_future(infer(served, 1))
    await until(lambda: served.engine.batcher.busy)
    error = await refusal(infer(served, 2, parameters={"timeout": 60_000}))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not running.done()
    served.backend.permit()
    await running
    assert count(served, Outcome.EXPIRED) == 1


@pytest.mark.parametrize("microseconds", ["100", 1.5, True, -1])
async def test_a_timeout_that_is_no_number_of_microseconds_is_refused(served: Served, microseconds: Any) -> None:
    error = await refusal(infer(served, 2, parameters={"timeout": microseconds}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith("timeout: ")
    served.backend.permit()
    await infer(served, 1, parameters={"timeout": 0})


async def test_a_full_queue_says_so_and_when_to_come_back(served: Served) -> None:
    running = asyncio.ensure_future(infer(served, 1))
    await until(lambda: served.engine.batcher.busy)
    queued = [asyncio.ensure_future(infer(served, number)) for number in range(4)]
    await until(lambda: served.engine.batcher.queued_rows == 4)
    error = await refusal(infer(served, 9))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(error.trailing_metadata() or ())
    assert int(trailers["grpc-retry-pushback-ms"]) >= 1
    served.backend.permit(3)
    await asyncio.gather(running, *queued)
    await infer(served, 9)
    assert count(served, Outcome.REFUSED) == 1
    assert count(served, Outcome.ANSWERED) == 6


async def test_a_client_that_goes_away_leaves_the_queue(served: Served) -> None:
    running = asyncio.ensure_future(infer(served, 1))
    await until(lambda: served.engine.batcher.busy)
    call = infer(served, 2)
    waiting = asyncio.ensure_future(call)
    await until(lambda: served.engine.batcher.queued_rows == 1)
    waiting.cancel()
    await until(lambda: served.engine.batcher.queued_rows == 0)
    served.backend.permit()
    await running
    assert served.backend.batches == [1]
    assert count(served, Outcome.CANCELLED) == 1


async def test_a_client_whose_deadline_passes_is_counted_as_expired_not_as_gone(served: Served) -> None:
    running = asyncio.ensure_future(infer(served, 1))
    await until(lambda: served.engine.batcher.busy)
    error = await refusal(served.stub.ModelInfer(make_request(MODEL, {"image": images(2)}), timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: count(served, Outcome.EXPIRED) == 1)
    assert count(served, Outcome.CANCELLED) == 0
    served.backend.permit()
    await running


async def test_bytes_that_are_no_message_are_an_invalid_argument(served: Served) -> None:
    call = served.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    error = await refusal(call(b"\xff\xff\xff not protobuf", timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    served.backend.permit()
    await infer(served, 1)


async def test_a_failing_model_is_an_internal_error_that_leaks_nothing(served: Served) -> None:
    served.backend.fail_next = True
    served.backend.permit(2)
    error = await refusal(infer(served, 1))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "the model failed"
    await infer(served, 1)
    assert count(served, Outcome.FAILED) == 1


async def test_a_mistake_of_ours_is_told_as_an_id_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("/etc/secret")

    monkeypatch.setattr(served.service, "_read", broken)
    error = await refusal(infer(served, 1))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert (error.details() or "").startswith("internal error ")
    assert "secret" not in (error.details() or "")


def picture(kind: str = "PNG", side: int = 28, value: int = 7) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


async def test_encoded_pictures_are_decoded_and_answered(served: Served) -> None:
    served.backend.permit()
    request = make_request(MODEL, {"image": [picture("PNG"), picture("PNG", 56)]})
    response = await served.stub.ModelInfer(request, timeout=PATIENCE_S)
    assert list(read_outputs(response, served.bundle.manifest.outputs, 2)["label"]) == [7, 7]


async def test_too_many_pictures_at_once_are_refused_before_they_are_decoded(served: Served) -> None:
    served.service._decoding = 4
    request = make_request(MODEL, {"image": [picture()]})
    error = await refusal(served.stub.ModelInfer(request, timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    served.service._decoding = 0
    served.backend.permit()
    await served.stub.ModelInfer(request, timeout=PATIENCE_S)


async def test_more_pictures_than_a_batch_are_too_large(served: Served) -> None:
    request = make_request(MODEL, {"image": [picture()] * 5})
    error = await refusal(served.stub.ModelInfer(request, timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 4" in (error.details() or "")


async def test_a_draining_server_is_not_ready_but_answers(served: Served) -> None:
    served.service.draining = True
    served.backend.permit()
    assert (await served.stub.ServerReady(oip.ServerReadyRequest(), timeout=9)).ready is False
    assert (await served.stub.ServerLive(oip.ServerLiveRequest(), timeout=9)).live is True
    assert (await served.stub.ModelReady(oip.ModelReadyRequest(name=MODEL), timeout=9)).ready is False
    listed = (await served.stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=9)).models
    assert [model.state for model in listed] == ["UNAVAILABLE"]
    assert not (await served.stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=9)).models
    await infer(served, 1)


async def test_a_closed_door_answers_unavailable_and_lets_those_inside_finish(served: Served) -> None:
    inside = asyncio.ensure_future(infer(served, 1))
    await until(lambda: served.engine.batcher.busy)
    served.door.closed = True
    error = await refusal(infer(served, 2))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert served.door.inside == 1
    served.backend.permit()
    await inside
    assert served.door.inside == 0


async def test_the_status_page_counts_what_happened(served: Served) -> None:
    served.backend.permit()
    await infer(served, 1)
    await refusal(served.stub.ModelInfer(make_request("other", {"image": images(1)}), timeout=9))
    status = served.service.status()
    assert status["counters"]["requests.answered"] == 1
    assert status["counters"]["requests.invalid"] == 1
    assert status["queue"] == {"requests": 0, "rows": 0, "busy": False}


async def test_names_that_clients_send_never_become_labels(served: Served) -> None:
    await refusal(served.stub.ModelInfer(make_request("evil-name", {"image": images(1)}), timeout=9))
    labels = {value for f in served.metrics.registry.collect() for s in f.samples for value in s.labels.values()}
    assert "evil-name" not in labels


def mutated(content: bytes, random: Random) -> bytes:
    """A message with a few bytes changed, lost or added, mostly near its start, where its fields are."""
    changed = bytearray(content)
    reach = min(len(changed), 90)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(reach)
        match random.randrange(3):
            case 0:
                changed[at : at + 1] = random.randbytes(1)
            case 1:
                del changed[at : at + random.randint(1, 4)]
            case 2:
                changed[at:at] = random.randbytes(random.randint(1, 4))
    return bytes(changed)


async def test_damaged_messages_get_an_answer_or_a_reason_never_an_internal_error(served: Served) -> None:
    served.backend.permit(10_000)
    full = make_request(MODEL, {"image": images(1, 2)}, request_id="x", parameters={"timeout": 10_000_000})
    full.outputs.add(name="label")
    coded = make_request(MODEL, {"image": [picture("PNG"), picture("JPEG")]})
    seeds = [message.SerializeToString() for message in (full, coded)]
    call, random, seen = served.channel.unary_unary(f"/{SERVICE}/ModelInfer"), Random(5), set()
    for _ in range(400):
        try:
            await call(mutated(random.choice(seeds), random), timeout=PATIENCE_S)
            seen.add(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            seen.add(error.code())
            assert (error.details() or "").isprintable()
    assert grpc.StatusCode.INVALID_ARGUMENT in seen
    assert seen <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }


@pytest.mark.parametrize("priority", [4, -1, "1", 2.0])
async def test_a_priority_that_is_none_of_the_levels_is_refused(served: Served, priority: Any) -> None:
    error = await refusal(infer(served, 1, parameters={"priority": priority}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith("priority: ")


async def test_priorities_come_as_either_kind_of_number(served: Served) -> None:
    served.backend.permit(3)
    await infer(served, 1, parameters={"priority": 3})
    for priority in (0, 1):
        request = make_request(MODEL, {"image": images(1)})
        request.parameters["priority"].uint64_param = priority
        await served.stub.ModelInfer(request, timeout=PATIENCE_S)
