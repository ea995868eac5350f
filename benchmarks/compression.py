"""One table, a row a technique of the survey: before -> after accuracy, bytes, ms, ratio, and the verdict.

    python benchmarks/compression.py                      all rows on subsets; says how long each took
    python benchmarks/compression.py deep int8            only these
    python benchmarks/compression.py --quick              a smoke test: the figures mean little
    python benchmarks/compression.py --markdown FILE      the table for the docs

A finished row is kept in the user's cache, so that an interrupted run goes on where it stopped; --anew measures again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import time
from pathlib import Path

# Before torch is loaded: threads that wait do not spin, and rows do not depend on how many cores there are.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import msgspec
import torch

import techniques
from edgemux.compression.hardware import hardware
from edgemux.compression.recipe import digest
from techniques import reference
from techniques.row import Figure, Row

NOT_ROWS = {"row", "reference", "students"}


def main() -> int:
    """Print the table; 0 even when a figure is missed: a miss is a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TECHNIQUE", help=f"of {', '.join(names())}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(names()))
    if unknown:
        parser.error(f"no technique {unknown[0]!r}; there are {', '.join(names())}")
    torch.set_num_threads(1)
    found: list[Row] = []
    for name in chosen.names or names():
        rows = measured(name, chosen.quick, chosen.anew)
        for row in rows:
            print(line(row), flush=True)
        found += rows
    found.sort(key=lambda row: row.number)
    met = sum(row.met for row in found)
    seconds = sum(row.seconds for row in found)
    print(f"{met} of {len(found)} figures met; {seconds / 60:.0f} min on one core; {hardware()}")
    if chosen.markdown is not None:
        chosen.markdown.write_text(page(found, seconds))
    return 0


def names() -> list[str]:
    """Every technique that has a file."""
    return sorted(module.name for module in pkgutil.iter_modules(techniques.__path__) if module.name not in NOT_ROWS)


def measured(name: str, quick: bool, anew: bool) -> list[Row]:
    """The rows of a technique, from the cache if they were measured with the same sources."""
    sources = [
        path.read_text() for path in sorted(Path(techniques.__path__[0]).glob("*.py")) if path.stem in (name, *NOT_ROWS)
    ]
    kept = reference.cache() / "rows" / f"{name}-{digest(name, quick, sources)[:12]}.json"
    if kept.is_file() and not anew:
        return msgspec.json.decode(kept.read_bytes(), type=list[Row])
    start_s = time.monotonic()
    rows = importlib.import_module(f"techniques.{name}").rows(quick)
    share_s = (time.monotonic() - start_s) / max(1, len(rows))
    rows = [row if row.seconds else Row(**{**_fields(row), "seconds": share_s}) for row in rows]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(msgspec.json.encode(rows))
    return rows


def _fields(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__dataclass_fields__}


def line(row: Row) -> str:
    """One row for the terminal."""
    verdict = "met" if row.met else "MISSED"
    return (
        f"{row.number:>2} {row.technique:<38} {change(row.before, row.after):<64} "
        f"{verdict:<6} target {row.target}; measured {row.measured}"
    )


def change(before: Figure, after: Figure) -> str:
    """Accuracy, bytes and ms before -> after, with the ratios."""
    parts = [f"{100 * before.accuracy:.2f} → {100 * after.accuracy:.2f} %"]
    parts.append(f"{before.bytes:,} → {after.bytes:,} B ({before.bytes / max(1, after.bytes):.1f}×)")
    if before.ms is not None and after.ms is not None:
        parts.append(f"{before.ms:.3f} → {after.ms:.3f} ms ({before.ms / after.ms:.2f}×)")
    return ", ".join(parts)


def page(found: list[Row], seconds: float) -> str:
    """The table as Markdown."""
    head = [
        "# What each compression technique gives, measured",
        "",
        f"By `benchmarks/compression.py` on {hardware()}; {seconds / 60:.0f} minutes on one core. Accuracy is of",
        "Fashion-MNIST's test images where no other data is named; ms is CPU time of one input on one thread of",
        "ONNX Runtime.",
        "",
        "| # | technique | accuracy before → after | bytes | ms | target | measured | verdict |",
        "|--:|--|--|--|--|--|--|--|",
    ]
    return "\n".join([*head, *(cells(row) for row in found), "", *notes(found), ""])


def cells(row: Row) -> str:
    """One row of the Markdown table."""
    ms = "–"
    if row.before.ms is not None and row.after.ms is not None:
        ms = f"{row.before.ms:.3f} → {row.after.ms:.3f} ({row.before.ms / row.after.ms:.2f}×)"
    size = f"{row.before.bytes:,} → {row.after.bytes:,} ({row.before.bytes / max(1, row.after.bytes):.1f}×)"
    accuracy = f"{100 * row.before.accuracy:.2f} → {100 * row.after.accuracy:.2f}"
    verdict = "met" if row.met else "**missed**"
    return (
        f"| {row.number} | {row.technique} | {accuracy} | {size} | {ms} | {row.target} | {row.measured} | {verdict} |"
    )


def notes(found: list[Row]) -> list[str]:
    """What was compared, and what limits it where it was missed."""
    return [f"- **{row.number} {row.technique}**: {row.note}" for row in found if row.note]


if __name__ == "__main__":
    sys.exit(main())
