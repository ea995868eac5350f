"""One pair of models, every router: fit on one split, choose and certify, judge on another."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer import plugins
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.features import device_features
from edgemux.multiplexer.lab import saved
from edgemux.multiplexer.lab.certificate import certified, prices
from edgemux.multiplexer.lab.pairs import Progress, Splits
from edgemux.multiplexer.lab.pictures import Pictures, pictures
from edgemux.multiplexer.lab.results import Judged, Options, Study
from edgemux.multiplexer.lab.routers import (
    BASELINE,
    CLOUD_ONLY,
    DEVICE_ONLY,
    FALLBACK,
    OURS,
    RANDOM,
    Fit,
    Scorer,
    Scores,
    fits_for,
    folds,
    foretold,
)
from edgemux.multiplexer.lab.rows import Rows
from edgemux.multiplexer.lab.stopwatch import median_ms
from edgemux.multiplexer.learned import Router
from edgemux.multiplexer.training.curves import Curve, areas, interval, paired_error, rank
from edgemux.multiplexer.training.reliability import auroc, brier, reliability

SHARES = (0.1, 0.2, 0.3)
PARTS = (0.5, 0.8, 0.95)
# RouteLLM's figures (Ong et al. 2024) divide by the gap between the models: below this they say nothing.
LEAST_GAP = 0.02
# Below this no number of rows that anybody has certifies anything.
LEAST_RISK = 1e-9


def study(splits: Splits, options: Options, progress: Progress, folder: Path | None = None) -> tuple[Study, Pictures]:
    """Fit, choose, certify, judge; save in ``folder``, if any. Raises ConfigError for options that do not fit."""
    check(options, splits.fit.labelled)
    fit, test = splits.fit, splits.test
    fits = fits_for(fit)
    fitted: dict[str, Scorer] = {}
    for number, (name, make) in enumerate(fits.items(), start=1):
        fitted[name] = make(fit, options.seed)
        progress(0.6 * number / len(fits))
    unseen = {name: out_of_fold(fits[name], fit, options.seed) for name in (OURS, FALLBACK)}
    progress(0.8)
    chosen, notes = choose(fit, unseen)
    serving = chosen if chosen in fitted else FALLBACK
    certificate, more = certified(splits, fitted[serving], unseen[serving], chosen, options)
    policies: dict[str, str] = {}
    if folder is not None:
        certified_prices = prices(splits, fitted, unseen, options)
        policies, more = saved.save(fitted, certified_prices, folder), more + saved.notes(certified_prices)
    judged, curves = judge(splits.certify, test, fitted, options)
    oracles = {
        name: rank(score, test.device_right, test.cloud_right).curve() for name, score in oracle_scores(test).items()
    }
    progress(1.0)
    found = Study(
        rows=splits.total,
        fitted=fit.count,
        tested=test.count,
        classes=fit.classes,
        labelled=fit.labelled,
        device_accuracy=float(test.device_right.mean()),
        cloud_accuracy=float(test.cloud_right.mean()),
        routers=judged,
        oracle=oracles["oracle"].area,
        oracles={name: curve.area for name, curve in oracles.items() if name != "oracle"},
        random=curves[RANDOM].area,
        certificate=certificate,
        chosen=chosen,
        notes=tuple(notes + more),
        policies=policies,
    )
    return found, pictures(splits, fitted[serving], curves, oracles, options)


def check(options: Options, labelled: bool) -> None:
    """Raises ConfigError naming the option."""
    for name, value in (("--alpha", options.alpha), ("--delta", options.delta)):
        if not 0.0 < value < 1.0:
            raise ConfigError(f"{name}: must be between 0 and 1, not {value:g}")
        if value < LEAST_RISK:
            raise ConfigError(f"{name}: must be at least {LEAST_RISK:g}, not {value:g}")
    for name, cost in (("--edge-ms", options.device_ms), ("--cloud-ms", options.cloud_ms)):
        if cost is not None and not 0.0 <= cost < math.inf:
            raise ConfigError(f"{name}: must be a finite time, not {cost:g}")
    if options.against_labels and not labelled:
        raise ConfigError("--certify: labels are wanted, and there are none")


def out_of_fold(fit: Fit, rows: Rows, seed: int) -> Scores:
    """The scores of rows by routers that were fitted without them: the validation that the choice rests on."""
    scores = np.empty(rows.count)
    for held, rest in folds(rows.count, 5 if rows.count < 20_000 else 2, seed):
        scores[held] = fit(rows.take(rest), seed).score(rows.take(held))
    return scores


def choose(fit: Rows, unseen: dict[str, Scores]) -> tuple[str, list[str]]:
    """The router to deploy, and why: ours only if at least one standard error better than calibrated confidence."""
    device, cloud = fit.device_right, fit.cloud_right
    best = rank(unseen[OURS], device, cloud).curve()
    if fit.labelled and cloud.mean() <= device.mean():
        at = int(best.accuracy.argmax())
        return DEVICE_ONLY, [
            f"The cloud model is right on {cloud.mean():.1%} of the fit rows, the device model on {device.mean():.1%}: "
            f"answers stay on the device. The multiplexer would do best by deferring {best.share[at]:.1%} of them, "
            f"for {best.accuracy[at]:.1%}."
        ]
    gained = best.area - rank(unseen[FALLBACK], device, cloud).curve().area
    error = paired_error(unseen[OURS], unseen[FALLBACK], device, cloud)
    said = f"{100 * gained:+.3f} points of deferral area (standard error {100 * error:.3f}) out of fold"
    if gained >= error > 0.0:
        return OURS, [f"The multiplexer is chosen: {said} over calibrated max-softmax."]
    return FALLBACK, [f"Calibrated max-softmax is chosen: the multiplexer brings {said}, less than one standard error."]


def judge(
    known: Rows, test: Rows, fitted: dict[str, Scorer], options: Options
) -> tuple[dict[str, Judged], dict[str, Curve]]:
    """Every router on the test rows, those without a score too. known: rows to scale scores by."""
    device, cloud = test.device_right, test.cloud_right
    scores = {name: scorer.score(test) for name, scorer in fitted.items()}
    alike = np.zeros(test.count)
    rankings = {
        DEVICE_ONLY: rank(alike, device, device),
        # Everything is sent until the share that may be is spent: who comes first is chance.
        CLOUD_ONLY: rank(alike, device, cloud),
        RANDOM: rank(alike, device, cloud),
        **{name: rank(score, device, cloud) for name, score in scores.items()},
    }
    curves = {name: ranking.curve() for name, ranking in rankings.items()}
    draws = areas(rankings, options.draws, options.seed)
    gap = rank(cloud * 1.0 - device, device, cloud).curve().area - curves[RANDOM].area
    judged = {}
    for name, curve in curves.items():
        said = foretold(fitted[name], known, scores[name]) if name in fitted else None
        judged[name] = Judged(
            auc=curve.area,
            auc_interval=interval(draws[name]),
            difference=curve.area - curves[BASELINE].area,
            difference_interval=interval(draws[name] - draws[BASELINE]),
            # What defers nothing at any share is beside that scale: with a worse cloud it beats the oracle itself.
            oracle_gap_closed=(curve.area - curves[RANDOM].area) / gap if gap > 0 and name != DEVICE_ONLY else None,
            accuracy_at={f"{share:g}": curve.at(share) for share in SHARES},
            **_of_gap(curve, float(device.mean()), float(cloud.mean())),
            **_of_event(said, scores.get(name), cloud & ~device),
            ms=decision_ms(fitted[name], test) if name in fitted else 0.0,
        )
    return judged, curves


def _of_gap(curve: Curve, first: float, last: float) -> dict[str, Any]:
    """What of the gap between the models is recovered, where there is one."""
    if last - first < LEAST_GAP:
        nothing = {f"{share:g}": None for share in SHARES}
        return {"recovered_at": nothing, "cpt": {f"{part:g}": None for part in PARTS}, "apgr": None}
    return {
        "recovered_at": {f"{share:g}": (curve.at(share) - first) / (last - first) for share in SHARES},
        "cpt": {f"{part:g}": _number(curve.share_for(first + part * (last - first))) for part in PARTS},
        "apgr": (curve.area - first) / (last - first),
    }


def _of_event(said: Scores | None, score: Scores | None, only_cloud: NDArray[np.bool_]) -> dict[str, Any]:
    """How well "only the cloud is right" is foretold."""
    if said is None or score is None:
        return {"ece": None, "brier": None, "auroc": None}
    return {
        "ece": reliability(said, only_cloud).error,
        "brier": brier(said, only_cloud),
        "auroc": _number(auroc(score, only_cloud)),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def decision_ms(scorer: Scorer, rows: Rows, repeats: int = 50) -> float:
    """Median time of one decision from a device answer, what it reads of that included, as an agent makes it."""
    answer = np.full((1, rows.classes), 1.0 / rows.classes, np.float32)
    decide = decision(scorer, rows.take(np.arange(1)))
    return median_ms(lambda: decide(answer), repeats)


def decision(scorer: Scorer, one: Rows) -> Callable[[NDArray[Any]], Any]:
    """What is to be done with an answer [1, classes]; ``one``: its row, for what reads the input too."""
    if scorer.written is not None:
        doubts: Callable[[NDArray[Any]], Any] = plugins.make("edgemux.policies", scorer.written(0.0), "lab").doubts
        return doubts
    if scorer.net is not None and scorer.reads is not None:
        return Router(scorer.net, scorer.reads, 0.0).score
    return lambda answer: (device_features(answer), scorer.score(one))


def oracle_scores(rows: Rows) -> dict[str, Scores]:
    """What routers that know more than one can would defer by.

    oracle: the gain itself, from the label. agreement: whether the models agree. margin: how much likelier the cloud
    holds its own answer than the device's. margin-upper: how much likelier it holds the truth than the device does.
    """
    return {
        "oracle": rows.cloud_right.astype(np.float64) - rows.device_right,
        "agreement": rows.differs.astype(np.float64),
        "margin": rows.cloud_top.astype(np.float64) - rows.cloud_on_device,
        "margin-upper": rows.cloud_on_label.astype(np.float64) - rows.device_on_label,
    }
