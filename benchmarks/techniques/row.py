"""What every technique's benchmark prints: one or more rows of the table."""

from __future__ import annotations

from dataclasses import dataclass

from edgemux.compression.verdict import Figures


@dataclass(frozen=True, slots=True)
class Figure:
    """A form of a model: accuracy 0..1 on the test set, bytes as stored, ms of one input (None: no matter of speed)."""

    accuracy: float
    bytes: int
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One acceptance figure. number: the row of the survey's table; target: the figure that was set, in words.

    met: what the measurement says; note: what was compared, on what, and what limits it where it was missed.
    """

    number: int
    technique: str
    before: Figure
    after: Figure
    target: str
    measured: str
    met: bool
    note: str = ""
    seconds: float = 0.0


def figure(found: Figures, speed: float = 1.0, base_ms: float | None = None) -> Figure:
    """A row's figure from what ``compress`` measured; ms as the base's time over the speed measured in turns."""
    return Figure(found.accuracy, found.stored_bytes, (found.ms if base_ms is None else base_ms) / speed)
