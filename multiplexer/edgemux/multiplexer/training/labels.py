"""What every route answered on a split, and what the gates learn from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.training.curves import rank

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of all routes to n inputs, as the exported files gave them.

    levels: probabilities float32 [levels, n, classes]; cloud: [n, classes]; labels: int64 [n], -1 where unknown.
    """

    levels: Floats
    cloud: Floats
    labels: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many inputs."""
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Answers:
        """Those of some inputs, by index or mask."""
        return Answers(self.levels[:, rows], self.cloud[rows], self.labels[rows])

    def followed_by(self, others: Answers) -> Answers:
        """These, then the others."""
        return Answers(
            np.concatenate([self.levels, others.levels], axis=1),
            np.concatenate([self.cloud, others.cloud]),
            np.concatenate([self.labels, others.labels]),
        )

    def labels_of_levels(self) -> NDArray[np.int64]:
        """Every level's answer, int64 [levels, n]."""
        return self.levels.argmax(axis=2)

    def labels_of_cloud(self) -> NDArray[np.int64]:
        """The cloud's answer, int64 [n]."""
        return self.cloud.argmax(axis=1)

    def right(self) -> Floats:
        """1 where a route is right, float32 [n, levels + 1], the cloud last."""
        answers = np.concatenate([self.labels_of_levels(), self.labels_of_cloud()[None]])
        return np.ascontiguousarray((answers == self.labels).T.astype(np.float32))

    def area(self, level: int, gain: NDArray[Any]) -> float:
        """Mean accuracy over all shares deferred, by falling gain [n], after a level's answers: the deferral area."""
        right = self.right()
        return rank(gain, right[:, level - 1], right[:, -1]).curve().area

    def differs(self, level: int) -> NDArray[np.bool_]:
        """Where a level (1 = smallest) and the cloud disagree, bool [n]; needs no labels."""
        differs: NDArray[np.bool_] = self.labels_of_levels()[level - 1] != self.labels_of_cloud()
        return differs


def one_hot(level: int, levels: int, count: int) -> Floats:
    """float32 [count, levels] with 1 in the column of ``level`` (1 = smallest)."""
    rows = np.zeros((count, levels), np.float32)
    rows[:, level - 1] = 1.0
    return rows
