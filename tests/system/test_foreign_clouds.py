"""The agent in front of a real Triton and a real MLServer, where they can be had.

Their environments are made by ``benchmarks/serving_bench/peers.py make``; without them the tests are skipped.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from edgemux.multiplexer.bundle import Bundle

PEERS = Path(__file__).parents[2] / "benchmarks" / "serving_bench" / "peers.py"


def _peers() -> Any:
    if not PEERS.is_file():
        pytest.skip("there is no benchmarks/serving_bench")
    spec = importlib.util.spec_from_file_location("edgemux_serving_peers", PEERS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["triton", "mlserver"])
def test_offloads_are_answered_by_a_server_of_other_make(
    name: str, tiny_bundle: Path, serving: Any, samples: dict[str, Any], tmp_path: Path
) -> None:
    peers = _peers()
    if not peers.ready_to_use(name):
        pytest.skip(f"{name} has no environment here; {PEERS.name} make {name}")
    model = tiny_bundle / Bundle.open(tiny_bundle).manifest.cloud.files[0]
    with (
        peers.serve(name, model, model="theirs", max_batch=1 if name == "mlserver" else 16) as peer,
        serving("edge", "--bundle", str(tiny_bundle), "--config", str(_config(tmp_path, peer.grpc))) as agent,
        agent.client() as client,
    ):
        routes = []
        for image in samples["images"][:40]:
            said = client.ask(image[None]).get_response().parameters
            routes.append(said["edgemux_route"].string_param)
        assert routes.count("cloud") == 40
        state = agent.get("/status")[1]["cloud"]
        assert state["breaker"] == "closed"
        assert state["rtt_seconds"] is not None


def _config(folder: Path, address: str) -> Path:
    path = folder / "edge-to-another.toml"
    path.write_text(
        f'policy = "cloud-only"\n[cloud]\naddress = "{address}"\nmodel = "theirs"\n'
        "[request]\ndefault_timeout_s = 20.0\n[breaker]\nslow_s = 10.0\n"
    )
    return path
