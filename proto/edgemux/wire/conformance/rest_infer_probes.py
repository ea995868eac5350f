"""Of inferences over REST: JSON, the binary-tensor extension, and everything that can be wrong with either."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from edgemux.wire.conformance.probe import Inapplicable, Probe
from edgemux.wire.conformance.rest_client import RestAnswer
from edgemux.wire.conformance.rest_probes import model_path
from edgemux.wire.conformance.server_probes import NO_NUMBER, NO_VERSION
from edgemux.wire.conformance.target import SIZES, UNKNOWN, Target

HEAD_LENGTH = "Inference-Header-Content-Length"
_INFER = model_path("/infer")
_Change = Callable[[dict[str, Any], Target], None]


# --- requests and answers -------------------------------------------------------------------------------------------
def _document(target: Target, rows: int = 1, nested: bool = True) -> dict[str, Any]:
    """A good request as JSON."""
    arrays = [(tensor, target.values(tensor, rows)) for tensor in target.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(array.shape),
            "data": (array if nested else array.ravel()).tolist(),
        }
        for tensor, array in arrays
    ]
    return {"id": "probe", "inputs": inputs}


def _binary(target: Target, answer_too: bool = True) -> tuple[dict[str, Any], bytes]:
    """A good request's head, and what follows it."""
    head: dict[str, Any] = {"id": "probe", "inputs": [], "parameters": {"binary_data_output": answer_too}}
    raws = []
    for tensor in target.inputs:
        raw = target.values(tensor).tobytes()
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": target.shape(tensor)}
        head["inputs"].append(entry | {"parameters": {"binary_data_size": len(raw)}})
        raws.append(raw)
    return head, b"".join(raws)


def _post_binary(target: Target, head: Any, raw: bytes, length: str | None = None) -> RestAnswer:
    content = json.dumps(head).encode()
    told = str(len(content)) if length is None else length
    headers = {HEAD_LENGTH: told, "Content-Type": "application/octet-stream"}
    return target.http.ask("POST", _INFER(target), content + raw, headers)


def _flaw(target: Target, answer: RestAnswer, names: list[str] | None = None, rows: int = 1) -> str:
    """What is wrong with an answer's JSON or binary tensors; empty when nothing is."""
    told = answer.headers.get(HEAD_LENGTH.lower())
    length = len(answer.content) if told is None else int(told)
    try:
        head = json.loads(answer.content[:length])
        outputs = {each["name"]: each for each in head["outputs"]}
    except (ValueError, KeyError, TypeError):
        return "no JSON with outputs"
    wanted = [each for each in target.outputs if names is None or each.name in names]
    if head.get("model_name") != target.model or sorted(outputs) != sorted(each.name for each in wanted):
        return f"model {head.get('model_name')!r} with {sorted(outputs)}"[:100]
    left = len(answer.content) - length
    for tensor in wanted:
        output = outputs[tensor.name]
        count = math.prod(output["shape"])
        size = output.get("parameters", {}).get("binary_data_size")
        if output["datatype"] != tensor.datatype or (target.batches and output["shape"][0] != rows):
            return f"{tensor.name} is {output['datatype']} {output['shape']}"
        if size is not None:
            left -= size
        held = size // SIZES.get(tensor.datatype, 1) if size is not None else _count(output.get("data"))
        if tensor.datatype in SIZES and held != count:
            return f"{tensor.name} holds {held} values, its shape says {count}"
    return "" if left == 0 else f"{left} bytes are left over"


def _count(data: Any) -> int:
    return sum(_count(each) for each in data) if isinstance(data, list) else 1


def _verdict(target: Target, answer: RestAnswer, names: list[str] | None = None, rows: int = 1) -> str:
    if answer.status != 200:
        return answer.verdict
    flaw = _flaw(target, answer, names, rows)
    return f"200, but {flaw}" if flaw else "200"


# --- good ones ------------------------------------------------------------------------------------------------------
def _json(nested: bool) -> Callable[[Target], str]:
    def ask(target: Target) -> str:
        return _verdict(target, target.http.post(_INFER(target), _document(target, nested=nested)))

    return ask


def _json_answers_json(target: Target) -> str:
    answer = target.http.post(_INFER(target), _document(target))
    return f"{answer.status} {'binary' if HEAD_LENGTH.lower() in answer.headers else 'json'}"


def _echoed(target: Target) -> str:
    content = target.http.post(_INFER(target), _document(target)).json
    return f"200 id={content.get('id')}" if isinstance(content, dict) else "no JSON"


def _of_version(target: Target) -> str:
    return _verdict(target, target.http.post(model_path("/infer", version=None)(target), _document(target)))


def _batch(target: Target) -> str:
    if not target.batches or not target.max_batch or target.max_batch < 2:
        raise Inapplicable("the model takes no batches")
    return _verdict(target, target.http.post(_INFER(target), _document(target, rows=2)), rows=2)


def _one_output(target: Target) -> str:
    name = target.outputs[-1].name
    document = _document(target) | {"outputs": [{"name": name}]}
    return _verdict(target, target.http.post(_INFER(target), document), [name])


def _binary_both_ways(target: Target) -> str:
    answer = _post_binary(target, *_binary(target))
    verdict = _verdict(target, answer)
    return f"{verdict} {'binary' if HEAD_LENGTH.lower() in answer.headers else 'json'}"


def _binary_in_only(target: Target) -> str:
    answer = _post_binary(target, *_binary(target, answer_too=False))
    verdict = _verdict(target, answer)
    return f"{verdict} {'binary' if HEAD_LENGTH.lower() in answer.headers else 'json'}"


def _binary_out_by_output(target: Target) -> str:
    outputs = [{"name": each.name, "parameters": {"binary_data": True}} for each in target.outputs]
    answer = target.http.post(_INFER(target), _document(target) | {"outputs": outputs})
    verdict = _verdict(target, answer)
    return f"{verdict} {'binary' if HEAD_LENGTH.lower() in answer.headers else 'json'}"


def _binary_no_head(target: Target) -> str:
    """The whole of a model's one input, without any JSON: Triton fills in the rest."""
    if len(target.inputs) != 1:
        raise Inapplicable("the model has several inputs")
    raw = target.values(target.inputs[0]).tobytes()
    headers = {HEAD_LENGTH: "0", "Content-Type": "application/octet-stream"}
    return target.http.ask("POST", _INFER(target), raw, headers).verdict


def _encoded(name: str, encode: Callable[[bytes], bytes]) -> Callable[[Target], str]:
    def ask(target: Target) -> str:
        body = encode(json.dumps(_document(target)).encode())
        return _verdict(target, target.http.ask("POST", _INFER(target), body, {"Content-Encoding": name}))

    return ask


def _chunked(target: Target) -> str:
    body = json.dumps(_document(target)).encode()
    head = f"POST {_INFER(target)} HTTP/1.1\r\nHost: {target.http.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    chunks = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return target.http.raw(head.encode() + chunks + b"0\r\n\r\n")


# --- bad ones -------------------------------------------------------------------------------------------------------
def _body(content: bytes) -> Callable[[Target], str]:
    return lambda target: target.http.ask("POST", _INFER(target), content).verdict


def _changed(change: _Change) -> Callable[[Target], str]:
    """A good JSON request with something done to it."""

    def ask(target: Target) -> str:
        document = _document(target, nested=False)
        change(document, target)
        return target.http.post(_INFER(target), document).verdict

    return ask


def _input(**fields: Any) -> _Change:
    """Of the first input; None takes a field away."""

    def change(document: dict[str, Any], target: Target) -> None:
        for name, value in fields.items():
            if value is None:
                del document["inputs"][0][name]
            else:
                document["inputs"][0][name] = value

    return change


def _first_shape(edit: Callable[[list[int]], list[int]]) -> _Change:
    def change(document: dict[str, Any], target: Target) -> None:
        document["inputs"][0]["shape"] = edit(document["inputs"][0]["shape"])

    return change


def _first_data(edit: Callable[[list[Any]], Any]) -> _Change:
    def change(document: dict[str, Any], target: Target) -> None:
        document["inputs"][0]["data"] = edit(document["inputs"][0]["data"])

    return change


def _top(**fields: Any) -> _Change:
    def change(document: dict[str, Any], target: Target) -> None:
        document.update(fields)

    return change


def _twice(document: dict[str, Any], target: Target) -> None:
    document["inputs"].append(document["inputs"][0])


def _other_datatype(document: dict[str, Any], target: Target) -> None:
    document["inputs"][0]["datatype"] = "FP64" if target.inputs[0].datatype != "FP64" else "INT64"


def _path(name: str | None = None, version: str = "") -> Callable[[Target], str]:
    def ask(target: Target) -> str:
        return target.http.post(model_path("/infer", name, version)(target), _document(target)).verdict

    return ask


def _length(told: Callable[[int, int], str]) -> Callable[[Target], str]:
    """A binary request whose header tells another length: ``told(head bytes, all bytes)``."""

    def ask(target: Target) -> str:
        head, raw = _binary(target)
        size = len(json.dumps(head).encode())
        return _post_binary(target, head, raw, told(size, size + len(raw))).verdict

    return ask


def _size(
    change: Callable[[int], Any], raw_change: Callable[[bytes], bytes] = lambda raw: raw
) -> Callable[[Target], str]:
    """A binary request whose first input tells another ``binary_data_size``."""

    def ask(target: Target) -> str:
        head, raw = _binary(target)
        parameters = head["inputs"][0]["parameters"]
        parameters["binary_data_size"] = change(parameters["binary_data_size"])
        return _post_binary(target, head, raw_change(raw)).verdict

    return ask


def _data_and_binary(target: Target) -> str:
    head, raw = _binary(target)
    head["inputs"][0]["data"] = target.values(target.inputs[0]).ravel().tolist()
    return _post_binary(target, head, raw).verdict


def _large(target: Target) -> str:
    """80 MB of zeros for the first input; refused wherever a server finds it too much, at the latest for its size."""
    head, _ = _binary(target)
    size = 80 * 2**20
    head["inputs"][0]["parameters"]["binary_data_size"] = size
    try:
        return _post_binary(target, head, bytes(size)).verdict
    except OSError:  # closed by a server that reads no more of it
        return "closed"


def _parameters(values: Mapping[str, Any]) -> Callable[[Target], str]:
    def ask(target: Target) -> str:
        return _verdict(target, target.http.post(_INFER(target), _document(target) | {"parameters": dict(values)}))

    return ask


_DEEP = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GOOD = (
    Probe("rest-infer/json", "200", _json(nested=True)),
    Probe("rest-infer/json-flat", "200", _json(nested=False)),
    Probe("rest-infer/json-is-answered-by-json", "200 json", _json_answers_json),
    Probe("rest-infer/id-comes-back", "200 id=probe", _echoed),
    Probe("rest-infer/of-version", "200", _of_version),
    Probe("rest-infer/batch-of-2", "200", _batch),
    Probe("rest-infer/one-output", "200", _one_output),
    Probe("rest-infer/binary", "200 binary", _binary_both_ways, "binary_tensor_data"),
    Probe("rest-infer/binary-in-json-out", "200 json", _binary_in_only, "binary_tensor_data"),
    Probe("rest-infer/json-in-binary-out", "200 binary", _binary_out_by_output, "binary_tensor_data"),
    Probe("rest-infer/binary-without-head", "200", _binary_no_head, "binary_tensor_data"),
    Probe("rest-infer/gzip", "200", _encoded("gzip", gzip.compress)),
    Probe("rest-infer/deflate", "200", _encoded("deflate", zlib.compress)),
    Probe("rest-infer/chunked", "200", _chunked),
    Probe("rest-infer/own-parameter", "200", _parameters({"conformance": "x"})),
    Probe("rest-infer/priority", "200", _parameters({"priority": 1})),
    Probe("rest-infer/timeout", "200", _parameters({"timeout": 10_000_000})),
    Probe("rest-infer/timeout-string", "500 error", _parameters({"timeout": "10000000"})),
)
BAD = (
    Probe("rest-bad/no-body", "400 error", _body(b"")),
    Probe("rest-bad/no-json", "500 error", _body(b"no json")),
    Probe("rest-bad/cut-json", "500 error", _body(b'{"inputs":[')),
    Probe("rest-bad/no-object", "500 error", _body(b"[1]")),
    Probe("rest-bad/no-utf-8", "500 error", _body(b'{"id":"\xff\xfe"}')),
    Probe("rest-bad/deep-json", "400 error", _body(_DEEP)),
    Probe("rest-bad/gzip-that-is-none", "400 error", _encoded("gzip", lambda body: body)),
    Probe("rest-bad/unknown-encoding", "501 error", _encoded("snappy", lambda body: body)),
    Probe("rest-bad/unknown-model", "404 error", _path(UNKNOWN)),
    Probe("rest-bad/unknown-version", "404 error", _path(version=NO_VERSION)),
    Probe("rest-bad/version-no-number", "404 error", _path(version=NO_NUMBER)),
    Probe("rest-bad/no-inputs", "500 error", _changed(lambda it, _: it.pop("inputs"))),
    Probe("rest-bad/empty-inputs", "400 error", _changed(_top(inputs=[]))),
    Probe("rest-bad/inputs-no-list", "500 error", _changed(_top(inputs={}))),
    Probe("rest-bad/input-no-object", "400 error", _changed(_top(inputs=[1]))),
    Probe("rest-bad/input-name", "400 error", _changed(_input(name=UNKNOWN))),
    Probe("rest-bad/no-input-name", "500 error", _changed(_input(name=None))),
    Probe("rest-bad/input-twice", "400 error", _changed(_twice)),
    Probe("rest-bad/no-datatype", "500 error", _changed(_input(datatype=None))),
    Probe("rest-bad/no-such-datatype", "400 error", _changed(_input(datatype="FLOAT"))),
    Probe("rest-bad/other-datatype", "400 error", _changed(_other_datatype)),
    Probe("rest-bad/no-shape", "500 error", _changed(_input(shape=None))),
    Probe("rest-bad/shape-of-text", "500 error", _changed(_input(shape=["1"]))),
    Probe("rest-bad/rank-too-high", "400 error", _changed(_first_shape(lambda it: [*it, 1]))),
    Probe("rest-bad/rank-too-low", "500 error", _changed(_first_shape(lambda it: it[:-1]))),
    Probe("rest-bad/negative-size", "500 error", _changed(_first_shape(lambda it: [*it[:-1], -1]))),
    Probe("rest-bad/wrong-size", "500 error", _changed(_first_shape(lambda it: [*it[:-1], it[-1] + 1]))),
    Probe("rest-bad/no-data", "400 error", _changed(_input(data=None))),
    Probe("rest-bad/data-too-short", "500 error", _changed(_first_data(lambda it: it[:-1]))),
    Probe("rest-bad/data-too-long", "500 error", _changed(_first_data(lambda it: [*it, it[0]]))),
    Probe("rest-bad/data-of-text", "500 error", _changed(_first_data(lambda it: ["x"] * len(it)))),
    Probe("rest-bad/data-no-list", "500 error", _changed(_input(data="x"))),
    Probe("rest-bad/unknown-output", "400 error", _changed(_top(outputs=[{"name": UNKNOWN}]))),
    Probe("rest-bad/outputs-no-list", "500 error", _changed(_top(outputs="x"))),
    Probe("rest-bad/head-length-no-number", "400 error", _length(lambda head, _: "x")),
    Probe("rest-bad/head-length-negative", "400 error", _length(lambda head, _: "-1")),
    Probe("rest-bad/head-length-too-large", "400 error", _length(lambda _, whole: str(whole + 1))),
    Probe("rest-bad/head-length-too-small", "500 error", _length(lambda head, _: str(head - 1))),
    Probe("rest-bad/binary-size-too-small", "400 error", _size(lambda size: size - 1)),
    Probe("rest-bad/binary-size-too-large", "400 error", _size(lambda size: size + 1)),
    Probe("rest-bad/binary-size-negative", "500 error", _size(lambda size: -1)),
    Probe("rest-bad/binary-size-of-text", "500 error", _size(str)),
    Probe("rest-bad/binary-cut-short", "400 error", _size(lambda size: size, lambda raw: raw[:-1])),
    Probe("rest-bad/binary-left-over", "400 error", _size(lambda size: size, lambda raw: raw + b"\x00")),
    Probe("rest-bad/data-and-binary", "400 error", _data_and_binary),
    Probe("rest-bad/80-megabytes", "400 error", _large),
)
PROBES = (*GOOD, *BAD)
