"""One input on its way through the agent."""

from __future__ import annotations

import random
from typing import Any

from numpy.typing import NDArray

from edgemux.multiplexer.chain import Activations
from edgemux.multiplexer.domain import Prediction
from edgemux.multiplexer.gates import Scores
from edgemux.wire.tracing import Trace


class Sample:
    """One input as a batch of one.

    tensors: input arrays by name, [1, ...]. scores: the pre-gate's, FP32 [1, routes]. deadline_s: a point in monotonic
    time. client: whoever sent it, for a fair share of the device. activations: what the device levels have computed so
    far, so that a higher level runs only its delta.
    lot: a number in [0, 1), drawn once: is it among the share that may be sent to a cloud that has just come back?
    exact: whether the cloud is to see the very input, since what it answers goes into what is certified.
    answer: the latest level's, None before the first; epoch: of the terms on which it was scored.
    trace: of the request it is in, None where nothing is traced.
    """

    __slots__ = ("activations", "answer", "client", "deadline_s", "epoch", "exact", "lot", "scores", "tensors", "trace")

    def __init__(
        self,
        tensors: dict[str, NDArray[Any]],
        scores: Scores,
        deadline_s: float,
        client: str = "",
        trace: Trace | None = None,
    ) -> None:
        self.tensors = tensors
        self.scores = scores
        self.deadline_s = deadline_s
        self.client = client
        self.lot = random.random()
        self.activations = Activations(tensors)
        self.answer: Prediction | None = None
        self.epoch = 0
        self.exact = False
        self.trace = trace
