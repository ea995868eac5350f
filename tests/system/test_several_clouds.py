"""One of two clouds is killed under load: no client of the agent sees a failure, and offloads go on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CLIENTS = 4
PATIENCE_S = 60.0


class Load:
    """Clients that ask the agent until told to stop; where each input was answered, by which cloud, and failures."""

    def __init__(self, agent: Any, images: Any) -> None:
        self._agent, self._images = agent, images
        self._stop = threading.Event()
        self.peers: list[str] = []
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        with self._agent.client() as client:
            at = 0
            while not self._stop.is_set():
                at += 1
                image = self._images[at % len(self._images)][None]
                try:
                    response = client.ask(image).get_response()
                except Exception as error:
                    self.failures.append(error)
                    continue
                said = response.parameters
                self.peers.append(str(said["edgemux_peer"].int64_param) if "edgemux_peer" in said else "")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def until_from(self, peer: str, count: int) -> bool:
        """Wait until so many more answers have come from a cloud."""
        begin = len(self.peers)
        limit = time.monotonic() + PATIENCE_S
        while time.monotonic() < limit:
            if self.peers[begin:].count(peer) >= count:
                return True
            time.sleep(0.01)
        return False


@pytest.fixture
def agent_of_two(tiny_bundle: Path, cloud: Any, serving: Any, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """An agent that sends everything to two clouds, and the second of them."""
    with serving("cloud", "--bundle", str(tiny_bundle)) as second:
        config = tmp_path / "edge.toml"
        config.write_text(
            f'bundle = "{tiny_bundle}"\npolicy = "cloud-only"\n'
            f'[cloud]\naddresses = ["{cloud.grpc}", "{second.grpc}"]\n'
            # How busy the machine is that runs the tests is not what is tested.
            "[request]\ndefault_timeout_s = 20.0\n[breaker]\nslow_s = 10.0\n"
        )
        with serving("edge", "--config", str(config)) as agent:
            yield agent, second


def test_nobody_notices_that_one_of_two_clouds_is_killed_and_offloads_go_on(
    agent_of_two: Any, samples: dict[str, Any]
) -> None:
    agent, second = agent_of_two
    with Load(agent, samples["images"]) as load:
        assert load.until_from("0", 50)
        assert load.until_from("1", 50)
        second.popen.send_signal(signal.SIGKILL)
        second.ended()
        assert load.until_from("0", 200)
    assert load.failures == []
    state = agent.get("/status")[1]["cloud"]
    assert state["breaker"] == state["peers"][0]["breaker"] == "closed"
    assert state["peers"][1]["breaker"] != "closed"
    counted = agent.scrape()
    assert counted['edgemux_cloud_calls_total{outcome="unreachable",peer="1"}'] > 0
    kept = [value for name, value in counted.items() if 'reason="cloud_unreachable"' in name and "_total" in name]
    assert sum(kept) <= 3 * CLIENTS, "but for calls for which no time was left"
