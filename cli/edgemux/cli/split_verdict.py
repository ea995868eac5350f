"""Whether the agent would use a split: by what it may lose, and over which links it is the sooner answer."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from edgemux.edge.config import CloudSettings
from edgemux.edge.packing import Z95, most_lost, usable
from edgemux.edge.split_planning import AROUND_BYTES, SplitSettings, split_way, whole_ways
from edgemux.multiplexer.bundle import Manifest, Split
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.planner import Conditions, Table

# Bit/s of links that are looked at: 10 kbit/s to 10 Gbit/s, twenty in each decade.
LINKS = tuple(np.logspace(4, 10, 121).tolist())
# A small device takes so many times as long as the machine that measured.
SLOW_DEVICE = 8.0


class Verdict(msgspec.Struct, frozen=True):
    """used: by an agent with its defaults, where it pays. may_lose: of the accuracy at 95 %; max_loss: the default.

    max_loss_needed: the setting that would let it be used, None where the default does. inputs_needed: how many would
    show that it loses little enough, if it did as well on these; None where no number would. below_mbit,
    slow_below_mbit: over slower links it is sooner than the whole input, on a device as quick as the machine that
    measured and on a slow one; 0 for over none, None for over any.
    """

    used: bool
    may_lose: float
    max_loss: float
    max_loss_needed: float | None
    inputs_needed: int | None
    below_mbit: float
    slow_below_mbit: float
    lines: tuple[str, ...]


def verdict_of(manifest: Manifest, split: Split, input_bytes: int) -> Verdict:
    """input_bytes: of the tensor of one whole input."""
    lost, limit = most_lost(manifest.cloud.accuracy, split), SplitSettings().max_loss
    used = lost <= limit
    needed = None if used else math.ceil(1000 * lost) / 1000
    count = None if used else _inputs_needed(manifest.cloud.accuracy, split, limit)
    quick, slow = (_below_mbit(manifest, split, input_bytes, slowdown) for slowdown in (1.0, SLOW_DEVICE))
    lines = (_by_loss(lost, limit, needed, count), _by_link(quick, slow))
    return Verdict(used, lost, limit, needed, count, quick, slow, lines)


def _inputs_needed(accuracy: float, split: Split, limit: float) -> int | None:
    """From how many inputs on the bound would be low enough, with the shares that were seen."""
    room = limit - max(0.0, accuracy - split.accuracy)
    if room <= 0:
        return None
    # Z95 * sqrt(changed / n + 3 / n^2) = room, solved for n.
    share = (room / Z95) ** 2
    return math.ceil((split.changed + math.sqrt(split.changed**2 + 12 * share)) / (2 * share))


def _below_mbit(manifest: Manifest, split: Split, input_bytes: int, slowdown: float) -> float:
    """The quickest link, in Mbit/s, over which the split is sooner than the whole input in its best form."""
    forms = usable(manifest, CloudSettings().payload_max_loss)
    way = split_way(manifest, split, split.level)
    table = Table([*whole_ways(manifest, forms, input_bytes + AROUND_BYTES), way])
    # The round trip is the same for all.
    sooner = [
        bits_per_s
        for bits_per_s in LINKS
        if table.expected(Conditions(0.0, bits_per_s / 8, slowdown=slowdown))[0].way.placement is Placement.SPLIT
    ]
    fastest = max(sooner, default=0.0)
    return math.inf if fastest == LINKS[-1] else fastest / 1e6


def _by_loss(lost: float, limit: float, needed: float | None, count: int | None) -> str:
    said = f"it loses at most {100 * lost:.2f} points of accuracy (95 %), and [split] max_loss is {limit:g}"
    if needed is None:
        return f"the agent may use it with its defaults: {said}"
    more = "" if count is None else f"; or {count:,} inputs that show the same, beside those that it was chosen by"
    return f"the agent does not use it with its defaults: {said}; it would with max_loss = {needed:.3f}{more}"


def _by_link(quick: float, slow: float) -> str:
    if not quick:
        return (
            'the whole input is sooner over any link: [split] use = "auto" never takes it, "always" does all the same'
        )
    also = f"on a device {SLOW_DEVICE:g} times as slow, over {_links(slow)}"
    return f"it is sooner than the whole input over {_links(quick)}; {also}"


def _links(mbit: float) -> str:
    return "none" if not mbit else "any link" if math.isinf(mbit) else f"links below {mbit:.3g} Mbit/s"
