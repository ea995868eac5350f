"""The conformance suite catches servers that are wrong, and judges as it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.conformance.__main__ import PROBES, main, probe_server, table
from edgemux.wire.conformance.probe import Probe, Reason, Result, judge, own_reasons, parse_reasons, read_reasons, run

REASONS = Path(__file__).parents[2] / "proto" / "edgemux" / "wire" / "conformance" / "reasons"
WORDS = st.text(min_size=1, max_size=8)


# --- judging --------------------------------------------------------------------------------------------------------
@given(WORDS, WORDS, st.lists(WORDS, max_size=3), st.booleans())
def test_an_answer_is_right_when_it_is_triton_s_or_has_a_reason_that_names_it(
    expected: str, got: str, known: list[str], given_one: bool
) -> None:
    probe = Probe("room/what", expected, lambda _: got)
    reasons = {"room/what": Reason(tuple(known), "because")} if given_one else {}
    result = judge(probe, got, reasons, ())
    assert result.ok == (got == expected or (given_one and got in known))
    assert bool(result.reason) == (result.ok and got != expected)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_a_reason_for_one_probe_excuses_no_other(got: str, known: list[str]) -> None:
    result = judge(Probe("room/what", "expected", lambda _: got), got, {"room/other": Reason(tuple(known), "x")}, ())
    assert result.ok == (got == "expected")


def test_what_belongs_to_an_extension_may_be_absent_only_where_it_is_not_listed() -> None:
    probe = Probe("room/what", "OK", lambda _: "", "statistics")
    assert judge(probe, "UNIMPLEMENTED", {}, ()).ok
    assert judge(probe, "501 error", {}, ()).ok
    assert not judge(probe, "UNIMPLEMENTED", {}, ("statistics",)).ok
    assert not judge(probe, "INTERNAL", {}, ()).ok
    assert not judge(Probe("room/what", "OK", lambda _: ""), "UNIMPLEMENTED", {}, ()).ok


def test_a_probe_that_stumbles_over_an_answer_fails_and_the_others_are_asked() -> None:
    def stumble(_: Any) -> str:
        raise KeyError("x")

    results = run([Probe("a/a", "OK", stumble), Probe("a/b", "OK", lambda _: "OK")], None, {}, ())
    assert [each.ok for each in results] == [False, True]
    assert results[0].got == "unreadable answer: KeyError"


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "",
        "difference = 1",
        "[[difference]]\nprobes = ['a']\ngot = 'x'",
        "[[difference]]\nprobes = ['a']\ngot = 'x'\nreason = ' '",
        "[[difference]]\nprobes = ['a']\ngot = [1]\nreason = 'x'",
        "[[difference]]\ngot = 'x'\nreason = 'x'",
    ],
)
def test_reasons_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_reasons(text)


def test_every_probe_has_a_name_of_its_own_and_there_are_many() -> None:
    names = [probe.name for probe in PROBES]
    assert len(set(names)) == len(names) >= 50
    assert all("/" in name for name in names)


@pytest.mark.parametrize("file", sorted(REASONS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_reason_is_about_a_probe_that_exists_and_an_answer_that_is_not_triton_s(file: Path) -> None:
    expected = {probe.name: probe.expected for probe in PROBES}
    reasons = read_reasons(file)
    assert reasons
    for name, reason in reasons.items():
        assert name in expected
        assert expected[name] != reason.got[0], name


def test_reasons_of_ours_are_for_our_servers_only() -> None:
    assert own_reasons("edgemux-edge").keys() > own_reasons("edgemux-cloud").keys()
    assert own_reasons("triton") == {}
    assert own_reasons("edgemux-../../x") == own_reasons("edgemux-cloud")


def test_the_table_marks_what_failed_and_counts() -> None:
    results = [
        Result("a/a", "OK", "OK", True),
        Result("a/b", "OK", "NOT_FOUND", True, "because"),
        Result("a/c", "OK", "INTERNAL", False),
    ]
    lines = table(results).splitlines()
    assert lines[1].endswith("because")
    assert [line.split()[0] for line in lines[:3]] == ["ok", "ok", "FAIL"]
    assert lines[3] == "3 probes: 1 as Triton, 1 otherwise for a reason, 1 failed"


# --- wrong use ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["host:0"],
        ["host:99999"],
        ["127.0.0.1:1", "--http", "x"],
        ["127.0.0.1:1", "--reasons", "/no/such/file"],
        ["127.0.0.1:1", "--no-such-option"],
        ["127.0.0.1:1"],
    ],
)
def test_wrong_use_and_a_server_that_is_not_there_are_one_line_and_exit_2(arguments: list[str], capsys: Any) -> None:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("error: ")
    assert len(said.err.strip().splitlines()) == 1


# --- servers that are wrong -----------------------------------------------------------------------------------------
def _answer(**changed: Any) -> Any:
    """The canned answer of a wrong server: 2 numbers, right but for what is changed."""
    response = oip.ModelInferResponse(model_name="wrong", model_version="1", id=changed.get("id", "probe"))
    response.outputs.add(
        name=changed.get("name", "y"), datatype=changed.get("datatype", "FP32"), shape=changed.get("shape", [1, 2])
    )
    response.raw_output_contents.append(changed.get("raw", bytes(8)))
    return response


def _canned(changed: dict[str, Any]) -> dict[str, Any]:
    metadata = oip.ModelMetadataResponse(name="wrong", versions=["1"])
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
    index = oip.RepositoryIndexResponse()
    index.models.add(name="wrong", state="READY")
    return {
        "ServerMetadata": oip.ServerMetadataResponse(name="wrong", version="1", extensions=["statistics"]),
        "ModelMetadata": metadata,
        "RepositoryIndex": index,
        "ModelInfer": _answer(**changed),
        "ServerLive": oip.ServerLiveResponse(live=False),
        "ModelReady": oip.ModelReadyResponse(ready=True),
    }


@contextmanager
def wrong_server(**changed: Any) -> Iterator[str]:
    """It says the same to everybody, whatever is asked."""
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            lambda _content, _context, answer=answer: answer, response_serializer=type(answer).SerializeToString
        )
        for method, answer in _canned(changed).items()
    }
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def failed(address: str, http: str | None = None, only: str = "") -> dict[str, str]:
    """What fails there: answers by probe."""
    return {each.probe: each.got for each in probe_server(address, http, only=only) if not each.ok}


def test_a_server_that_answers_everything_is_caught_by_every_bad_request() -> None:
    with wrong_server() as address:
        found = failed(address)
    bad = {probe.name for probe in PROBES if probe.name.startswith("bad/") and probe.expected != "OK"}
    not_askable = {
        "bad/one-input-missing",
        "bad/fewer-buffers-than-inputs",
        "bad/batch-above-max",
    }
    assert bad - not_askable <= found.keys()
    assert found["server/live"] == "OK live=false"
    assert found["model/ready-unknown"] == "OK ready=true"
    assert found["server/listed-extensions-are-served"] == "statistics is listed, ModelStatistics is UNIMPLEMENTED"
    assert found["statistics/of-model"] == "UNIMPLEMENTED"
    assert found["stream/one"] == "UNIMPLEMENTED"
    assert found["health/check"] == "UNIMPLEMENTED"
    assert "infer/raw" not in found
    assert found["infer/batch-of-2"].startswith("OK, but y: shape [1, 2]")


@pytest.mark.parametrize(
    ("changed", "got"),
    [
        ({"raw": bytes(7)}, "OK, but y: 7 bytes for [1, 2]"),
        ({"datatype": "FP64"}, "OK, but y: is FP64, metadata has FP32"),
        ({"shape": [1, 3]}, "OK, but y: shape [1, 3], metadata has [1, 2]"),
        ({"shape": [2]}, "OK, but y: shape [2], metadata has [1, 2]"),
        ({"name": "z"}, "OK, but outputs are ['z']"),
    ],
)
def test_an_answer_that_contradicts_the_metadata_is_caught(changed: dict[str, Any], got: str) -> None:
    with wrong_server(**changed) as address:
        assert failed(address, only="infer/raw")["infer/raw"] == got


def test_an_id_that_is_somebody_else_s_is_caught() -> None:
    with wrong_server(id="other") as address:
        assert failed(address, only="infer/id")["infer/id-comes-back"] == "OK id=other"


class _Yes(BaseHTTPRequestHandler):
    """Answers everything with 200 and the same JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        content = json.dumps({"name": "wrong", "outputs": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_a_rest_side_that_answers_everything_is_caught() -> None:
    with wrong_server() as address, ThreadingHTTPServer(("127.0.0.1", 0), _Yes) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        found = failed(address, f"127.0.0.1:{web.server_address[1]}", only="rest")
        web.shutdown()
    wrong = {probe.name for probe in PROBES if probe.name.startswith("rest-bad/")}
    # The fake reads lengths that are no numbers as its library does, and never comes to an answer.
    assert wrong <= found.keys()
    assert found["rest/model"].startswith("200, but ")
    assert found["rest/get-infer"] == "200"
    assert found["rest-infer/json"].startswith("200, but model ")


def test_the_command_tells_machines_and_exits_1_when_something_fails(capsys: Any) -> None:
    with wrong_server() as address:
        assert main([address, "--only", "server/", "--json"]) == 1
        rows = json.loads(capsys.readouterr().out)
        assert {"probe", "expected", "got", "ok", "reason"} == set(rows[0])
        assert main([address, "--only", "infer/raw", "--model", "wrong"]) == 0
        assert main([address, "--only", "server/metadata"]) == 0
        assert main([address, "--only", "no such probe"]) == 2
