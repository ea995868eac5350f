"""Line plots as SVG text: axes, lines, dots, a legend. No script, no font, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 16, 48
# Colours that stay apart for most colour-blind readers (Okabe & Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MOST_POINTS = 240


@dataclass(frozen=True, slots=True)
class Line:
    """One series. style: "line", "dash" or "dots"."""

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    style: str = "line"


def plot(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """An SVG figure; axes span the data. ``lines`` needs at least one finite point."""
    shown = [_thin(line) for line in lines]
    x_low, x_high = _span([line.x for line in shown])
    y_low, y_high = _span([line.y for line in shown])

    def place(x: Any, y: Any) -> tuple[Any, Any]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return across, down

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    ]
    for tick in _ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    for number, line in enumerate(shown):
        parts += _drawn(line, number, *place(line.x, line.y))
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, number: int, x: NDArray[Any], y: NDArray[Any]) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    dash = ' stroke-dasharray="6 4"' if line.style == "dash" or number >= len(COLOURS) else ""
    at = TOP + 12 + 18 * number
    key = f'<text x="{WIDTH - RIGHT + 40}" y="{at + 4}">{escape(line.name)}</text>'
    if line.style == "dots":
        dots = "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in zip(x, y, strict=True)
        )
        return [dots, f'<circle cx="{WIDTH - RIGHT + 24}" cy="{at}" r="3.5" fill="{colour}"/>', key]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    stroke = f'fill="none" stroke="{colour}" stroke-width="2"{dash}'
    return [f'<path d="{path}" {stroke}/>', f'<path d="M{WIDTH - RIGHT + 12} {at}h24" {stroke}/>', key]


def _thin(line: Line) -> Line:
    """At most MOST_POINTS points, the first and the last among them."""
    keep = np.unique(np.linspace(0, len(line.x) - 1, min(len(line.x), MOST_POINTS)).astype(int))
    return Line(line.name, np.asarray(line.x)[keep], np.asarray(line.y)[keep], line.style)


def _span(values: Sequence[NDArray[Any]]) -> tuple[float, float]:
    everything = np.concatenate([np.asarray(value, np.float64) for value in values])
    low, high = float(everything.min()), float(everything.max())
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within the span, five or so."""
    raw = (high - low) / 5
    scale = 10.0 ** np.floor(np.log10(raw))
    step = float(scale * min(m for m in (1, 2, 5, 10) if m * scale >= raw))
    first = int(np.ceil(low / step))
    return [round(k * step, 12) for k in range(first, int(high // step) + 1)]
