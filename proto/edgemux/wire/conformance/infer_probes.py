"""Of inferences over gRPC: good ones, and everything that can be wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.conformance.probe import Inapplicable, Probe
from edgemux.wire.conformance.server_probes import NO_NUMBER, NO_VERSION
from edgemux.wire.conformance.target import DTYPES, FIELDS, UNKNOWN, Target

_Change = Callable[[Any, Target], None]
# More than Triton's clients send at once; what a server takes must be bounded somewhere.
BIG_BYTES = 80 * 2**20


def _answered(target: Target, request: Any, rows: int = 1, names: list[str] | None = None) -> tuple[str, Any]:
    """The verdict on the answer to a good request, and the answer."""
    code, answer = target.infer(request)
    if answer is None:
        return code, None
    flaw = target.flaw(answer, rows, names)
    return (f"OK, but {flaw}" if flaw else "OK"), answer


# --- good ones ------------------------------------------------------------------------------------------------------
def _raw(target: Target) -> str:
    return _answered(target, target.good())[0]


def _typed(target: Target) -> str:
    """Answered raw all the same: whether ``contents`` or not is the server's choice alone."""
    verdict, answer = _answered(target, target.good_contents())
    if verdict != "OK":
        return verdict
    return "OK raw" if answer.raw_output_contents else "OK contents"


def _same_either_way(target: Target) -> str:
    """The same numbers raw and in typed fields give the same answer."""
    answers = [target.infer(request)[1] for request in (target.good(), target.good_contents())]
    if None in answers:
        return "not answered"
    raws = [[bytes(each) for each in answer.raw_output_contents] for answer in answers]
    if not all(raws):
        raise Inapplicable("the answers are not raw")
    return "OK" if raws[0] == raws[1] else "OK, but the answers differ"


def _echoed(target: Target) -> str:
    verdict, answer = _answered(target, target.good())
    return f"{verdict} id={answer.id}" if answer is not None else verdict


def _of_version(target: Target) -> str:
    request = target.changed(lambda it: setattr(it, "model_version", target.version))
    verdict, answer = _answered(target, request)
    if answer is None or not target.version:
        return verdict
    return verdict if answer.model_version == target.version else f"OK, but by version {answer.model_version[:20]!r}"


def _each_output(target: Target) -> str:
    """Every output asked for alone comes alone."""
    for output in target.outputs:
        request = target.good()
        request.outputs.add(name=output.name)
        verdict, _ = _answered(target, request, names=[output.name])
        if verdict != "OK":
            return verdict
    return "OK"


def _batch(target: Target) -> str:
    if not target.batches or target.max_batch == 0:
        raise Inapplicable("the model takes no batches")
    if target.max_batch == 1:
        raise Inapplicable("the model takes batches of 1 only")
    return _answered(target, target.good(2), rows=2)[0]


def _rows_are_kept_apart(target: Target) -> str:
    """Two different rows of one batch are answered as each alone would be, in their order."""
    if not target.batches or not target.max_batch or target.max_batch < 2:
        raise Inapplicable("the model takes no batches")
    ones, zeros, both = target.good(), target.good(), target.good(2)
    for index, raw in enumerate(ones.raw_input_contents):
        zeros.raw_input_contents[index] = bytes(len(raw))
        both.raw_input_contents[index] = raw + bytes(len(raw))
    answers = [target.infer(each)[1] for each in (ones, zeros, both)]
    if None in answers:
        return "not answered"
    for tensor in target.outputs:
        first, second, together = (target.output(each, tensor) for each in answers)
        if not np.allclose(np.concatenate([first, second]), together, rtol=1e-3, atol=1e-3):
            return f"OK, but {tensor.name} of a batch is not what its rows get alone"
    return "OK"


# --- bad ones: a good one, changed ----------------------------------------------------------------------------------
def _status(change: _Change) -> Callable[[Target], str]:
    """The status that a changed request gets."""

    def ask(target: Target) -> str:
        request = target.good()
        change(request, target)
        return target.infer(request)[0]

    return ask


def _contents_status(change: _Change) -> Callable[[Target], str]:
    def ask(target: Target) -> str:
        request = target.good_contents()
        change(request, target)
        return target.infer(request)[0]

    return ask


def _set(**fields: str) -> _Change:
    def change(request: Any, target: Target) -> None:
        for name, value in fields.items():
            setattr(request, name, value)

    return change


def _unknown_output(request: Any, target: Target) -> None:
    request.outputs.add(name=UNKNOWN)


def _output_twice(request: Any, target: Target) -> None:
    for _ in range(2):
        request.outputs.add(name=target.outputs[0].name)


def _input_name(request: Any, target: Target) -> None:
    request.inputs[0].name = UNKNOWN


def _input_twice(request: Any, target: Target) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _extra_input(request: Any, target: Target) -> None:
    _input_twice(request, target)
    request.inputs[-1].name = UNKNOWN


def _no_inputs(request: Any, target: Target) -> None:
    del request.inputs[:], request.raw_input_contents[:]


def _one_missing(request: Any, target: Target) -> None:
    if len(request.inputs) < 2:
        raise Inapplicable("the model has one input only")
    del request.inputs[-1], request.raw_input_contents[-1]


def _other_datatype(request: Any, target: Target) -> None:
    """Another one of the model's, with data to suit it."""
    tensor = target.inputs[0]
    other = "FP64" if tensor.datatype != "FP64" else "INT64"
    request.inputs[0].datatype = other
    request.raw_input_contents[0] = target.values(tensor).astype(DTYPES[other]).tobytes()


def _datatype(name: str) -> _Change:
    def change(request: Any, target: Target) -> None:
        request.inputs[0].datatype = name

    return change


def _fixed_size(target: Target) -> int:
    """Where the first input's shape leaves nothing open."""
    for at, size in enumerate(target.inputs[0].shape):
        if size > 0:
            return at
    raise Inapplicable("every dimension of the input is open")


def _wrong_size(request: Any, target: Target) -> None:
    tensor, at = request.inputs[0], _fixed_size(target)
    tensor.shape[at] += 1
    size = len(request.raw_input_contents[0])
    request.raw_input_contents[0] = bytes(size // (tensor.shape[at] - 1) * tensor.shape[at])


def _swapped(request: Any, target: Target) -> None:
    """As many elements, in another shape."""
    tensor, at = request.inputs[0], _fixed_size(target)
    if at == 0 or tensor.shape[at] == 1:
        raise Inapplicable("no dimension can be moved into the batch")
    tensor.shape[0], tensor.shape[at] = tensor.shape[at], tensor.shape[0]


def _rank(more: bool) -> _Change:
    def change(request: Any, target: Target) -> None:
        if more:
            request.inputs[0].shape.append(1)
        else:
            request.inputs[0].shape.pop()

    return change


def _no_shape(request: Any, target: Target) -> None:
    del request.inputs[0].shape[:]


def _empty_batch(request: Any, target: Target) -> None:
    request.inputs[0].shape[0] = 0
    request.raw_input_contents[0] = b""


def _first_size(size: int) -> _Change:
    def change(request: Any, target: Target) -> None:
        request.inputs[0].shape[0] = size

    return change


def _last_size(size: int) -> _Change:
    def change(request: Any, target: Target) -> None:
        request.inputs[0].shape[-1] = size

    return change


def _raw_as(change_bytes: Callable[[bytes], bytes]) -> _Change:
    def change(request: Any, target: Target) -> None:
        request.raw_input_contents[0] = change_bytes(request.raw_input_contents[0])

    return change


def _no_data(request: Any, target: Target) -> None:
    del request.raw_input_contents[:]


def _both(request: Any, target: Target) -> None:
    tensor = request.inputs[0]
    values = target.values(target.inputs[0]).ravel().tolist()
    getattr(tensor.contents, target.field(tensor.datatype)).extend(values)


def _more_buffers(request: Any, target: Target) -> None:
    request.raw_input_contents.append(b"\x00" * 8)


def _fewer_buffers(request: Any, target: Target) -> None:
    if len(request.inputs) < 2:
        raise Inapplicable("the model has one input only")
    request.raw_input_contents.pop()


def _wrong_field(request: Any, target: Target) -> None:
    tensor = request.inputs[0]
    count = target.values(target.inputs[0]).size
    tensor.ClearField("contents")
    other = "int64_contents" if FIELDS[tensor.datatype] != "int64_contents" else "fp32_contents"
    getattr(tensor.contents, other).extend([1] * count)


def _values_changed(drop: bool) -> _Change:
    def change(request: Any, target: Target) -> None:
        tensor = request.inputs[0]
        values = getattr(tensor.contents, target.field(tensor.datatype))
        if drop:
            values.pop()
        else:
            values.append(values[0])

    return change


def _half_floats_typed(request: Any, target: Target) -> None:
    request.inputs[0].datatype = "FP16"
    count = target.values(target.inputs[0]).size
    request.inputs[0].ClearField("contents")
    request.inputs[0].contents.fp32_contents.extend([1.0] * count)


def _bytes_input(prefixed: bool) -> _Change:
    """One element a row that is no number, and no picture either."""

    def change(request: Any, target: Target) -> None:
        tensor = request.inputs[0]
        tensor.datatype = "BYTES"
        del tensor.shape[:]
        tensor.shape.extend([1])
        request.raw_input_contents[0] = b"\x03\x00\x00\x00abc" if prefixed else b"a"

    return change


def _larger_batch(target: Target) -> str:
    if not target.batches or not target.max_batch:
        raise Inapplicable("the server tells no max_batch_size")
    return target.infer(target.good(target.max_batch + 1))[0]


def _big(target: Target) -> str:
    request = target.good()
    request.raw_input_contents[0] = bytes(BIG_BYTES)
    return target.infer(request)[0]


def _empty(target: Target) -> str:
    return target.infer(b"")[0]


def _unreadable(target: Target) -> str:
    return target.infer(b"\xff\xff\xff")[0]


# --- parameters -----------------------------------------------------------------------------------------------------
def _with(name: str, **value: Any) -> Callable[[Target], str]:
    """The verdict on a good request with a parameter of a kind."""

    def ask(target: Target) -> str:
        request = target.good()
        request.parameters[name].CopyFrom(oip.InferParameter(**value))
        return _answered(target, request)[0]

    return ask


_INVALID = "INVALID_ARGUMENT"

GOOD = (
    Probe("infer/raw", "OK", _raw),
    Probe("infer/typed-contents", "OK raw", _typed),
    Probe("infer/raw-and-typed-agree", "OK", _same_either_way),
    Probe("infer/id-comes-back", "OK id=probe", _echoed),
    Probe("infer/of-version", "OK", _of_version),
    Probe("infer/each-output-alone", "OK", _each_output),
    Probe("infer/batch-of-2", "OK", _batch),
    Probe("infer/batch-keeps-rows-apart", "OK", _rows_are_kept_apart),
)
BAD = (
    Probe("bad/empty-request", "NOT_FOUND", _empty),
    Probe("bad/unreadable-message", "INTERNAL", _unreadable),
    Probe("bad/unknown-model", "NOT_FOUND", _status(_set(model_name=UNKNOWN))),
    Probe("bad/no-model-name", "NOT_FOUND", _status(_set(model_name=""))),
    Probe("bad/unknown-version", "NOT_FOUND", _status(_set(model_version=NO_VERSION))),
    Probe("bad/version-no-number", _INVALID, _status(_set(model_version=NO_NUMBER))),
    Probe("bad/unknown-output", _INVALID, _status(_unknown_output)),
    Probe("bad/output-twice", "OK", _status(_output_twice)),
    Probe("bad/input-name", _INVALID, _status(_input_name)),
    Probe("bad/input-twice", _INVALID, _status(_input_twice)),
    Probe("bad/extra-input", _INVALID, _status(_extra_input)),
    Probe("bad/no-inputs", _INVALID, _status(_no_inputs)),
    Probe("bad/one-input-missing", _INVALID, _status(_one_missing)),
    Probe("bad/other-datatype", _INVALID, _status(_other_datatype)),
    Probe("bad/no-such-datatype", _INVALID, _status(_datatype("FLOAT"))),
    Probe("bad/no-datatype", _INVALID, _status(_datatype(""))),
    Probe("bad/wrong-size", _INVALID, _status(_wrong_size)),
    Probe("bad/sizes-swapped", _INVALID, _status(_swapped)),
    Probe("bad/rank-too-high", _INVALID, _status(_rank(True))),
    Probe("bad/rank-too-low", _INVALID, _status(_rank(False))),
    Probe("bad/no-shape", _INVALID, _status(_no_shape)),
    Probe("bad/negative-batch", _INVALID, _status(_first_size(-1))),
    Probe("bad/negative-size", _INVALID, _status(_last_size(-28))),
    Probe("bad/batch-of-0", _INVALID, _status(_empty_batch)),
    Probe("bad/size-of-0", _INVALID, _status(_last_size(0))),
    Probe("bad/huge-batch", "INTERNAL", _status(_first_size(2**62))),
    Probe("bad/sizes-overflow", _INVALID, _status(_last_size(2**63 - 1))),
    Probe("bad/batch-above-max", _INVALID, _larger_batch),
    Probe("bad/raw-too-short", _INVALID, _status(_raw_as(lambda raw: raw[:-1]))),
    Probe("bad/raw-too-long", _INVALID, _status(_raw_as(lambda raw: raw + b"\x00"))),
    Probe("bad/raw-empty", _INVALID, _status(_raw_as(lambda raw: b""))),
    Probe("bad/no-data", _INVALID, _status(_no_data)),
    Probe("bad/raw-and-contents", _INVALID, _status(_both)),
    Probe("bad/more-buffers-than-inputs", "OK", _status(_more_buffers)),
    Probe("bad/fewer-buffers-than-inputs", _INVALID, _status(_fewer_buffers)),
    Probe("bad/contents-in-the-wrong-field", _INVALID, _contents_status(_wrong_field)),
    Probe("bad/contents-too-short", _INVALID, _contents_status(_values_changed(drop=True))),
    Probe("bad/contents-too-long", _INVALID, _contents_status(_values_changed(drop=False))),
    Probe("bad/fp16-in-contents", _INVALID, _contents_status(_half_floats_typed)),
    Probe("bad/bytes-for-numbers", _INVALID, _status(_bytes_input(prefixed=True))),
    Probe("bad/bytes-without-length", _INVALID, _status(_bytes_input(prefixed=False))),
    Probe("bad/80-megabytes", _INVALID, _big),
)
PARAMETERS = (
    Probe("parameter/priority-int64", "OK", _with("priority", int64_param=1)),
    Probe("parameter/priority-uint64", "OK", _with("priority", uint64_param=1)),
    Probe("parameter/priority-out-of-range", "OK", _with("priority", uint64_param=9)),
    Probe("parameter/priority-string", _INVALID, _with("priority", string_param="1")),
    Probe("parameter/timeout-int64", "OK", _with("timeout", int64_param=10_000_000)),
    Probe("parameter/timeout-uint64", _INVALID, _with("timeout", uint64_param=10_000_000)),
    Probe("parameter/timeout-string", _INVALID, _with("timeout", string_param="10000000")),
    Probe("parameter/timeout-negative", "OK", _with("timeout", int64_param=-1)),
    Probe("parameter/of-ones-own", "OK", _with("conformance", string_param="x")),
    Probe("parameter/of-ones-own-double", "OK", _with("conformance", double_param=0.5)),
    Probe("parameter/of-no-kind", _INVALID, _with("conformance")),
    Probe("parameter/reserved", _INVALID, _with("triton_enable_empty_final_response", string_param="x")),
    Probe("parameter/binary-data-output", "OK", _with("binary_data_output", bool_param=True)),
)
PROBES = (*GOOD, *BAD, *PARAMETERS)
