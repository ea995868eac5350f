"""The figures as tables, and whether they are what was asked for."""

from __future__ import annotations

from collections.abc import Callable

from edgemux.compression.split import curve
from split_bench.measured import Result

LEAST_SAVED, MOST_LOST_POINTS, MOST_OF_JPEG = 0.30, 0.2, 0.5


def report(result: Result) -> str:
    """Markdown."""
    lines = [f"Measured on: {result.hardware}; epochs {result.epochs}", "", curve.table(result.points), ""]
    lines += ["| pair | bits | head KB | tail KB | head M MACs | tail M MACs | share | head ms | tail ms | whole ms |"]
    lines += ["|---" * 10 + "|"]
    for f in result.files:
        lines.append(
            f"| {f.pair} | {f.bits} | {f.head_bytes / 1e3:.0f} | {f.tail_bytes / 1e3:.0f} | {f.head_macs / 1e6:.2f} "
            f"| {f.tail_macs / 1e6:.1f} | {100 * f.tail_macs / result.whole_macs:.0f} % "
            f"| {f.head_ms:.3f} | {f.tail_ms:.3f} | {f.whole_ms:.3f} |"
        )
    lines += ["", "| deferred inputs of | n | level 4 | cloud | tail | points lost (95 %) | of all inputs | bytes |"]
    lines += ["|---" * 8 + "|"]
    for d in result.deferred:
        low, high = d.lost_interval
        lines.append(
            f"| {d.of} | {d.deferred} of {d.n} | {100 * d.level_accuracy:.2f} % | {100 * d.cloud_accuracy:.2f} % "
            f"| {100 * d.accuracy:.2f} % | {d.lost:.2f} ({low:.2f} to {high:.2f}) | {d.system_lost:.3f} "
            f"| {d.bytes:.0f} |"
        )
    lines += [
        "",
        "| split | bytes | smallest JPEG as accurate | share | of it without headers | smallest WebP | share |",
    ]
    lines += ["|---" * 7 + "|"]
    webp = dict(curve.shares(result.points, "webp"))
    for own, jpeg in curve.shares(result.points):
        bare = "" if jpeg is None else f"{100 * own.bytes / jpeg.bare:.0f} %"
        beside = f"{_named(webp[own])} | {_share(own, webp[own])}"
        name = f"{own.group}, {own.name} ({100 * own.accuracy:.2f} %)"
        lines.append(f"| {name} | {own.bytes:.0f} | {_named(jpeg)} | {_share(own, jpeg)} | {bare} | {beside} |")
    return "\n".join(lines)


def _named(found: curve.Point | None) -> str:
    return "none" if found is None else f"{found.name} ({found.bytes:.0f}, {100 * found.accuracy:.2f} %)"


def _share(own: curve.Point, found: curve.Point | None) -> str:
    return "" if found is None else f"{100 * own.bytes / found.bytes:.0f} %"


def judged(result: Result, say: Callable[[str], None]) -> bool:
    """The issue's figures, each said with its verdict."""
    least = min(f.tail_macs for f in result.files if f.pair == "continuation")
    saved = 1 - least / result.whole_macs
    own = [d for d in result.deferred if d.of.startswith("continuation") and d.of.endswith("test")]
    of_deferred, of_all = min(d.lost for d in own), min(d.system_lost for d in own)
    of_jpeg = [own.bytes / jpeg.bytes for own, jpeg in curve.shares(result.points) if jpeg is not None]
    verdicts = {
        f"continuation saves {100 * saved:.0f} % of the cloud's work": saved >= LEAST_SAVED,
        f"continuation loses {of_deferred:.2f} points of deferred inputs": of_deferred <= MOST_LOST_POINTS,
        f"continuation loses {of_all:.2f} points of all inputs": of_all <= MOST_LOST_POINTS,
        "bytes of a split as a share of the JPEG's": min(of_jpeg, default=1.0) <= MOST_OF_JPEG,
    }
    for what, met in verdicts.items():
        say(f"{'met' if met else 'MISSED'}: {what}")
    return all(verdicts.values())
