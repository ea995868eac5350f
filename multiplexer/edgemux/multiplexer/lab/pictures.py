"""What the page draws, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.certify import upper_bound
from edgemux.multiplexer.lab.certificate import errors_of
from edgemux.multiplexer.lab.pairs import Splits
from edgemux.multiplexer.lab.results import Options
from edgemux.multiplexer.lab.routers import Scorer, best_temperature, foretold, top_probability
from edgemux.multiplexer.training.curves import Curve, rank
from edgemux.multiplexer.training.reliability import Reliability, reliability

POINTS = 60


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the page draws: curves by router, calibration before and after, risk by share kept, accuracy by cost."""

    curves: dict[str, Curve]
    oracles: dict[str, Curve]
    gain: Reliability
    device: dict[str, Reliability]
    kept: NDArray[np.float64]
    risk: NDArray[np.float64]
    risk_bound: NDArray[np.float64]
    device_ms: float | None
    cloud_ms: float | None


def pictures(
    splits: Splits,
    scorer: Scorer,
    curves: dict[str, Curve],
    oracles: dict[str, Curve],
    options: Options,
) -> Pictures:
    """Of the chosen router's ``scorer``, the others only by their curves."""
    test, fit, rows = splits.test, splits.fit, splits.certify
    t = best_temperature(fit)
    wrong = errors_of(rows, options)
    ranking = rank(-scorer.score(rows), wrong, wrong)
    ends = ranking.ends[:: max(1, len(ranking.ends) // POINTS)]
    errors = np.cumsum(wrong[ranking.rows])[ends - 1]
    device_ms = options.device_ms if options.device_ms is not None else splits.device_ms
    cloud_ms = options.cloud_ms if options.cloud_ms is not None else splits.cloud_ms
    return Pictures(
        curves=curves,
        oracles=oracles,
        gain=reliability(foretold(scorer, rows, scorer.score(test)), test.cloud_right & ~test.device_right),
        device={
            "as it is": reliability(top_probability(test, 1.0), test.device_right),
            f"at temperature {t:.2f}": reliability(top_probability(test, t), test.device_right),
        },
        kept=ends / rows.count,
        risk=errors / rows.count,
        risk_bound=np.array([upper_bound(int(k), rows.count, options.delta) for k in errors]),
        device_ms=device_ms,
        cloud_ms=cloud_ms,
    )
