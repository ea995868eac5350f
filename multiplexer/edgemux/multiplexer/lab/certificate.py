"""The certificate of the chosen router, and the threshold it is compared with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.certify import DEFER_ALL, KEEP_ALL, certify, grid_of, rows_needed, upper_bound
from edgemux.multiplexer.lab.pairs import CERTIFY, MOST, Splits
from edgemux.multiplexer.lab.results import Certificate, Naive, Options
from edgemux.multiplexer.lab.routers import DEVICE_ONLY, Scorer, Scores
from edgemux.multiplexer.lab.rows import Rows
from edgemux.multiplexer.training.curves import rank

GRID = 101


def errors_of(rows: Rows, options: Options) -> NDArray[np.bool_]:
    """Where keeping the device's answer counts against the certificate."""
    if options.against_labels:
        return rows.cloud_right & ~rows.device_right
    return rows.differs


def certified(
    splits: Splits, scorer: Scorer, unseen: Scores, chosen: str, options: Options
) -> tuple[Certificate, list[str]]:
    """Certify a router on the certificate rows, with prices in the order of its scores on others, ``unseen``."""
    rows, test = splits.certify, splits.test
    gain, test_gain = scorer.score(rows), scorer.score(test)
    wrong, test_wrong = errors_of(rows, options), errors_of(test, options)
    naive = naive_threshold(gain, wrong, options.alpha)
    stays = chosen == DEVICE_ONLY
    price = KEEP_ALL if stays else certify(gain, wrong, grid_of(unseen, GRID), options.alpha, options.delta).price
    kept, test_kept, test_naive = gain <= price, test_gain <= price, test_gain <= naive
    certificate = Certificate(
        alpha=options.alpha,
        delta=options.delta,
        n=rows.count,
        needs=rows_needed(options.alpha, options.delta),
        threshold=price if price > DEFER_ALL and not stays else None,
        offload=float(1.0 - test_kept.mean()),
        bound=upper_bound(int((wrong & kept).sum()), rows.count, options.delta),
        risk=float((test_wrong & test_kept).mean()),
        naive=Naive(naive, float(1.0 - test_naive.mean()), float((test_wrong & test_naive).mean())),
    )
    return certificate, _notes(certificate, stays, rows.count / splits.total)


def prices(splits: Splits, fitted: dict[str, Scorer], unseen: dict[str, Scores], options: Options) -> dict[str, float]:
    """The certified price of each router that an agent can run, as if it were the only one.

    Tried in the order of its scores out of fold where they are known, ``unseen``, else of those on the fit rows.
    """
    rows = splits.certify
    wrong = errors_of(rows, options)
    found = {}
    for name, scorer in fitted.items():
        if scorer.runnable:
            grid = grid_of(unseen[name] if name in unseen else scorer.score(splits.fit), GRID)
            found[name] = certify(scorer.score(rows), wrong, grid, options.alpha, options.delta).price
    return found


def _notes(certificate: Certificate, stays: bool, share: float) -> list[str]:
    """Why there is no certificate, where there is none."""
    if stays:
        return ["Nothing is certified: the device keeps all its answers, whatever the cloud would say."]
    if certificate.needs > MOST[CERTIFY]:
        return [
            f"No certificate: alpha {certificate.alpha:g} at delta {certificate.delta:g} needs at least "
            f"{certificate.needs} rows in the certificate split, which takes {MOST[CERTIFY]} at most."
        ]
    if certificate.n < certificate.needs:
        return [
            f"No certificate: alpha {certificate.alpha:g} at delta {certificate.delta:g} needs at least "
            f"{certificate.needs} rows in the certificate split, which has {certificate.n}: bring "
            f"{math.ceil(certificate.needs / share)} rows in all."
        ]
    if certificate.threshold is None:
        return [f"No certificate: even the surest answers are in error more often than alpha {certificate.alpha:g}."]
    return []


def naive_threshold(gain: Scores, wrong: NDArray[np.bool_], alpha: float) -> float:
    """The highest score up to which at most alpha of the rows were kept and in error; DEFER_ALL when there is none."""
    ranking = rank(-gain, wrong, wrong)
    errors = np.cumsum(wrong[ranking.rows])[ranking.ends - 1]
    fitting = np.flatnonzero(errors <= alpha * len(gain))
    if not len(fitting):
        return DEFER_ALL
    last = int(fitting[-1])
    return KEEP_ALL if last == len(ranking.ends) - 1 else float(gain[ranking.rows[ranking.ends[last] - 1]])
