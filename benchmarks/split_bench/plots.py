"""Which way wins where, and latency over bandwidth, as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .grid import (
    BEST_CUT,
    BOTTLENECK,
    CONTINUATION,
    CUT,
    DEFER_SPLIT,
    DEFER_WHOLE,
    JPEG,
    LEVEL,
    LOSSLESS,
    MBITS,
    RAW,
    RTTS_MS,
    WEBP,
    WHOLE_HERE,
    Cell,
    Link,
    Taken,
)

COLOURS = {
    LEVEL: "#a0aec0",
    WHOLE_HERE: "#cbd5e0",
    RAW: "#fbd38d",
    LOSSLESS: "#f6e05e",
    JPEG: "#f6ad55",
    WEBP: "#9ae6b4",
    CUT: "#fc8181",
    BOTTLENECK: "#d6bcfa",
    CONTINUATION: "#90cdf4",
}
# Of lines; dashed where the device has answered before.
LINES = {
    LEVEL: ("#4a5568", ""),
    WHOLE_HERE: ("#a0aec0", ""),
    RAW: ("#b7791f", ""),
    JPEG: ("#dd6b20", ""),
    WEBP: ("#2f855a", ""),
    BEST_CUT: ("#c53030", ""),
    BOTTLENECK: ("#6b46c1", ""),
    DEFER_WHOLE: ("#2f855a", "5 3"),
    DEFER_SPLIT: ("#2b6cb0", "5 3"),
}
CELL_W, CELL_H, LEFT, COLUMNS = 52, 30, 52, 2
Panel = tuple[str, Mapping[Link, Taken]]


def grid_map(title: str, panels: Sequence[Panel]) -> str:
    """Two panels a row: bandwidth to the right, round trip downwards, each cell with who wins and its ms."""
    wide, high = LEFT + len(MBITS) * CELL_W + 66, 62 + len(RTTS_MS) * CELL_H
    height = 30 + max(high * math.ceil(len(panels) / COLUMNS), 20 * len(COLOURS) + 30)
    parts = _opened(COLUMNS * wide + 190, height, title)
    for number, (name, winners) in enumerate(panels):
        parts += _panel(wide * (number % COLUMNS), 30 + high * (number // COLUMNS), name, winners)
    seen = {won.kind for _, winners in panels for won in winners.values()}
    for number, kind in enumerate(kind for kind in COLOURS if kind in seen):
        x, y = COLUMNS * wide + 4, 84 + 20 * number
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{escape(kind)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, top: float, name: str, winners: Mapping[Link, Taken]) -> list[str]:
    left += LEFT
    parts = [f'<text x="{left}" y="{top + 14}" font-weight="bold">{escape(name)}</text>']
    for column, mbit in enumerate(MBITS):
        at = left + (column + 0.5) * CELL_W
        parts.append(f'<text x="{at}" y="{top + 32}" text-anchor="middle">{mbit:g}</text>')
    parts.append(f'<text x="{left + len(MBITS) * CELL_W + 6}" y="{top + 32}">Mbit/s</text>')
    for row, rtt_ms in enumerate(RTTS_MS):
        y = top + 38 + row * CELL_H
        parts.append(f'<text x="{left - 6}" y="{y + 19}" text-anchor="end">{rtt_ms:g} ms</text>')
        for column, mbit in enumerate(MBITS):
            parts += _cell(left + column * CELL_W, y, winners.get(Link(mbit, rtt_ms)))
    return parts


def _cell(x: float, y: float, won: Taken | None) -> list[str]:
    colour = "#ffffff" if won is None else COLOURS[won.kind]
    box = f'<rect x="{x}" y="{y}" width="{CELL_W - 2}" height="{CELL_H - 2}" fill="{colour}">'
    if won is None:
        return [f"{box}</rect>"]
    said = escape(f"{won.kind}, {won.name}: {won.latency_ms:.1f} ms, {won.sent_bytes:.0f} bytes")
    middle = x + (CELL_W - 2) / 2
    return [
        f"{box}<title>{said}</title></rect>",
        f'<text x="{middle}" y="{y + 18}" text-anchor="middle" font-size="10">{_short(won.latency_ms)}</text>',
    ]


def _short(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}"


def latency_lines(title: str, cells: Sequence[Cell], rtt_ms: float) -> str:
    """Latency over bandwidth at one round trip, both axes logarithmic, a line for each row that the cells have."""
    at = sorted((cell for cell in cells if cell.rtt_ms == rtt_ms), key=lambda cell: cell.mbit)
    rows = [row for row in LINES if all(row in cell.rows for cell in at)]
    values = [cell.rows[row].latency_ms for cell in at for row in rows]
    width, height, left, top, right, bottom = 720, 380, 64, 40, 240, 46
    low, high = _decades(min(values), max(values))

    def x(mbit: float) -> float:
        share = math.log(mbit / MBITS[0]) / math.log(MBITS[-1] / MBITS[0])
        return left + (width - left - right) * share

    def y(ms: float) -> float:
        return height - bottom - (height - top - bottom) * (math.log10(ms) - low) / (high - low)

    parts = _opened(width, height, title)
    for mbit in MBITS:
        parts.append(f'<text x="{x(mbit):.1f}" y="{height - bottom + 16}" text-anchor="middle">{mbit:g}</text>')
    for ms in _marks(low, high):
        parts.append(f'<text x="{left - 6}" y="{y(ms) + 4:.1f}" text-anchor="end">{ms:g} ms</text>')
        parts.append(f'<path d="M{left} {y(ms):.1f}H{width - right}" stroke="#e2e8f0"/>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">Mbit/s</text>')
    for number, row in enumerate(rows):
        colour, dashes = LINES[row]
        points = " ".join(f"{x(cell.mbit):.1f},{y(cell.rows[row].latency_ms):.1f}" for cell in at)
        drawn = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}" fill="none"'
        parts.append(f'<polyline points="{points}" {drawn}><title>{escape(row)}</title></polyline>')
        down = top + 12 + 20 * number
        parts.append(f'<path d="M{width - right + 12} {down - 4}h22" {drawn}/>')
        parts.append(f'<text x="{width - right + 40}" y="{down}">{escape(row)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _decades(low: float, high: float) -> tuple[float, float]:
    return math.log10(low) - 0.05, math.log10(high) + 0.05


def _marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, as far as they are between."""
    marks = [times * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for times in (1, 2, 5)]
    return [mark for mark in marks if low <= math.log10(mark) <= high]


def _opened(width: int, height: int, title: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="12" y="20" font-size="13">{escape(title)}</text>',
    ]
