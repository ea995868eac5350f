"""What the cloud's live page is told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from edgemux.cloud import config, server
from edgemux.cloud.admission import Refused
from edgemux.cloud.live import counted
from edgemux.cloud.statistics import Outcome, Tally
from edgemux.wire.codec import make_request


class Patient:
    def time_remaining(self) -> None:
        return None


def test_counts_are_told_as_they_are() -> None:
    tally = Tally()
    tally.ended(Outcome.ANSWERED, 0.1)
    tally.refused[Refused.FULL] += 2
    tally.ran(3, 1, 0.0, 0.0002, 0.0)
    tally.queue.observe(99.0)
    told = msgspec.json.decode(msgspec.json.encode(counted(tally)))
    assert told["requests"] == {"answered": 1, "refused": 0, "expired": 0, "invalid": 0, "cancelled": 0, "failed": 0}
    assert told["refused"] == {"full": 2, "wait": 0, "expired": 0, "draining": 0}
    assert (told["rows"], told["batches"]) == (3, 1)
    rows = told["batch_rows"]
    # The bucket of up to 4; and what is above every bound has a count of its own.
    assert rows["counts"][rows["bounds"].index(4)] == 1
    assert told["compute_seconds"]["counts"][1] == 1
    assert told["queue_seconds"]["counts"][-1] == 1
    assert len(told["queue_seconds"]["counts"]) == len(told["queue_seconds"]["bounds"]) + 1


async def test_a_server_tells_of_each_model_and_of_no_inputs(tiny_bundle: Path) -> None:
    settings = config.load(None, {"bundle": str(tiny_bundle), "processes": 3})
    serving = await server.prepare(settings)
    try:
        image = np.zeros((1, 28, 28), np.uint8)
        await serving.servicer.ModelInfer(make_request("fashion-mnist", {"image": image}), Patient())
        assert serving.live is not None
        told = serving.live(0)
    finally:
        await serving.closed()
    assert (told["kind"], told["processes"], told["ready"]) == ("cloud", 3, True)
    (model,) = told["models"]
    assert (model["name"], model["version"], model["rows"]) == ("fashion-mnist", "1", 1)
    assert model["requests"]["answered"] == 1
    assert "inputs" not in told
    msgspec.json.encode(told)
