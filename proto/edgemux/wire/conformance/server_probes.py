"""Of the server and its models: health, metadata, configuration, statistics, repository, settings; over gRPC."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.conformance.probe import Inapplicable, Probe
from edgemux.wire.conformance.target import UNKNOWN, Target

HEALTH = "grpc.health.v1.Health"
_STATUS = health_pb2.HealthCheckResponse.ServingStatus
# A version that is a number but no version of anything, and one that is no number.
NO_VERSION, NO_NUMBER = "987654321", "abc"


def _flag(method: str, request: Any, response: Any, field: str) -> Any:
    def ask(target: Target) -> str:
        code, answer = target.call(method, request(target), response)
        return code if answer is None else f"{code} {field}={str(getattr(answer, field)).lower()}"

    return ask


def _live(target: Target) -> str:
    return str(_flag("ServerLive", lambda _: oip.ServerLiveRequest(), oip.ServerLiveResponse, "live")(target))


def _model_ready(name: str | None = None, version: str | None = "") -> Any:
    """None for the target's own."""

    def request(target: Target) -> Any:
        number = target.version if version is None else version
        return oip.ModelReadyRequest(name=target.model if name is None else name, version=number)

    return _flag("ModelReady", request, oip.ModelReadyResponse, "ready")


def _server_metadata(target: Target) -> str:
    code, answer = target.call("ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse)
    if answer is None:
        return code
    return "OK" if answer.name and answer.version else "OK, but without name or version"


def _about(kind: str, name: str | None = None, version: str | None = "") -> Any:
    """Ask ``Model<kind>``: its status, and whether the answer is about that model."""
    request, response = getattr(oip, f"Model{kind}Request"), getattr(oip, f"Model{kind}Response")

    def ask(target: Target) -> str:
        number = target.version if version is None else version
        asked = request(name=target.model if name is None else name, version=number)
        code, answer = target.call(f"Model{kind}", asked, response)
        if answer is None:
            return code
        told = {"Metadata": lambda: [answer.name], "Config": lambda: [answer.config.name]}.get(
            kind, lambda: [each.name for each in answer.model_stats]
        )()
        return "OK" if target.model in told else f"OK, but about {told}"[:80]

    return ask


def _config_fits(target: Target) -> str:
    """The configuration's tensors are the metadata's; its dimensions leave the batch out where there is one."""
    code, answer = target.call("ModelConfig", oip.ModelConfigRequest(name=target.model), oip.ModelConfigResponse)
    if answer is None:
        return code
    config = answer.config
    skip = 1 if config.max_batch_size > 0 else 0
    for told, known in ((config.input, target.inputs), (config.output, target.outputs)):
        dims = {each.name: (oip.DataType.Name(each.data_type)[5:], tuple(each.dims)) for each in told}
        wanted = {each.name: (each.datatype.replace("BYTES", "STRING"), each.shape[skip:]) for each in known}
        if dims != wanted:
            return f"OK, but {dims}, metadata has {wanted}"[:160]
    return "OK"


def _counted(target: Target) -> Any:
    asked = oip.ModelStatisticsRequest(name=target.model)
    code, answer = target.call("ModelStatistics", asked, oip.ModelStatisticsResponse)
    return code if answer is None else sum(each.inference_count for each in answer.model_stats)


def _statistics_count(target: Target) -> str:
    """An inference of two rows, or of one, is counted by its rows; over what may be several processes."""
    before = _counted(target)
    if isinstance(before, str):
        return before
    rows = 2 if target.batches and (target.max_batch or 0) > 1 else 1
    code, _ = target.infer(target.good(rows))
    after = _counted(target)
    return "OK" if code == "OK" and after >= before + rows else f"OK, but {before}, then {after}, after {rows} more"


def _statistics_of_all(target: Target) -> str:
    code, answer = target.call("ModelStatistics", oip.ModelStatisticsRequest(), oip.ModelStatisticsResponse)
    if answer is None:
        return code
    return "OK" if target.model in [each.name for each in answer.model_stats] else "OK, but without the model"


def _index(ready: bool) -> Any:
    def ask(target: Target) -> str:
        asked = oip.RepositoryIndexRequest(ready=ready)
        code, answer = target.call("RepositoryIndex", asked, oip.RepositoryIndexResponse)
        if answer is None:
            return code
        states = [each.state for each in answer.models if each.name == target.model]
        return f"OK {states[0]}" if states else "OK, but without the model"

    return ask


def _index_of_unknown(target: Target) -> str:
    asked = oip.RepositoryIndexRequest(repository_name=UNKNOWN)
    return target.call("RepositoryIndex", asked, oip.RepositoryIndexResponse)[0]


def _change(method: str) -> Any:
    """Load or unload what is not there: changes nothing wherever it is allowed."""
    request, response = getattr(oip, f"Repository{method}Request"), getattr(oip, f"Repository{method}Response")
    return lambda target: target.call(f"Repository{method}", request(model_name=UNKNOWN), response)[0]


def _plain(method: str, request: Any, response: Any) -> Any:
    return lambda target: target.call(method, request, response)[0]


def _health(service: str | None) -> Any:
    def ask(target: Target) -> str:
        name = target.model if service is None else service
        request = health_pb2.HealthCheckRequest(service=name)
        code, answer = target.call("Check", request, health_pb2.HealthCheckResponse, HEALTH)
        return code if answer is None else f"{code} {_STATUS.Name(answer.status)}"

    return ask


def _watch(service: str | None) -> Any:
    """The first thing that a watcher is told."""

    def ask(target: Target) -> str:
        name = target.model if service is None else service
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        call = target.watch(HEALTH, "Watch", request, health_pb2.HealthCheckResponse)
        try:
            return f"OK {_STATUS.Name(next(call).status)}"
        except StopIteration:
            return "OK, but the watch ends without a word"
        except grpc.RpcError as error:
            return str(error.code().name)
        finally:
            with contextlib.suppress(Exception):
                call.cancel()

    return ask


# What a listed extension must not answer UNIMPLEMENTED to.
_EXTENSIONS = {
    "statistics": ("ModelStatistics", oip.ModelStatisticsRequest(), oip.ModelStatisticsResponse),
    "model_configuration": ("ModelConfig", oip.ModelConfigRequest(name=UNKNOWN), oip.ModelConfigResponse),
    "model_repository": ("RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse),
    "trace": ("TraceSetting", oip.TraceSettingRequest(), oip.TraceSettingResponse),
    "logging": ("LogSettings", oip.LogSettingsRequest(), oip.LogSettingsResponse),
    "system_shared_memory": ("SystemSharedMemoryStatus", b"", oip.ServerLiveResponse),
    "cuda_shared_memory": ("CudaSharedMemoryStatus", b"", oip.ServerLiveResponse),
}


def _listed_is_served(target: Target) -> str:
    if not target.extensions:
        raise Inapplicable("the server lists no extensions")
    for name, (method, request, response) in _EXTENSIONS.items():
        if name in target.extensions and target.call(method, request, response)[0] == "UNIMPLEMENTED":
            return f"{name} is listed, {method} is UNIMPLEMENTED"
    return "OK"


def _unknown_method(target: Target) -> str:
    return target.call("NoSuchMethod", b"", oip.ServerLiveResponse)[0]


def _unreadable(target: Target) -> str:
    return target.call("ModelMetadata", b"\xff\xff\xff", oip.ModelMetadataResponse)[0]


_READY = _flag("ServerReady", lambda _: oip.ServerReadyRequest(), oip.ServerReadyResponse, "ready")

PROBES = (
    Probe("server/live", "OK live=true", _live),
    Probe("server/ready", "OK ready=true", _READY),
    Probe("server/metadata", "OK", _server_metadata),
    Probe("server/listed-extensions-are-served", "OK", _listed_is_served),
    Probe("server/unknown-method", "UNIMPLEMENTED", _unknown_method),
    Probe("server/unreadable-message", "INTERNAL", _unreadable),
    Probe("model/ready", "OK ready=true", _model_ready()),
    Probe("model/ready-of-version", "OK ready=true", _model_ready(version=None)),
    Probe("model/ready-unknown", "OK ready=false", _model_ready(UNKNOWN)),
    Probe("model/ready-unknown-version", "OK ready=false", _model_ready(version=NO_VERSION)),
    Probe("model/ready-version-no-number", "INVALID_ARGUMENT", _model_ready(version=NO_NUMBER)),
    Probe("model/ready-no-name", "OK ready=false", _model_ready("")),
    Probe("model/metadata", "OK", _about("Metadata")),
    Probe("model/metadata-of-version", "OK", _about("Metadata", version=None)),
    Probe("model/metadata-unknown", "NOT_FOUND", _about("Metadata", UNKNOWN)),
    Probe("model/metadata-unknown-version", "NOT_FOUND", _about("Metadata", version=NO_VERSION)),
    Probe("model/metadata-version-no-number", "INVALID_ARGUMENT", _about("Metadata", version=NO_NUMBER)),
    Probe("config/of-model", "OK", _about("Config"), "model_configuration"),
    Probe("config/fits-metadata", "OK", _config_fits, "model_configuration"),
    Probe("config/unknown", "NOT_FOUND", _about("Config", UNKNOWN), "model_configuration"),
    Probe("config/unknown-version", "NOT_FOUND", _about("Config", version=NO_VERSION), "model_configuration"),
    Probe("config/version-no-number", "INVALID_ARGUMENT", _about("Config", version=NO_NUMBER), "model_configuration"),
    Probe("statistics/of-model", "OK", _about("Statistics"), "statistics"),
    Probe("statistics/of-version", "OK", _about("Statistics", version=None), "statistics"),
    Probe("statistics/of-all", "OK", _statistics_of_all, "statistics"),
    Probe("statistics/count-rows", "OK", _statistics_count, "statistics"),
    Probe("statistics/unknown", "INVALID_ARGUMENT", _about("Statistics", UNKNOWN), "statistics"),
    Probe("statistics/unknown-version", "INVALID_ARGUMENT", _about("Statistics", version=NO_VERSION), "statistics"),
    Probe("repository/index", "OK READY", _index(False), "model_repository"),
    Probe("repository/index-of-ready", "OK READY", _index(True), "model_repository"),
    Probe("repository/index-unknown", "UNIMPLEMENTED", _index_of_unknown, "model_repository"),
    Probe("repository/load-unknown", "UNAVAILABLE", _change("ModelLoad"), "model_repository"),
    Probe("repository/unload-unknown", "UNAVAILABLE", _change("ModelUnload"), "model_repository"),
    Probe("settings/trace", "OK", _plain("TraceSetting", oip.TraceSettingRequest(), oip.TraceSettingResponse), "trace"),
    Probe("settings/log", "OK", _plain("LogSettings", oip.LogSettingsRequest(), oip.LogSettingsResponse), "logging"),
    Probe(
        "settings/shared-memory",
        "OK",
        _plain("SystemSharedMemoryStatus", b"", oip.ServerLiveResponse),
        "system_shared_memory",
    ),
    Probe("health/check", "OK SERVING", _health("")),
    Probe("health/check-model", "OK SERVING", _health(None)),
    Probe("health/check-unknown", "OK SERVING", _health(UNKNOWN)),
    Probe("health/watch", "UNIMPLEMENTED", _watch("")),
    Probe("health/watch-model", "UNIMPLEMENTED", _watch(None)),
    Probe("health/watch-unknown", "UNIMPLEMENTED", _watch(UNKNOWN)),
)
