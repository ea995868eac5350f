"""Every router as a fit: rows -> a scorer, which says how much deferring a row would gain; larger goes first.

Only the order of a score counts for a deferral curve; all lie within [-1, 1], so that the prices KEEP_ALL and DEFER_ALL
mean what they say. An agent can run what reads nothing but the device's answer: a simple router as the policy that
``written`` says, a learned one from its net and what that ``reads``. References are in ``REFERENCES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemux.multiplexer.certify import KEEP_ALL
from edgemux.multiplexer.features import query_of, tempered_total
from edgemux.multiplexer.lab.rows import KEPT, Rows
from edgemux.multiplexer.learned import Net, sigmoid
from edgemux.multiplexer.training.calibrate import platt
from edgemux.multiplexer.training.minimise import along
from edgemux.multiplexer.training.net import How, binary, fit_logistic, fit_net, gain_loss, squared
from edgemux.multiplexer.training.posterior import Posterior, fit_posterior

Scores = NDArray[np.float64]
Score = Callable[[Rows], Scores]
# The policy, as text, that defers what is scored above a price.
Written = Callable[[float], str]

REFERENCES = {
    "device-only": "defers nothing, whatever share it may",
    "cloud-only": "sends everything until the share that it may is spent: first come, first served",
    "random": "defers by chance",
    "max-softmax": "1 - largest probability; KubeEdge Sedna's Threshold and IBT filters are the same for one label",
    "temperature": "max-softmax after temperature scaling (Guo et al. 2017)",
    "margin": "difference of the two largest probabilities",
    "entropy": "normalised entropy; KubeEdge Sedna's CrossEntropy filter",
    "static-threshold": "max-softmax with the one threshold that was best on the fit split",
    "logistic": "logistic regression on the device's output, P(device wrong) (hierarchical inference)",
    "appealnet": "a predictor head trained with AppealNet's loss (Li et al. 2021)",
    "selective-query": "entropy, top-10 margins, features; 'cloud wrong or device right' (Kag et al. 2023)",
    "gain-regression": "post-hoc estimate of the gain by least squares (Narasimhan et al. 2022)",
    "pre-gate": "the multiplexer's first gate alone: the raw input, before any model has run",
    "multiplexer": "P(cloud right) - P(device right); the target is the label's posterior given both answers",
}
# AppealNet's price on calling the cloud, its beta; the order it learns hardly depends on it.
APPEAL_PRICE = 0.1
PRE_GATE = How(weight_decay=0.1)


@dataclass(frozen=True, slots=True)
class Scorer:
    """A fitted router. net: of a learned one; reads: what its net reads, if nothing but the device's answer."""

    name: str
    score: Score = field(repr=False)
    net: Net | None = None
    reads: str | None = None
    written: Written | None = None

    @property
    def runnable(self) -> bool:
        """Whether an agent can run it: it reads nothing but the device's answer."""
        return self.written is not None or self.reads is not None


Fit = Callable[[Rows, int], Scorer]


def _below(name: str, more: str = "") -> Written:
    """Of a policy that defers below its threshold, where the score is minus what that looks at."""
    return lambda price: f"{name}(threshold={0.0 - price!r}{more})"


def max_softmax(rows: Rows, seed: int) -> Scorer:
    """Nothing to fit."""
    return Scorer("max-softmax", lambda rows: -rows.top[:, 0].astype(np.float64), written=_below("max-softmax"))


def margin(rows: Rows, seed: int) -> Scorer:
    """Nothing to fit."""

    def score(rows: Rows) -> Scores:
        first, second = rows.top[:, :2].astype(np.float64).T
        result: Scores = second - first
        return result

    return Scorer("margin", score, written=_below("margin"))


def entropy(rows: Rows, seed: int) -> Scorer:
    """Nothing to fit."""
    return Scorer("entropy", lambda rows: rows.unsure, written=lambda price: f"entropy(threshold={price!r})")


def temperature(rows: Rows, seed: int) -> Scorer:
    """One temperature, by likelihood of the truth."""
    t = best_temperature(rows)
    more = f", temperature={t!r}" + (f", kept={KEPT}" if rows.classes > KEPT else "")
    return Scorer("temperature", lambda rows: -top_probability(rows, t), written=_below("temperature", more))


def best_temperature(rows: Rows) -> float:
    """The T for which softmax(log p / T) is likeliest to have drawn the truth; by golden-section search over log T."""
    own = np.log(rows.device_on_label.astype(np.float64) + 1e-30)

    def loss(log_t: float) -> float:
        t = float(np.exp(log_t))
        return float((log_normaliser(rows, t) - own / t).mean())

    return float(np.exp(along(loss, float(np.log(0.05)), float(np.log(20.0)), rounds=40)))


def log_normaliser(rows: Rows, t: float) -> Scores:
    """log of the sum over classes of exp(log p / T); classes that were not kept count with their mean."""
    result: Scores = rows.logs[:, 0].astype(np.float64) / t + np.log(_total(rows, t))
    return result


def top_probability(rows: Rows, t: float) -> Scores:
    """The largest probability after scaling by T."""
    return 1.0 / _total(rows, t)


def _total(rows: Rows, t: float) -> Scores:
    return tempered_total(rows.logs, rows.rest, rows.classes, t)


def static_threshold(rows: Rows, seed: int) -> Scorer:
    """The threshold on max-softmax that is most accurate on the fit rows; all rows below it are alike.

    A price below 1 keeps the rest only; no price in between can be told from another.
    """
    confidence = rows.top[:, 0]
    order = np.argsort(confidence, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((rows.cloud_right * 1.0 - rows.device_right)[order])])
    best = int(gained.argmax())
    # The last that is deferred lies below it.
    threshold = float(np.nextafter(confidence[order[best - 1]], np.float32(2.0))) if best else -KEEP_ALL

    def written(price: float) -> str:
        return _below("static")(-threshold if 0.0 <= price < 1.0 else price)

    return Scorer("static-threshold", lambda rows: (rows.top[:, 0] < threshold).astype(np.float64), written=written)


def _learned(name: str, net: Net) -> Scorer:
    """Of a net that reads the features of the device's answer."""
    return Scorer(name, lambda rows: net.scores(rows.features), net, "answer")


def logistic(rows: Rows, seed: int) -> Scorer:
    """P(device wrong)."""
    return _learned("logistic", fit_logistic(rows.features, 1.0 - rows.device_right))


def appealnet(rows: Rows, seed: int) -> Scorer:
    """q = P(keep) minimises q * loss(device) + (1 - q) * loss(cloud) - beta * log q, over the answer and the input."""
    losses = np.stack([_surprise(rows.device_on_label), _surprise(rows.cloud_on_label)], axis=1)

    def loss(logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        keep = torch.sigmoid(logits[:, 0])
        stay = -torch.nn.functional.logsigmoid(logits[:, 0])
        return (keep * losses[:, 0] + (1.0 - keep) * losses[:, 1] + APPEAL_PRICE * stay).mean()

    net = fit_net(_with_tiles(rows), losses, loss, 1, seed).negated()
    reads = None if has_tiles(rows) else "answer"
    return Scorer("appealnet", lambda rows: net.scores(_with_tiles(rows)), net, reads)


def _surprise(probability: NDArray[Any]) -> NDArray[np.float32]:
    return -np.log(np.maximum(probability, 1e-4)).astype(np.float32)


def selective_query(rows: Rows, seed: int) -> Scorer:
    """1 - P(cloud wrong or device right)."""
    keep = (~rows.cloud_right | rows.device_right).astype(np.float32)[:, None]
    net = fit_net(_query(rows), keep, binary, 1, seed).negated()
    reads = None if has_tiles(rows) else "query"
    return Scorer("selective-query", lambda rows: net.scores(_query(rows)), net, reads)


def _query(rows: Rows) -> NDArray[np.float32]:
    return query_of(rows.unsure, rows.top, _with_tiles(rows))


def gain_regression(rows: Rows, seed: int) -> Scorer:
    """E[cloud right - device right] by least squares; its score is a sigmoid of it."""
    target = (rows.cloud_right.astype(np.float32) - rows.device_right)[:, None]
    return _learned("gain-regression", fit_net(rows.features, target, squared, 1, seed))


def pre_gate(rows: Rows, seed: int) -> Scorer:
    """The gain from the input alone."""
    net = fit_net(rows.tiles, targets(rows), gain_loss, 2, seed, PRE_GATE)
    return Scorer("pre-gate", lambda rows: net.scores(rows.tiles), net)


def multiplexer(rows: Rows, seed: int) -> Scorer:
    """Both gates: what the device answered and, where there are inputs, what the pre-gate makes of them."""
    wanted = targets(rows)
    if not has_tiles(rows):
        return _learned(OURS, fit_net(rows.features, wanted, gain_loss, 2, seed))

    def first_gate(tiles: NDArray[Any], wanted: NDArray[Any]) -> Net:
        return fit_net(tiles, wanted, gain_loss, 2, seed, PRE_GATE)

    def read(rows: Rows, logits: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([rows.features, logits.astype(np.float32)], axis=1)

    # The second gate learns from a first that has not seen the row: elsewhere the first is surer than it is right.
    unseen = np.empty((rows.count, 2))
    for held, rest in folds(rows.count, 3, seed):
        unseen[held] = first_gate(rows.tiles[rest], wanted[rest]).logits(rows.tiles[held])
    first = first_gate(rows.tiles, wanted)
    second = fit_net(read(rows, unseen), wanted, gain_loss, 2, seed)
    return Scorer(OURS, lambda rows: second.scores(read(rows, first.logits(rows.tiles))), second)


def folds(count: int, parts: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(held back, the others) for each of ``parts`` random parts of ``count`` rows."""
    order = np.random.default_rng(seed).permutation(count)
    pieces = np.array_split(order, parts)
    return [(piece, np.concatenate([other for other in pieces if other is not piece])) for piece in pieces]


def targets(rows: Rows) -> NDArray[np.float32]:
    """What ``gain_loss`` wants of fit rows: P(device right), P(cloud right), 1; float32 [n, 3].

    By the fitted posterior of the label; without labels, by the cloud's own probabilities.
    """
    seen = rows.seen
    if seen is None:
        raise ValueError("these rows are not for fitting")
    posterior = fit_posterior(seen) if rows.labelled else Posterior.trusting(seen.cloud.shape[1])
    device, cloud = posterior.right(seen)
    return np.stack([device, cloud, np.ones_like(device)], axis=1)


def has_tiles(rows: Rows) -> bool:
    """Whether the inputs are known."""
    return rows.tiles.shape[1] > 0


def _with_tiles(rows: Rows) -> NDArray[np.float32]:
    return np.concatenate([rows.features, rows.tiles], axis=1) if has_tiles(rows) else rows.features


OURS, FALLBACK, BASELINE = "multiplexer", "temperature", "max-softmax"
# Routers without a score.
DEVICE_ONLY, CLOUD_ONLY, RANDOM = "device-only", "cloud-only", "random"

FITS: dict[str, Fit] = {
    "max-softmax": max_softmax,
    "temperature": temperature,
    "margin": margin,
    "entropy": entropy,
    "static-threshold": static_threshold,
    "logistic": logistic,
    "appealnet": appealnet,
    "selective-query": selective_query,
    "gain-regression": gain_regression,
    "pre-gate": pre_gate,
    "multiplexer": multiplexer,
}


def foretold(scorer: Scorer, known: Rows, scores: Scores) -> Scores:
    """P(only the cloud is right), of a router's scores: Platt scaling on ``known``, which it was not fitted on."""
    only_cloud = (known.cloud_right & ~known.device_right).astype(np.float64)
    scaling = platt(scorer.score(known)[:, None], only_cloud[:, None])
    return sigmoid(float(scaling.slope[0]) * scores + float(scaling.offset[0]))


def fits_for(rows: Rows) -> dict[str, Fit]:
    """The routers that can be fitted to such rows: the pre-gate needs inputs."""
    return {name: fit for name, fit in FITS.items() if name != "pre-gate" or has_tiles(rows)}
