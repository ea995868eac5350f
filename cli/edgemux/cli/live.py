"""What the demo shows while it runs: a live table on a terminal, a line per phase elsewhere, nothing for machines."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from edgemux.cli.phases import Phase
from edgemux.cli.report import percentiles
from edgemux.cli.traffic import Outcome


class Watch(Protocol):
    """Told about a run as it goes."""

    def say(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """What whoever watches should know."""

    def begin(self, phase: Phase, count: int, outcomes: list[Outcome]) -> None:
        """A phase of ``count`` requests begins; ``outcomes`` fills up as they are answered."""

    def end(self) -> None:
        """The phase has ended."""

    def close(self) -> None:
        """The run has ended."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def begin(self, phase: Phase, count: int, outcomes: list[Outcome]) -> None: ...
    def end(self) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One line when something begins, one when a phase ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._row: Row | None = None

    def say(self, text: str) -> None:
        self._console.print(f"{text} ...", highlight=False)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, phase: Phase, count: int, outcomes: list[Outcome]) -> None:
        self._row = Row(phase, count, outcomes)

    def end(self) -> None:
        assert self._row is not None
        named = zip(COLUMNS[1:], self._row.cells()[1:], strict=True)
        text = "  ".join(f"{name} {cell}" for name, cell in named)
        self._console.print(f"{self._row.phase.title}: {text}", highlight=False, soft_wrap=True)

    def close(self) -> None: ...


COLUMNS = ("phase", "answered", "edge", "cloud", "split", "p50 ms", "p99 ms", "late", "errors", "mostly because")


class Row:
    """One phase of the live table."""

    def __init__(self, phase: Phase, count: int, outcomes: list[Outcome]) -> None:
        self.phase = phase
        self._count = count
        self._outcomes = outcomes

    def cells(self) -> list[str]:
        """What stands in COLUMNS now."""
        seen = list(self._outcomes)
        answered = [outcome for outcome in seen if outcome.label is not None]
        routes = Counter(outcome.route for outcome in answered)
        reasons = Counter(outcome.reason for outcome in answered).most_common(3)
        taken = percentiles([outcome.elapsed_s for outcome in answered])
        return [
            self.phase.title,
            f"{len(answered)}/{self._count}",
            str(routes["edge"]),
            str(routes["cloud"]),
            str(routes["split"]),
            number(taken.p50),
            number(taken.p99),
            str(sum(outcome.late for outcome in seen)),
            str(len(seen) - len(answered)),
            ", ".join(f"{reason} {count}" for reason, count in reasons),
        ]


class LiveTable:
    """A table that fills up on the terminal."""

    def __init__(self, console: Console) -> None:
        self._doing = ""
        self._rows: list[Row] = []
        # Drawn by a thread of its own: the traffic's event loop is not held up by more than a moment.
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        self._doing = f"{text} ..."

    def note(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, phase: Phase, count: int, outcomes: list[Outcome]) -> None:
        self._doing = phase.title
        self._rows.append(Row(phase, count, outcomes))

    def end(self) -> None: ...

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Table:
        table = Table(title="edgemux demo", caption=self._doing, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for column in COLUMNS[:-1]:
            table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
        table.add_column(COLUMNS[-1])
        for row in list(self._rows):
            table.add_row(*row.cells())
        return table


def number(value: float | None) -> str:
    """A time in ms for a table."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
