"""What the lab finds, as values: the shape of its JSON."""

from __future__ import annotations

import msgspec

DRAWS = 200


class Options(msgspec.Struct, frozen=True):
    """alpha, delta: what is certified. against_labels: the risk is "kept, wrong, and the cloud was right".

    device_ms, cloud_ms: what an answer takes, for the cost frontier; in any unit, 1 and 10 unless known.
    """

    alpha: float = 0.05
    delta: float = 0.1
    against_labels: bool = False
    seed: int = 0
    draws: int = DRAWS
    device_ms: float | None = None
    cloud_ms: float | None = None


class Judged(msgspec.Struct, frozen=True):
    """A router on the test split. Areas and accuracies are shares of 1; None where a figure is not defined.

    difference: of the area to max-softmax's. ece, brier: of P(only the cloud is right), which is the score after Platt
    scaling on the certificate split; auroc: of that event. recovered_at: share of the gap between the models. cpt:
    share deferred at which 50, 80 and 95 % of the gap is recovered; apgr: mean share recovered. ms: one decision.
    """

    auc: float
    auc_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    oracle_gap_closed: float | None
    accuracy_at: dict[str, float]
    recovered_at: dict[str, float | None]
    cpt: dict[str, float | None]
    apgr: float | None
    ece: float | None
    brier: float | None
    auroc: float | None
    ms: float


class Naive(msgspec.Struct, frozen=True):
    """The threshold that just meets alpha on the certificate split, with no margin for chance; what it does on test."""

    threshold: float
    offload: float
    risk: float


class Certificate(msgspec.Struct, frozen=True):
    """P(kept and in error) <= alpha with confidence 1 - delta over the draw of the n certificate rows.

    threshold: of the chosen router's score, up to which an answer is kept; None when nothing could be certified.
    offload, risk: on the test split. bound: Clopper and Pearson's, on the certificate split. needs: least n.
    """

    alpha: float
    delta: float
    n: int
    needs: int
    threshold: float | None
    offload: float
    bound: float
    risk: float
    naive: Naive


class Study(msgspec.Struct, frozen=True):
    """All that the lab found. oracle, random: areas; oracles: areas of the three of Selective Query.

    policies: what an agent runs each router as, at its certified threshold; only where they were saved.
    """

    rows: int
    fitted: int
    tested: int
    classes: int
    labelled: bool
    device_accuracy: float
    cloud_accuracy: float
    routers: dict[str, Judged]
    oracle: float
    oracles: dict[str, float]
    random: float
    certificate: Certificate
    chosen: str
    notes: tuple[str, ...]
    policies: dict[str, str] = {}
