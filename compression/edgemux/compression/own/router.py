"""Gates and prices for models of somebody's own, and when there is nothing to route."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemux.compression import gates
from edgemux.compression.fit import Tick
from edgemux.compression.multiplex import (
    POST_GATE,
    PRE_GATE,
    Prices,
    Scored,
    gains,
    post_gate_fit,
    pre_gate_fit,
    priced,
    save_prices,
    stated,
)
from edgemux.compression.own.answers import Splits, digests, read
from edgemux.compression.own.feed import Feed
from edgemux.compression.recipe import Certify, Gates
from edgemux.multiplexer.bundle import Certified
from edgemux.multiplexer.certify import DEFER_ALL, KEEP_ALL, certify
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.fit import KEPT_BACK, fit_post, fit_pre, targets_of
from edgemux.multiplexer.training.labels import Answers

SCORES = "scores.npz"
SPLITS = ("gate", "certify", "test")


def write_gates(answers: Path, feed: Feed, dealt: Splits, how: Gates, seed: int, folder: Path, tick: Tick) -> None:
    """Fit both gates on the gate split, write their graphs, and score every split with the graph that ships."""
    features, right = read(answers, "gate")
    back = np.arange(right.count) % KEPT_BACK == 0
    targets = targets_of(right)
    pre = fit_pre(features, right, targets, back, pre_gate_fit(how), seed)
    (folder / PRE_GATE).write_bytes(gates.pre_gate_graph(pre, feed.tensor).SerializeToString(deterministic=True))
    tick(0.3)
    gate = OnnxModel.read(folder / PRE_GATE)
    before = {name: feed.answers(gate, getattr(dealt, name)) for name in SPLITS}
    np.savez(folder / SCORES, **before)  # type: ignore[arg-type]
    tick(0.6)
    post, _ = fit_post(right, targets, before["gate"], back, post_gate_fit(how), seed)
    graph = gates.post_gate_graph(post, len(right.levels), right.cloud.shape[1])
    (folder / POST_GATE).write_bytes(graph.SerializeToString(deterministic=True))


def scored(answers: Path, gate_files: Path, name: str) -> Scored:
    """One split, as both models and the pre-gate answered it."""
    with np.load(gate_files / SCORES, allow_pickle=False) as stored:
        return Scored(read(answers, name)[1], stored[name])


def write_prices(answers: Path, gate_files: Path, labelled: bool, how: Certify, agreement: float, folder: Path) -> None:
    """Certify a price on the certificate split; where the cloud is no better, keep everything on the device."""
    fit, split = scored(answers, gate_files, "gate"), scored(answers, gate_files, "certify")
    sha256 = digests(answers)["certify"]
    if labelled and not _worth_asking(fit.answers):
        save_prices(_kept(gate_files, split, sha256, how), folder)
        return
    back = np.arange(fit.answers.count) % KEPT_BACK == 0
    unseen = Scored(fit.answers.take(back), fit.before[back])
    save_prices(priced(gate_files, unseen, split, sha256, how, agreement), folder)


def _worth_asking(answers: Answers) -> bool:
    """Whether the cloud is right at least as often as the device."""
    right = answers.right().mean(axis=0)
    return bool(right[-1] >= right[:-1].max())


def _kept(gate_files: Path, split: Scored, sha256: str, how: Certify) -> Prices:
    """Prices at which nothing leaves the device. Certified only if the two differ as seldom as alpha asks."""
    gain = gains(gate_files, split.answers, 1, split.before)
    price = certify(gain, split.answers.differs(1), np.array([KEEP_ALL]), how.alpha[0], how.delta)
    certificate = None
    if price.price == KEEP_ALL:
        seen = Certified(1, price.price, price.kept, price.disagreement, price.upper_bound)
        certificate = stated(how, how.alpha, split.answers.count, sha256, [seen])
    return Prices((KEEP_ALL,), certificate, KEEP_ALL)


def sentence(prices: Prices, answers: Path) -> str:
    """What a reader should know about the router; empty when it simply routes."""
    if prices.defer == (DEFER_ALL,):
        alpha = f"{100 * prices.certificate.alpha[0]:g} %" if prices.certificate is not None else "what was asked"
        return (
            f"the models differ too often, or the inputs are too few, to keep any answer at {alpha} disagreement: "
            "every input goes to the cloud while it can be had"
        )
    if prices.defer != (KEEP_ALL,) or prices.offload_first != KEEP_ALL:
        return ""
    right = read(answers, "gate")[1].right().mean(axis=0)
    if right[-1] >= right[0]:
        return "device and cloud agree so often that every answer is kept on the device"
    bound = "" if prices.certificate is not None else "; they differ too often for a certificate, so it has none"
    return (
        f"the cloud is right less often ({100 * right[-1]:.1f} %) than the device ({100 * right[0]:.1f} %): "
        f"every answer is kept on the device{bound}"
    )
