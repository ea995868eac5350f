"""Of streams of inferences, as Triton has them: refusals are told in ``error_message``, and the stream goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.conformance.probe import Probe
from edgemux.wire.conformance.target import UNKNOWN, Target

MANY = 100


def _streamed(target: Target, requests: Sequence[Any]) -> tuple[str, list[Any]]:
    """Status and answers of one stream."""
    contents = [each if isinstance(each, bytes) else each.SerializeToString() for each in requests]
    answers: list[Any] = []
    try:
        answers.extend(target.stream("ModelStreamInfer", contents, oip.ModelStreamInferResponse))
    except grpc.RpcError as error:
        return str(error.code().name), answers
    return "OK", answers


def _word(target: Target, answer: Any) -> str:
    """What one answer is: good, an error, or neither."""
    if answer.error_message:
        return "error"
    flaw = target.flaw(answer.infer_response)
    return f"flawed ({flaw})" if flaw else "answer"


def _words(requests: Any) -> Any:
    def ask(target: Target) -> str:
        code, answers = _streamed(target, requests(target))
        return " ".join([code, *(_word(target, each) for each in answers)])

    return ask


def _bad(target: Target) -> Any:
    return target.changed(lambda it: it.inputs[0].shape.append(1))


def _unknown(target: Target) -> Any:
    return target.changed(lambda it: setattr(it, "model_name", UNKNOWN))


def _many(target: Target) -> str:
    """Many at once are all answered, each once, and their ids come back."""
    requests = [target.good() for _ in range(MANY)]
    for number, request in enumerate(requests):
        request.id = str(number)
    code, answers = _streamed(target, requests)
    if code != "OK":
        return code
    ids = [each.infer_response.id for each in answers]
    if sorted(ids) != sorted(str(number) for number in range(MANY)):
        return f"OK, but {len(ids)} answers with {len(set(ids))} ids for {MANY} requests"
    return "OK" if ids == [str(number) for number in range(MANY)] else "OK in another order"


def _id(target: Target) -> str:
    code, answers = _streamed(target, [target.good()])
    return f"{code} id={answers[0].infer_response.id}" if answers else code


PROBES = (
    Probe("stream/one", "OK answer", _words(lambda target: [target.good()])),
    Probe("stream/two", "OK answer answer", _words(lambda target: [target.good(), target.good()])),
    Probe("stream/none", "OK", _words(lambda target: [])),
    Probe("stream/id-comes-back", "OK id=probe", _id),
    Probe("stream/a-hundred-in-flight", "OK", _many),
    Probe("stream/unknown-model", "OK error", _words(lambda target: [_unknown(target)])),
    Probe("stream/bad-shape", "OK error", _words(lambda target: [_bad(target)])),
    Probe("stream/empty-request", "OK error", _words(lambda target: [oip.ModelInferRequest()])),
    Probe(
        "stream/goes-on-after-an-error",
        "OK answer error answer",
        _words(lambda target: [target.good(), _bad(target), target.good()]),
    ),
)
