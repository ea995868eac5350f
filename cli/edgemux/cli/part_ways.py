"""The splits of the demo's bundle: what the agent must be told so that it may use them, and what is said of that."""

from __future__ import annotations

import math

import msgspec

from edgemux.edge.packing import most_lost
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Manifest, splits_of
from edgemux.wire.codec import row_bytes

# Of the cloud's accuracy, at 95 %: splits that may lose more are not for showing.
MOST_LOST = 0.03


class PartWays(msgspec.Struct, frozen=True):
    """Names of the splits, bytes of an input as they send it and of the input itself; the most that any may lose."""

    names: tuple[str, ...]
    bytes: float
    whole_bytes: int
    max_loss: float

    @property
    def default(self) -> bool:
        """Whether an agent uses them all without being told."""
        return self.max_loss <= SplitSettings().max_loss

    def settings(self) -> str:
        """TOML for the agent: all of them may be used."""
        return f"[split]\nmax_loss = {max(self.max_loss, SplitSettings().max_loss)}\n"

    def told(self) -> str:
        """For the screen."""
        told = f"Splits ({', '.join(self.names)}) send {self.bytes:.0f} bytes of an input of {self.whole_bytes}"
        if self.default:
            return f"{told}."
        return (
            f"{told}, for up to {100 * self.max_loss:.1f} points of the cloud's accuracy (95 %). This demo allows that "
            f"([split] max_loss); by default an agent allows {100 * SplitSettings().max_loss:g}."
        )


def part_ways(manifest: Manifest) -> PartWays | None:
    """None for a bundle without splits that lose little enough to be shown."""
    accuracy = manifest.cloud.accuracy
    splits = [split for split in splits_of(manifest) if most_lost(accuracy, split) <= MOST_LOST]
    if not splits:
        return None
    lost = max(most_lost(accuracy, split) for split in splits)
    whole = row_bytes(manifest.inputs)
    sent = sum(split.bytes for split in splits) / len(splits)
    return PartWays(tuple(split.name for split in splits), sent, whole, math.ceil(lost * 1000) / 1000)
