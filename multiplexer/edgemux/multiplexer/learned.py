"""Learned routers without torch: a small net, and the file in which ``edgemux lab`` hands it to the agent."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.features import device_features, query_features

# What a router may read of a device's answer, [n, classes] -> [n, f].
READS: dict[str, Callable[[NDArray[Any]], NDArray[np.float32]]] = {"answer": device_features, "query": query_features}
WEIGHTS = ("w1", "b1", "w2", "b2")


@dataclass(frozen=True, slots=True)
class Net:
    """w2 @ relu(w1 @ features + b1) + b2; weights float64 [out, in]."""

    w1: NDArray[np.float64]
    b1: NDArray[np.float64]
    w2: NDArray[np.float64]
    b2: NDArray[np.float64]

    def logits(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """[n, out] of features [n, in]."""
        hidden = np.maximum(features @ self.w1.T + self.b1, 0.0)
        result: NDArray[np.float64] = hidden @ self.w2.T + self.b2
        return result

    def scores(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """How much deferring would gain, [n], in [-1, 1]: the output's sigmoid; of two the second's less the first's.

        Rounded to float32: the last bits of a product depend on how many rows are multiplied at once, and a threshold
        must fall on the same side for one answer and for many.
        """
        said = sigmoid(self.logits(features))
        gain = said[:, 0] if said.shape[1] == 1 else said[:, 1] - said[:, 0]
        return gain.astype(np.float32).astype(np.float64)

    def negated(self) -> Net:
        """The net whose logits are minus these."""
        return Net(self.w1, self.b1, -self.w2, -self.b2)

    def fits(self) -> bool:
        """Whether the shapes follow from one another, down to one output or two."""
        if (self.w1.ndim, self.w2.ndim) != (2, 2) or self.w2.shape[0] not in (1, 2):
            return False
        return self.b1.shape == self.w1.shape[:1] == self.w2.shape[1:] and self.b2.shape == self.w2.shape[:1]


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logits)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64)))


@dataclass(frozen=True, slots=True)
class Router:
    """A net, the features that it reads (a key of READS), and the score above which an answer is deferred.

    As an .npz file: w1 [hidden, f], b1 [hidden], w2 [1 or 2, hidden], b2 [1 or 2], reads, threshold.
    """

    net: Net
    reads: str
    threshold: float

    def score(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """Scores [n] of answers [n, classes]. Raises ConfigError when the net is for another number of classes."""
        if probabilities.shape[1] < 2:
            raise ConfigError("weights: an answer of one class leaves nothing to decide")
        features = READS[self.reads](probabilities)
        width = self.net.w1.shape[1]
        if features.shape[1] != width:
            raise ConfigError(
                f"weights: the net reads {width} numbers, and an answer of {probabilities.shape[1]} classes has "
                f"{features.shape[1]}: it was fitted for another model"
            )
        return self.net.scores(features)

    def write(self, path: Path) -> None:
        """To an .npz file. Raises OSError."""
        weights = {name: getattr(self.net, name) for name in WEIGHTS}
        np.savez(path, reads=np.array(self.reads), threshold=np.array(self.threshold), **weights)

    @classmethod
    def read(cls, path: Path) -> Router:
        """From an .npz file, never a pickle. Raises ConfigError naming the file and what is wrong with it."""
        wanted = (*WEIGHTS, "reads", "threshold")
        try:
            with np.load(path, allow_pickle=False) as file:
                missing = [name for name in wanted if name not in file.files]
                arrays = {name: file[name] for name in wanted if name not in missing}
            numbers = {name: np.asarray(array, np.float64) for name, array in arrays.items() if name != "reads"}
        except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ConfigError(f"weights: {path} cannot be read as an .npz file of numbers") from error
        if missing:
            raise ConfigError(f"weights: {path} lacks {', '.join(missing)}")
        reads = str(arrays["reads"])
        if reads not in READS:
            raise ConfigError(f"weights: {path} reads {reads[:40]!r}, which is none of {', '.join(READS)}")
        net = Net(*(numbers[name] for name in WEIGHTS))
        fits = net.fits() and numbers["threshold"].shape == ()
        if not fits or not all(np.isfinite(array).all() for array in numbers.values()):
            raise ConfigError(f"weights: {path} holds shapes that do not fit together, or numbers that are none")
        return cls(net, reads, float(numbers["threshold"]))
