"""What Triton's tools ask about a server beside the protocol's own questions: configuration, log and trace settings."""

from __future__ import annotations

import logging
import time
from typing import Any

from edgemux.multiplexer.errors import InputError
from edgemux.wire import oip_pb2 as oip

_log = logging.getLogger("edgemux")


class Counts:
    """What came of a model's inferences: how many were answered and how many not, and the seconds of each kind."""

    __slots__ = ("answered", "answered_s", "failed", "failed_s", "last_ms", "rows")

    def __init__(self) -> None:
        self.answered = self.failed = self.rows = self.last_ms = 0
        self.answered_s = self.failed_s = 0.0

    def ended(self, rows: int, seconds: float) -> None:
        """Count an inference of ``rows`` rows; 0 for one that was not answered."""
        if rows:
            self.answered += 1
            self.answered_s += seconds
            self.rows += rows
            self.last_ms = time.time_ns() // 1_000_000
        else:
            self.failed += 1
            self.failed_s += seconds

    def message(self, name: str, version: str) -> Any:
        """As ModelStatistics; every row counts as an execution of its own."""
        statistics = oip.InferStatistics(
            success=duration(self.answered, self.answered_s), fail=duration(self.failed, self.failed_s)
        )
        return oip.ModelStatistics(
            name=name,
            version=version,
            last_inference=self.last_ms,
            inference_count=self.rows,
            execution_count=self.rows,
            inference_stats=statistics,
        )


def duration(count: int, seconds: float) -> Any:
    """A StatisticDuration message."""
    return oip.StatisticDuration(count=count, ns=round(seconds * 1e9))


def model_config(served: Any) -> Any:
    """A ModelConfig message of a ``Served``: tensors without the batch where it has one."""
    first = 1 if served.max_batch else 0
    config = oip.ModelConfig(
        name=served.name,
        platform=served.platform,
        max_batch_size=served.max_batch,
        backend=served.platform.partition("_")[0],
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
    config.version_policy.specific.versions.extend(int(v) for v in (served.version,) if v.isdigit())
    for tensors, field in ((served.inputs, config.input), (served.outputs, config.output)):
        for tensor in tensors:
            field.add(name=tensor.name, data_type=f"TYPE_{tensor.datatype}", dims=tensor.shape[first:])
    config.instance_group.add(name=served.name, count=1, kind="KIND_AUTO")
    for key, value in served.properties.items():
        config.parameters[key].string_value = value
    return config


def log_settings(request: Any) -> Any:
    """Which messages are logged. Raises InputError for a wish to change that: it is for the operator to say."""
    if request.settings:
        raise InputError("settings", "log settings can only be read here")
    response = oip.LogSettingsResponse()
    level = _log.getEffectiveLevel()
    shown = {"log_error": logging.ERROR, "log_warning": logging.WARNING, "log_info": logging.INFO}
    for name, least in shown.items():
        response.settings[name].bool_param = level <= least
    response.settings["log_verbose_level"].uint32_param = int(level <= logging.DEBUG)
    response.settings["log_file"].string_param = ""
    response.settings["log_format"].string_param = "default"
    return response


def trace_settings(request: Any) -> Any:
    """That nothing is traced. Raises InputError for a wish that something is."""
    wished = {name: list(setting.value) for name, setting in request.settings.items()}
    if any(value for name, value in wished.items() if (name, value) != ("trace_level", ["OFF"])):
        raise InputError("settings", "this server traces nothing")
    response = oip.TraceSettingResponse()
    response.settings["trace_level"].value.append("OFF")
    return response
