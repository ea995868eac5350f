"""What Triton's tools ask about a server beside the protocol's own questions: configuration, log and trace settings."""

from __future__ import annotations

import logging
from typing import Any

from edgemux.multiplexer.errors import InputError
from edgemux.wire import oip_pb2 as oip

_log = logging.getLogger("edgemux")


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
