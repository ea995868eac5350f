"""What the suite found: one line a row, as a table on the screen, in markdown and in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

COUNTS = ("requests", "lost", "doubled", "late", "wrong", "refused")
HEADS = ("row", "fault", *COUNTS, "p99 ms", "open +ms", "recovery s", "note")


class Found(msgspec.Struct, omit_defaults=True):
    """One row. p99_ms: of all its requests, fault and repair included. recovery_s: from repair to a cloud answer.
    open_ms: by how much the p99 of requests that the breaker kept from the cloud exceeds that of the device's own.

    None where the row has no such thing.
    """

    row: int
    fault: str
    requests: int
    lost: int = 0
    doubled: int = 0
    late: int = 0
    wrong: int = 0
    refused: int = 0
    p99_ms: float | None = None
    recovery_s: float | None = None
    note: str = ""
    open_ms: float | None = None

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of HEADS."""
        p99 = "" if self.p99_ms is None else f"{self.p99_ms:.1f}"
        over = "" if self.open_ms is None else f"{self.open_ms:+.1f}"
        recovery = "" if self.recovery_s is None else f"{self.recovery_s:.2f}"
        counts = (self.requests, self.lost, self.doubled, self.late, self.wrong, self.refused)
        return (str(self.row), self.fault, *map(str, counts), p99, over, recovery, self.note)


def total(found: Sequence[Found]) -> Found:
    """All rows together: sums, and the worst of the times."""
    sums = {name: sum(getattr(row, name) for row in found) for name in COUNTS}
    p99 = max((row.p99_ms for row in found if row.p99_ms is not None), default=None)
    recovery = max((row.recovery_s for row in found if row.recovery_s is not None), default=None)
    return Found(
        len({row.row for row in found}), "rows in all; the worst times", p99_ms=p99, recovery_s=recovery, **sums
    )


def lines(found: Sequence[Found]) -> list[str]:
    """The table, padded."""
    rows = [HEADS, *(row.cells() for row in ordered(found)), total(found).cells()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    left = (1, len(HEADS) - 1)
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(found: Sequence[Found]) -> str:
    """The table for a page."""
    rows = [HEADS, tuple("---" for _ in HEADS), *(row.cells() for row in ordered(found)), total(found).cells()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def ordered(found: Sequence[Found]) -> list[Found]:
    """By number, then by name."""
    return sorted(found, key=lambda row: (row.row, row.fault))


def write(found: Sequence[Found], prefix: Path) -> None:
    """PREFIX.json and PREFIX.md. What an earlier run found about other rows stays in the former."""
    path = prefix.with_suffix(".json")
    kept = (
        {(row.row, row.fault): row for row in msgspec.json.decode(path.read_bytes(), type=list[Found])}
        if (path.exists())
        else {}
    )
    kept |= {(row.row, row.fault): row for row in found}
    all_rows = ordered(list(kept.values()))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(all_rows)) + b"\n")
    prefix.with_suffix(".md").write_text(markdown(all_rows))
