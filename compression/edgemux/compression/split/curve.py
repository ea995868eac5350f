"""Bytes on the way against accuracy: what a split sends beside the input as a picture, as points, table and plot."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.certify import interval

# The forms of wire/payload.py, and coarser ones than anybody would choose, so that the curve has a low end.
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 3}),
    "webp-lossless": ("WEBP", {"lossless": True, "quality": 20, "method": 1}),
    **{f"jpeg-{quality}": ("JPEG", {"quality": quality}) for quality in (95, 85, 70, 50, 30, 10)},
    **{f"webp-{quality}": ("WEBP", {"quality": quality, "method": 1}) for quality in (85, 60, 30, 5)},
}
# What a BYTES tensor puts before each element.
LENGTH_BYTES = 4
_SCAN, _END_BYTES = b"\xff\xda", 2
_COLOURS = {"jpeg": "#dd6b20", "webp": "#38a169", "png": "#718096", "raw": "#a0aec0", "other": "#2b6cb0"}
_PALETTE = ("#2b6cb0", "#b83280", "#6b46c1", "#2c7a7b")


class Point(msgspec.Struct, frozen=True):
    """One form of n inputs. group: the points of a line. bytes: mean of an input, its length in a message included.

    bare: the same without what is alike in every picture (tables and sizes of a JPEG), which a codec made for one kind
    of picture would not send. changed: the share whose label differs from the whole's on the input itself.
    """

    group: str
    name: str
    bytes: float
    bare: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    changed: float
    n: int


def point(
    group: str,
    name: str,
    sizes: Sequence[int],
    labels: NDArray[np.int64],
    truth: NDArray[np.int64],
    whole: NDArray[np.int64],
    bare: Sequence[int] | None = None,
) -> Point:
    """sizes: bytes of each input. labels: what the cloud says of what came; whole: of the input itself, [n]."""
    right, count = int((labels == truth).sum()), len(truth)
    mean = LENGTH_BYTES + float(np.mean(sizes))
    least = mean if bare is None else LENGTH_BYTES + float(np.mean(bare))
    changed = float((labels != whole).mean())
    return Point(group, name, mean, least, right / count, interval(right, count), changed, count)


def pictured(images: NDArray[np.uint8], form: str) -> tuple[list[bytes], NDArray[np.uint8]]:
    """Grey images uint8 [n, h, w] as files of a form of PICTURES, and what is read from those."""
    from PIL import Image

    kind, how = PICTURES[form]
    files, read = [], []
    for image in images:
        written = io.BytesIO()
        Image.fromarray(image, "L").save(written, kind, **how)
        files.append(written.getvalue())
        read.append(np.asarray(Image.open(written).convert("L")))
    return files, np.stack(read)


def bare_bytes(file: bytes) -> int:
    """A JPEG without all that stands before its coded pixels; any other file as it is."""
    at = file.find(_SCAN)
    if not file.startswith(b"\xff\xd8") or at < 0:
        return len(file)
    header = int.from_bytes(file[at + 2 : at + 4], "big")
    return len(file) - (at + 2 + header) - _END_BYTES


def as_right(points: Sequence[Point], group: str, accuracy: float) -> Point | None:
    """The smallest of a group that is at least as accurate; None: none of it is."""
    able = [found for found in points if found.group == group and found.accuracy >= accuracy]
    return min(able, key=lambda found: found.bytes, default=None)


def shares(points: Sequence[Point], group: str = "jpeg") -> list[tuple[Point, Point | None]]:
    """Every point that is no picture, beside the smallest of ``group`` that is at least as accurate."""
    pictures = {"jpeg", "webp", "png", "raw"}
    return [(found, as_right(points, group, found.accuracy)) for found in points if found.group not in pictures]


def table(points: Sequence[Point]) -> str:
    """Markdown, by falling bytes."""
    lines = [
        "| what is sent | bytes | without fixed headers | accuracy (95 %) | label changed |",
        "|---|---|---|---|---|",
    ]
    for found in sorted(points, key=lambda each: -each.bytes):
        low, high = found.accuracy_interval
        name = found.name if found.name.startswith(found.group) else f"{found.group}, {found.name}"
        right = f"{100 * found.accuracy:.2f} % ({100 * low:.2f}–{100 * high:.2f})"
        lines.append(f"| {name} | {found.bytes:.0f} | {found.bare:.0f} | {right} | {100 * found.changed:.2f} % |")
    return "\n".join(lines)


def svg(points: Sequence[Point], title: str) -> str:
    """Accuracy over bytes, one line a group; least accuracy shown: that of the worst point."""
    width, height, left, top, right, bottom = 640, 360, 56, 34, 150, 46
    most = max(found.bytes for found in points) * 1.05
    low = min(found.accuracy for found in points)
    high = max(found.accuracy for found in points)
    low, high = low - 0.05 * (high - low or 0.1), high + 0.08 * (high - low or 0.1)

    def x(value: float) -> float:
        return left + (width - left - right) * value / most

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="18" font-size="13">{escape(title)}</text>',
        *_axes(x, y, most, low, high, (left, width - right, top, height - bottom)),
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">bytes of an input</text>',
    ]
    for number, group in enumerate(dict.fromkeys(found.group for found in points)):
        own = sorted((found for found in points if found.group == group), key=lambda each: each.bytes)
        colour = _COLOURS.get(group, _PALETTE[number % len(_PALETTE)])
        path = " ".join(f"{x(each.bytes):.1f},{y(each.accuracy):.1f}" for each in own)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for each in own:
            label = escape(f"{each.name}: {each.bytes:.0f} bytes, {100 * each.accuracy:.2f} %")
            circle = f'<circle cx="{x(each.bytes):.1f}" cy="{y(each.accuracy):.1f}" r="3.5" fill="{colour}">'
            parts.append(f"{circle}<title>{label}</title></circle>")
        down = top + 12 + 18 * number
        parts.append(f'<rect x="{width - right + 14}" y="{down - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 30}" y="{down}">{escape(group)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _axes(x: Any, y: Any, most: float, low: float, high: float, box: tuple[int, int, int, int]) -> list[str]:
    left, right, top, bottom = box
    parts = []
    for value in _ticks(0.0, most):
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:.0f}</text>')
    for share in _ticks(100 * low, 100 * high):
        at = y(share / 100)
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{share:.4g} %</text>')
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="#e2e8f0"/>')
    parts.append(f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#4a5568"/>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two, about five."""
    least = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= least)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [step * number for number in range(first, last + 1)]
