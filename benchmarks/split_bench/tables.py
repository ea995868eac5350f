"""The figures as Markdown, and the verdicts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from .grid import (
    CUT,
    KINDS,
    Cell,
    Energy,
    Setting,
    scenes,
    winners,
)
from .live import Run
from .published import Published
from .traces import Planning

# Device factors beside the one that was asked for: how much hangs on it.
FACTORS = (2.0, 8.0, 32.0)
# Of the grid, in the table of latencies; all of it is in the JSON.
SHOWN = ((0.5, 20.0), (2.0, 20.0), (10.0, 20.0), (100.0, 5.0), (2.0, 200.0), (100.0, 100.0))
MOST_PLAN_MS, MOST_HINDSIGHT = 1.0, 1.02


class Part(msgspec.Struct, frozen=True):
    """A pair of models, and all that was found of it."""

    setting: Setting
    cells: tuple[Cell, ...]
    published: tuple[Published, ...]
    planning: tuple[Planning, ...]


class Result(msgspec.Struct, frozen=True):
    """All that was measured. factor: how many times as long the device takes as this machine."""

    hardware: str
    date: str
    factor: float
    energy: Energy
    max_loss: float
    parts: tuple[Part, ...]
    live: tuple[Run, ...]
    live_failed: str


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def report(result: Result) -> str:
    """Everything."""
    energy = result.energy
    said = [
        f"Measured on: {result.hardware}; {result.date}. Device: {result.factor:g} times as slow. Energy: "
        f"{energy.watts:g} W busy, {energy.radio_watts:g} W sending, {1e6 * energy.joules_per_byte:.3g} µJ a byte."
    ]
    for part in result.parts:
        notes = "\n".join(f"- {note}" for note in part.setting.notes)
        said += [f"### {part.setting.name}", of_ways(part.setting), notes]
        said += [of_cells(part.cells), of_winners(part.setting, result.energy, result.max_loss)]
        said += [of_published(part.published)]
    said += [of_planning(result.parts), of_runs(result.live, result.live_failed)]
    return "\n\n".join(text for text in said if text)


def of_ways(setting: Setting) -> str:
    """What every way takes of this machine, but for cuts: the one with the fewest bytes stands for them."""
    cuts = setting.of(CUT)
    fewest = [min(cuts, key=lambda cut: cut.sent_bytes)] if cuts else []
    rows = []
    for option in [option for option in setting.options if option.kind != CUT] + fewest:
        share = "" if setting.share is None else _percent(option.deferred_accuracy)
        cells = f"{option.device_ms:.3f}", f"{option.cloud_ms:.3f}", f"{option.sent_bytes:,.0f}"
        name = f"{option.name} (fewest bytes of {len(cuts)})" if option.kind == CUT else option.name
        rows.append((option.kind, name, *cells, _percent(option.accuracy), share))
    header = ("kind", "way", "device ms", "cloud ms", "bytes", "accuracy", "with what is deferred")
    return table(header, rows)


def of_cells(cells: Sequence[Cell]) -> str:
    """ms of every row on some links, and which way that is; then mJ."""
    at = [cell for link in SHOWN for cell in cells if (cell.mbit, cell.rtt_ms) == link]
    links = [f"{cell.mbit:g} Mbit/s, {cell.rtt_ms:g} ms" for cell in at]
    latencies, energies = [], []
    for row in at[0].rows:
        found = [cell.rows[row] for cell in at if row in cell.rows]
        names = {each.name for each in found}
        named = [f"{each.latency_ms:.1f}{f' ({each.name})' if len(names) > 1 else ''}" for each in found]
        only = f" ({names.pop()})" if len(names) == 1 else ""
        latencies.append([row + only, *named])
        energies.append([row + only, *(f"{each.energy_mj:.1f}" for each in found)])
    return f"{table(['ms', *links], latencies)}\n\n{table(['mJ of the device', *links], energies)}"


def of_winners(setting: Setting, energy: Energy, max_loss: float) -> str:
    """On how many links each kind is the quickest, for devices of several speeds."""
    rows = []
    for scene in scenes(setting, max_loss):
        for factor in FACTORS:
            count = Counter(won.kind for won in winners(setting, scene, factor, energy).values())
            said = ", ".join(f"{kind} {count[kind]}" for kind in KINDS if count[kind]) or "nothing is offered"
            rows.append((scene.name, f"{factor:g}", said))
    return table(("who is compared", "device slower", "quickest on so many links"), rows)


def of_published(rows: Sequence[Published]) -> str:
    """Theirs beside ours."""
    header = ("source", "they say", "here", "comparable?")
    return table(header, [(each.source, each.theirs, each.ours, each.comparable) for each in rows])


def of_planning(parts: Sequence[Part]) -> str:
    """How quickly, and how near the best in hindsight."""
    rows = []
    for part in parts:
        for found in part.planning:
            near = f"{100 * (found.mean - 1):.2f} % (worst trace {100 * (found.worst - 1):.2f} %)"
            ways = f"{part.setting.name}: {found.choice}", str(found.ways)
            rows.append((*ways, f"{found.plan_ms:.3f}", f"{found.table_ms:.2f}", near))
    return table(("among", "ways", "ms a plan", "ms with its table", "above the best in hindsight"), rows)


def of_runs(runs: Sequence[Run], failed: str) -> str:
    """The sum beside what clients saw."""
    if not runs:
        return failed
    rows = [
        (
            run.way,
            f"{run.mbit:g} Mbit/s, {run.rtt_ms:g} ms",
            f"{run.expected_ms:.1f}",
            f"{run.measured_ms:.1f}",
            f"{run.ratio:.2f}",
            f"{run.expected_bytes:.0f}",
            f"{run.sent_bytes:.0f}, {run.answer_bytes:.0f}",
        )
        for run in runs
    ]
    made = table(
        ("way", "link", "by the sum, ms", "measured, ms", "ratio", "by the sum, bytes", "bytes there, and back"), rows
    )
    return f"{made}\n\n{failed}" if failed else made


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def verdicts(result: Result) -> dict[str, bool]:
    """The issue's figures that are measured here: plans among every way."""
    found: dict[str, bool] = {}
    for part in result.parts:
        plan, name = part.planning[0], part.setting.name
        found[f"{name}: a plan over {plan.ways} ways takes {plan.plan_ms:.3f} ms"] = plan.plan_ms <= MOST_PLAN_MS
        near = f"{name}: plans are {100 * (plan.mean - 1):.2f} % above the best in hindsight"
        found[near] = plan.mean <= MOST_HINDSIGHT
    return found
