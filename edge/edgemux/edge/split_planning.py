"""Whether the cloud is sent the whole input or what a head makes of it: whichever is answered soonest. Pure.

The prices are the planner's; here its ways are made of what a bundle has measured, for each level that has run by then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from edgemux.edge.packing import most_lost
from edgemux.edge.peer import CALL_OVERHEAD_BYTES, MESSAGE_BYTES
from edgemux.multiplexer.bundle import Manifest, Payload, Split, splits_of
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.estimate import LinkEstimate
from edgemux.multiplexer.planner import Conditions, Planner, Price, Table, Way
from edgemux.wire.payload import RAW

# Names, shapes, ids and framing beside what is sent, the same for every way.
AROUND_BYTES = float(MESSAGE_BYTES + CALL_OVERHEAD_BYTES)


class SplitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The splits of a bundle. use: "auto" where the whole input would take longer, "always" instead of it, or "off".

    max_loss: only those that cost at most so much of the cloud's accuracy, as the bundle has measured, at 95 %.
    never_send_raw: whole inputs never leave the device, neither for an answer nor for an audit or a look at the link.
    """

    use: Literal["auto", "off", "always"] = "auto"
    max_loss: float = 0.01
    never_send_raw: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss <= 1:
            raise ValueError("max_loss must be in [0, 1]")


def usable_splits(manifest: Manifest, settings: SplitSettings) -> tuple[Split, ...]:
    """The splits that may be used: they lose at most ``max_loss``, with a confidence of 95 %."""
    if settings.use == "off":
        return ()
    accuracy = manifest.cloud.accuracy
    return tuple(split for split in splits_of(manifest) if most_lost(accuracy, split) <= settings.max_loss)


def whole_ways(manifest: Manifest, payloads: Sequence[Payload], raw_bytes: float) -> tuple[Way, ...]:
    """The whole input in each form in which it may be sent. raw_bytes: of a call with the tensor itself."""
    cloud_s = manifest.cloud.median_ms / 1000
    ways = [Way(RAW, Placement.CLOUD, 0.0, cloud_s, raw_bytes)]
    for each in payloads:
        if each.encoding != RAW:
            size, decode_s = each.bytes + AROUND_BYTES, each.decode_ms / 1000
            encode_s, changed = each.encode_ms / 1000, each.changed
            ways.append(Way(each.encoding, Placement.CLOUD, encode_s, cloud_s + decode_s, size, changed=changed))
    return tuple(ways)


def split_way(manifest: Manifest, split: Split, reached: int) -> Way:
    """A split for an input that level ``reached`` has answered, 0 for none: what is there is not computed again."""
    levels_ms = [0.0, *(level.median_ms for level in manifest.levels)]
    below_ms = max(0.0, levels_ms[split.level] - levels_ms[reached]) if reached < split.level else 0.0
    device_s = (below_ms + split.head_ms) / 1000
    size, tail_s = split.bytes + AROUND_BYTES, split.tail_ms / 1000
    return Way(split.name, Placement.SPLIT, device_s, tail_s, size, changed=split.changed)


Sent = tuple[float, float]


def link_of(small_s: float | None, whole: Sent | None, part: Sent | None) -> tuple[float, float] | None:
    """Round trip and bytes a second, from (bytes, seconds) of calls with whole inputs and with parts.

    small_s: of a call that carries next to nothing. None where less than two of the three are known. What a call takes
    beside the smallest one is not all for its bytes: where both are known, whole inputs and parts tell more, unless
    what went before them on the link held up the smaller for longer. Infinite where more bytes take no more time.
    """
    least = None if small_s is None else (LinkEstimate.SMALL_BYTES / 2, small_s)
    known = sorted(each for each in (least, part, whole) if each is not None)
    if len(known) < 2:
        return None
    many, slow_s = known[-1]
    for few, quick_s in (known[-2], known[0]):
        if slow_s > quick_s and many > few:
            bytes_per_s = (many - few) / (slow_s - quick_s)
            return max(0.0, quick_s - few / bytes_per_s), bytes_per_s
    return min(seconds for _, seconds in known), math.inf


class SplitChoice:
    """The choice for one model. Not thread-safe."""

    def __init__(
        self, manifest: Manifest, splits: Sequence[Split], whole: Sequence[Way], price: Price | None = None
    ) -> None:
        """whole: what ``whole_ways`` gives; none where the whole input is never to be sent by first choice."""
        self._manifest = manifest
        self.accuracy = manifest.cloud.accuracy
        self._splits = {split.name: split for split in splits}
        self._whole = tuple(whole)
        self.has_whole = bool(whole)
        self._price = price
        self._planners: dict[tuple[int, tuple[str, ...]], Planner] = {}

    def choose(self, reached: int, ready: tuple[str, ...], conditions: Conditions | None) -> str | None:
        """The split for an input that level ``reached`` has answered; None for the whole input.

        ready: names of the splits that can be had now. conditions: None while the link is not known.
        """
        if not ready:
            return None
        planner = self._planners.get((reached, ready))
        if planner is None:
            planner = self._planners[reached, ready] = self._planner(reached, ready)
        way = planner.plan(conditions)
        return way.name if way.placement is Placement.SPLIT else None

    def forget(self) -> None:
        """The link has not been seen for long: begin again with what is there without a head."""
        for planner in self._planners.values():
            planner.forget()

    def _planner(self, reached: int, ready: tuple[str, ...]) -> Planner:
        splits = [split_way(self._manifest, self._splits[name], reached) for name in ready]
        return Planner(Table([*self._whole, *splits], self._price))
