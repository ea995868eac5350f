"""What a fitted multiplexer does on a split that it was not fitted on: accuracy, shares, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.gates import gain_after, gain_before
from edgemux.multiplexer.training.labels import Answers
from edgemux.multiplexer.training.reliability import reliability


@dataclass(frozen=True, slots=True)
class Routed:
    """Shares of n inputs. skipped: sent to the cloud without a device answer; kept: answered by the device."""

    accuracy: float
    cloud_accuracy: float
    level_accuracy: float
    kept: float
    skipped: float
    disagreement: float

    @property
    def distance(self) -> float:
        """How far below cloud-only, in percentage points."""
        return 100.0 * (self.cloud_accuracy - self.accuracy)


def routed(
    answers: Answers,
    level: int,
    before: NDArray[Any],
    after: NDArray[Any],
    offload_first: float,
    defer: float,
) -> Routed:
    """Route every input as the policy does with the cloud up and all budgets open.

    before, after: scores of the pre-gate and of the post-gate (for this level), [n, routes].
    """
    skipped = gain_before(before) > offload_first
    kept = ~skipped & (gain_after(after, level) <= defer)
    device, cloud = answers.labels_of_levels()[level - 1], answers.labels_of_cloud()
    answer = np.where(kept, device, cloud)
    return Routed(
        accuracy=float((answer == answers.labels).mean()),
        cloud_accuracy=float((cloud == answers.labels).mean()),
        level_accuracy=float((device == answers.labels).mean()),
        kept=float(kept.mean()),
        skipped=float(skipped.mean()),
        disagreement=float((kept & answers.differs(level)).mean()),
    )


def calibration(answers: Answers, level: int, after: NDArray[Any]) -> tuple[float, float]:
    """Expected calibration errors of the post-gate after a level's answer: (of that level, of the cloud)."""
    right = answers.right()
    level_error = reliability(after[:, level - 1], right[:, level - 1]).error
    return level_error, reliability(after[:, -1], right[:, -1]).error
