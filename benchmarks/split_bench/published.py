"""What others have published, beside ours: each with its source, and with what can be compared and what cannot."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .grid import (
    BEST_CUT,
    BOTTLENECK,
    CONTINUATION,
    CUT,
    JPEG,
    LEAST_ENERGY_CUT,
    PLANNED,
    PLANNED_ANY,
    RAW,
    WEBP,
    Cell,
    Option,
    Setting,
    energy_of,
    latency,
    ratios,
    saved,
)


class Published(msgspec.Struct, frozen=True):
    """One row."""

    source: str
    theirs: str
    ours: str
    comparable: str


def beside(setting: Setting, cells: list[Cell], factor: float) -> list[Published]:
    """Every row for which there is something of ours."""
    return [row for make in (_neurosurgeon, _energy, _spinn, _franken, _sc2) if (row := make(setting, cells, factor))]


def _neurosurgeon(setting: Setting, cells: list[Cell], factor: float) -> Published:
    cut, most = ratios(cells, BEST_CUT, RAW, latency)
    plan, plan_most = ratios(cells, PLANNED, RAW, latency)
    free, free_most = ratios(cells, PLANNED_ANY, RAW, latency)
    ends = sum(cell.rows[BEST_CUT].kind != CUT for cell in cells)
    ours = (
        f"best cut {cut:.2f}× (up to {most:.1f}×), the planner's choice {plan:.2f}× (up to {plan_most:.1f}×), "
        f"at any loss {free:.2f}× (up to {free_most:.1f}×); "
        f"on {ends} of {len(cells)} links the best cut is none: all here or all there"
    )
    return Published(
        "Neurosurgeon (Kang et al., ASPLOS 2017)",
        "latency 3.1× lower than cloud-only on average, up to 40.7×",
        ours,
        "the method is the same; models, a phone's GPU and a server's are not: here one CPU, "
        f"the device {factor:g} times as slow",
    )


def _energy(setting: Setting, cells: list[Cell], factor: float) -> Published:
    cut, most = saved(cells, LEAST_ENERGY_CUT, RAW, energy_of)
    plan, _ = saved(cells, PLANNED, RAW, energy_of)
    free, _ = saved(cells, PLANNED_ANY, RAW, energy_of)
    return Published(
        "Neurosurgeon",
        "mobile energy 59.5 % less on average, up to 94.7 %",
        f"best cut for energy {_less(cut)} (up to {_less(most)}); "
        f"the planner's choice, made for latency, {_less(plan)}, at any loss {_less(free)}",
        "no: theirs is metered on a phone, ours a proxy",
    )


def _spinn(setting: Setting, cells: list[Cell], factor: float) -> Published | None:
    going_on = setting.of(CONTINUATION)
    if setting.share is None or not going_on:
        return None
    tail_ms = min(option.cloud_ms for option in going_on)
    cost = setting.cloud_ms / (setting.share * tail_ms) if setting.share else float("inf")
    whole = 1 / setting.share if setting.share else float("inf")
    return Published(
        "SPINN (Laskaridis et al., MobiCom 2020)",
        "up to 2× the throughput of others that split, up to 6.8× less server cost",
        f"cloud time an input {cost:.1f}× less than cloud-only where the continuation ends what the device defers "
        f"({100 * setting.share:.1f} %); {whole:.1f}× of that is deferring",
        "partly: early exits there, levels and a gate here, and our accuracy is below cloud-only's; "
        "throughput was not compared",
    )


def _franken(setting: Setting, cells: list[Cell], factor: float) -> Published | None:
    kinds = [each for kind in (BOTTLENECK, CONTINUATION) if (each := setting.of(kind))]
    splits = [min(each, key=lambda option: option.sent_bytes) for each in kinds]
    said = [text for option in splits if (text := _beside_pictures(setting, option))]
    if not said:
        return None
    return Published(
        "FrankenSplit (Furutanpey et al., IEEE TMC 2024)",
        "60 % fewer bits than another split method as accurate; up to 16× quicker than codecs",
        "; ".join(said),
        "no: ImageNet there, pictures of 28 × 28 here, where a JPEG is mostly headers",
    )


def _beside_pictures(setting: Setting, option: Option) -> str:
    shares = []
    for kind in (JPEG, WEBP):
        able = [each for each in setting.of(kind) if (each.accuracy or 0) >= (option.accuracy or 0)]
        if able:
            least = min(able, key=lambda each: each.sent_bytes)
            shares.append(f"{100 * option.sent_bytes / least.sent_bytes:.0f} % of {least.name}'s bytes")
    return f"{option.name}: {' and '.join(shares)}, its message included" if shares else ""


def _sc2(setting: Setting, cells: list[Cell], factor: float) -> Published:
    def beaten(by: Callable[[Cell], bool]) -> str:
        return f"{sum(map(by, cells))} of {len(cells)}"

    def picture_wins(cell: Cell) -> bool:
        pictures = [cell.rows[row].latency_ms for row in (JPEG, WEBP, "lossless picture") if row in cell.rows]
        return bool(pictures) and min(pictures) <= cell.rows[CUT].latency_ms

    return Published(
        "SC2 (Matsubara et al., TMLR 2023)",
        "splits often do worse than the plain way: compress the input, compute in the cloud",
        f"a picture of the input is quicker than any cut with work on both sides on {beaten(picture_wins)} links",
        "in what was found, not in figures",
    )


def _less(share: float) -> str:
    return "0 %" if abs(share) < 0.005 else f"−{100 * share:.0f} %" if share > 0 else f"+{-100 * share:.0f} %"
