"""Of orders to a server, on the address that takes them (Triton: the same one, in explicit mode); ends as it began."""

from __future__ import annotations

from typing import Any

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.conformance.probe import Probe
from edgemux.wire.conformance.target import UNKNOWN, Target


def _order(method: str, name: str | None, repository: str = "") -> Any:
    """Load or unload; None for the target's own model."""
    request, response = getattr(oip, f"Repository{method}Request"), getattr(oip, f"Repository{method}Response")

    def ask(target: Target) -> str:
        asked = request(repository_name=repository, model_name=target.model if name is None else name)
        return target.order(f"Repository{method}", asked, response)[0]

    return ask


def _index(target: Target) -> str:
    code, answer = target.order("RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse)
    if answer is None:
        return code
    states = [each.state for each in answer.models if each.name == target.model]
    return f"OK {states[0]}" if states else "OK, but without the model"


def _load_again(target: Target) -> str:
    """The model that is served is loaded anew, and answers as before once the order has been answered."""
    before = target.infer(target.good())[0]
    code = str(_order("ModelLoad", None)(target))
    return f"{code} then {target.infer(target.good())[0]}" if before == "OK" else f"not answered before: {before}"


PROBES = (
    Probe("admin/index", "OK READY", _index),
    Probe("admin/load-again", "OK then OK", _load_again),
    Probe("admin/load-unknown", "INTERNAL", _order("ModelLoad", UNKNOWN)),
    Probe("admin/load-no-name", "INTERNAL", _order("ModelLoad", "")),
    Probe("admin/load-of-another-repository", "UNIMPLEMENTED", _order("ModelLoad", None, UNKNOWN)),
    Probe("admin/unload-unknown", "OK", _order("ModelUnload", UNKNOWN)),
)
