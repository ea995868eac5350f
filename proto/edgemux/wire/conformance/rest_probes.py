"""Of the REST side but its inferences: paths, methods, refusals as JSON, connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgemux.wire.conformance.probe import Probe
from edgemux.wire.conformance.server_probes import NO_NUMBER, NO_VERSION
from edgemux.wire.conformance.target import UNKNOWN, Target

_Path = Callable[[Target], str]


def _fixed(path: str) -> _Path:
    return lambda target: path


def model_path(what: str = "", name: str | None = None, version: str | None = "") -> _Path:
    """Of a model, by default the target's own; version None for its own version."""

    def path(target: Target) -> str:
        number = target.version if version is None else version
        middle = f"/versions/{number}" if number else ""
        return f"/v2/models/{target.model if name is None else name}{middle}{what}"

    return path


def _ask(method: str, path: _Path, body: bytes | None = None) -> Callable[[Target], str]:
    return lambda target: target.http.ask(method, path(target), body).verdict


def _get(path: _Path) -> Callable[[Target], str]:
    return _ask("GET", path)


def _holds(path: _Path, check: Callable[[Any, Target], bool], method: str = "GET") -> Callable[[Target], str]:
    """Status, and for an answer whether its JSON is what it should be."""

    def ask(target: Target) -> str:
        answer = target.http.ask(method, path(target), b"" if method == "POST" else None)
        if answer.status != 200:
            return answer.verdict
        try:
            right = check(answer.json, target)
        except (TypeError, KeyError, IndexError, AttributeError):
            right = False
        return "200" if right else f"200, but {answer.content[:60].decode('utf-8', 'replace')}"

    return ask


def _metadata(content: Any, target: Target) -> bool:
    told = [(each["name"], each["datatype"], tuple(each["shape"])) for each in content["inputs"]]
    return content["name"] == target.model and told == [(t.name, t.datatype, t.shape) for t in target.inputs]


def _json_type(target: Target) -> str:
    answer = target.http.ask("GET", "/v2")
    return f"{answer.status} {answer.headers.get('content-type', '').split(';')[0]}"


def _head(target: Target) -> str:
    """No body, or the next answer on the connection would be out of step."""
    answer = target.http.ask("HEAD", "/v2/health/live")
    after = target.http.ask("GET", "/v2/health/live")
    return f"{answer.status} then {after.status}"


def _kept(target: Target) -> str:
    first, second, kept = target.http.twice("/v2/health/live")
    return f"{first.status} {second.status} {'kept' if kept else 'closed'}"


def _raw(content: bytes) -> Callable[[Target], str]:
    def ask(target: Target) -> str:
        host = f"{target.http.host}:{target.http.port}".encode()
        return target.http.raw(content.replace(b"HOST", host))

    return ask


def _listed(content: Any, target: Target) -> bool:
    return target.model in [each["name"] for each in content]


PATHS = (
    Probe("rest/live", "200", _get(_fixed("/v2/health/live"))),
    Probe("rest/ready", "200", _get(_fixed("/v2/health/ready"))),
    Probe("rest/metadata", "200", _holds(_fixed("/v2"), lambda it, _: bool(it["name"] and it["version"]))),
    Probe("rest/content-type", "200 application/json", _json_type),
    Probe("rest/model", "200", _holds(model_path(), _metadata)),
    Probe("rest/model-version", "200", _holds(model_path(version=None), _metadata)),
    Probe("rest/model-unknown", "404 error", _get(model_path(name=UNKNOWN))),
    Probe("rest/model-unknown-version", "404 error", _get(model_path(version=NO_VERSION))),
    Probe("rest/model-version-no-number", "404 error", _get(model_path(version=NO_NUMBER))),
    Probe("rest/model-ready", "200", _get(model_path("/ready"))),
    Probe("rest/model-ready-version", "200", _get(model_path("/ready", version=None))),
    Probe("rest/model-ready-unknown", "400 error", _get(model_path("/ready", name=UNKNOWN))),
    Probe("rest/model-ready-unknown-version", "400 error", _get(model_path("/ready", version=NO_VERSION))),
    Probe(
        "rest/config",
        "200",
        _holds(model_path("/config"), lambda it, target: bool(it["name"] == target.model)),
        "model_configuration",
    ),
    Probe("rest/config-unknown", "404 error", _get(model_path("/config", name=UNKNOWN)), "model_configuration"),
    Probe(
        "rest/stats",
        "200",
        _holds(model_path("/stats"), lambda it, target: _listed(it["model_stats"], target)),
        "statistics",
    ),
    Probe("rest/stats-of-all", "200", _get(_fixed("/v2/models/stats")), "statistics"),
    Probe("rest/stats-unknown", "400 error", _get(model_path("/stats", name=UNKNOWN)), "statistics"),
    Probe("rest/index", "200", _holds(_fixed("/v2/repository/index"), _listed, "POST"), "model_repository"),
    Probe("rest/index-by-get", "405 error", _get(_fixed("/v2/repository/index")), "model_repository"),
    Probe(
        "rest/load-unknown",
        "503 error",
        _ask("POST", _fixed(f"/v2/repository/models/{UNKNOWN}/load"), b"{}"),
        "model_repository",
    ),
    Probe(
        "rest/unload-unknown",
        "503 error",
        _ask("POST", _fixed(f"/v2/repository/models/{UNKNOWN}/unload"), b"{}"),
        "model_repository",
    ),
    Probe("rest/unknown-path", "404 error", _get(_fixed("/v2/no/such/path"))),
    Probe("rest/no-path", "404 error", _get(_fixed("/nothing"))),
    Probe("rest/post-to-health", "405 error", _ask("POST", _fixed("/v2/health/live"), b"{}")),
    Probe("rest/post-to-model", "405 error", _ask("POST", model_path(), b"{}")),
    Probe("rest/delete-model", "405 error", _ask("DELETE", model_path())),
    Probe("rest/get-infer", "405 error", _get(model_path("/infer"))),
    Probe("rest/put-infer", "405 error", _ask("PUT", model_path("/infer"), b"{}")),
    Probe("rest/head", "405 then 200", _head),
    Probe("rest/kept-alive", "200 200 kept", _kept),
    Probe("rest/http-1.0", "200", _raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")),
    Probe("rest/no-host", "200", _raw(b"GET /v2/health/live HTTP/1.1\r\n\r\n")),
    Probe("rest/no-http", "closed", _raw(b"no http at all\r\n\r\n")),
    Probe(
        "rest/bad-content-length",
        "closed",
        _raw(b"POST /v2/health/live HTTP/1.1\r\nHost: HOST\r\nContent-Length: x\r\n\r\n"),
    ),
    Probe(
        "rest/huge-header",
        "closed",
        _raw(b"GET /v2/health/live HTTP/1.1\r\nHost: HOST\r\nX: " + b"x" * 4_000_000 + b"\r\n\r\n"),
    ),
)
PROBES = PATHS
