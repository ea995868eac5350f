"""Made-up pairs of models: a cloud that sees well, a device that sees less, and blind spots where they are wanted."""

from __future__ import annotations

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def make_pair():
    def make(count: int, classes: int = 10, seed: int = 0, blind: tuple[int, ...] = ()) -> Arrays:
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, classes, count)
        truth = 4.0 * np.eye(classes, dtype=np.float32)[labels]
        shared = 1.0 * generator.normal(size=(count, classes))
        edge = truth + shared + 1.6 * generator.normal(size=(count, classes))
        cloud = truth + shared + 0.4 * generator.normal(size=(count, classes))
        cloud[:, list(blind)] -= 9.0
        return {
            "edge_logits": edge.astype(np.float32),
            "cloud_logits": cloud.astype(np.float32),
            "labels": labels.astype(np.int64),
        }

    return make
