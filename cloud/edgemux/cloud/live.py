"""Everything that was counted of a version of a model since the start, as JSON for the cloud's live page."""

from __future__ import annotations

from typing import Any

from edgemux.cloud.statistics import Spread, Tally


def counted(tally: Tally) -> dict[str, Any]:
    """A tally. Spreads are counts by upper bound."""
    return {
        "inflight": tally.inflight,
        "requests": {outcome.value: count for outcome, count in tally.requests.items()},
        "refused": {reason.value: count for reason, count in tally.refused.items()},
        "rows": tally.rows,
        "batches": tally.batches,
        "batch_rows": spread(tally.batch_rows),
        "queue_seconds": spread(tally.queue),
        "compute_seconds": spread(tally.compute),
    }


def spread(seen: Spread) -> dict[str, Any]:
    """``bounds``: the highest value of each count but the last, which has what was above all; ``total``: the sum."""
    return {"bounds": list(seen.bounds), "counts": list(seen.counts), "total": seen.total}
