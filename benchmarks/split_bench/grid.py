"""Ways to answer an input over a grid of links: latency, energy, bytes, accuracy, and which way is the best. Pure.

Latencies are the planner's own (multiplexer/planner.py); so are the bytes. Energy is a proxy, see ``Energy``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.planner import Conditions, Planner, Price, Table, Way

MBITS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
RTTS_MS = (5.0, 20.0, 50.0, 100.0, 200.0)

# What a way is, in the order of tables.
LEVEL, WHOLE_HERE = "device only", "cloud's model on the device"
RAW, LOSSLESS, JPEG, WEBP = "raw input", "lossless picture", "JPEG", "WebP"
CUT, BOTTLENECK, CONTINUATION = "cut with work on both sides", "bottleneck", "continuation"
KINDS = (LEVEL, WHOLE_HERE, RAW, LOSSLESS, JPEG, WEBP, CUT, BOTTLENECK, CONTINUATION)
WHOLE_FORMS = (RAW, LOSSLESS, JPEG, WEBP)
SPLITS = (BOTTLENECK, CONTINUATION)
# Neurosurgeon chooses among every cut, nothing in the cloud, and everything in the cloud.
NEUROSURGEON = (WHOLE_HERE, RAW, CUT)


# What an answer takes on the link, its overheads included, as was counted between agent and cloud.
ANSWER_BYTES = 400.0


class Link(msgspec.Struct, frozen=True):
    """A point of the grid."""

    mbit: float
    rtt_ms: float

    @property
    def conditions(self) -> Conditions:
        """For the planner."""
        return Conditions(self.rtt_ms / 1000, self.mbit * 1e6 / 8)


GRID = tuple(Link(mbit, rtt_ms) for rtt_ms in RTTS_MS for mbit in MBITS)


class Option(msgspec.Struct, frozen=True):
    """A way and what it is worth. Times of this machine.

    after_ms: device time when the last level has answered already, None where that is no way then. accuracy: over all
    inputs. deferred_accuracy: of device and cloud together, where only what the last level defers is answered like
    this. Both None where they are not known.
    """

    kind: str
    name: str
    device_ms: float
    cloud_ms: float = 0.0
    sent_bytes: float = 0.0
    accuracy: float | None = None
    after_ms: float | None = None
    deferred_accuracy: float | None = None

    def way(self, factor: float) -> Way:
        """On a device that takes ``factor`` times as long as this machine."""
        return self._way(self.device_ms, factor)

    def after(self, factor: float) -> Way:
        """The same once the last level has answered: what is there is not computed again."""
        if self.after_ms is None:
            raise ValueError(f"{self.name}: no way to go on after the device")
        return self._way(self.after_ms, factor)

    def _way(self, device_ms: float, factor: float) -> Way:
        device_s = factor * device_ms / 1000
        if self.kind in (LEVEL, WHOLE_HERE):
            return Way(self.name, Placement.EDGE, device_s)
        place = Placement.CLOUD if self.kind in WHOLE_FORMS else Placement.SPLIT
        return Way(self.name, place, device_s, self.cloud_ms / 1000, self.sent_bytes, ANSWER_BYTES)


class Energy(msgspec.Struct, frozen=True):
    """J = watts * busy seconds + radio_watts * sending seconds + joules_per_byte * bytes: a proxy, nothing is metered.

    watts: what a busy core adds, the agent's own default (about a Raspberry Pi 4's). The radio's two are the
    uplink of Wi-Fi as Huang et al. measured it (MobiSys 2012, 283.17 mW per Mbit/s and 132.86 mW); for LTE they found
    438.39 and 1288.04. What a radio takes after it has sent, and while it waits for the answer, is not counted.
    """

    watts: float = 1.0
    radio_watts: float = 0.13286
    joules_per_byte: float = 8 * 283.17e-9


LTE = Energy(radio_watts=1.28804, joules_per_byte=8 * 438.39e-9)


class Taken(msgspec.Struct, frozen=True):
    """What an input takes in some way over a link."""

    kind: str
    name: str
    latency_ms: float
    energy_mj: float
    sent_bytes: float
    cloud_ms: float
    accuracy: float | None


class Cell(msgspec.Struct, frozen=True):
    """A link, and what is taken there: by row of the table."""

    mbit: float
    rtt_ms: float
    rows: dict[str, Taken]


class Setting(msgspec.Struct, frozen=True):
    """A device's model and a cloud's, and every way to use them.

    share: of inputs, what the last level defers; None where there is no such gate. level_ms: of the device's model.
    """

    name: str
    cloud: str
    options: tuple[Option, ...]
    level_ms: float
    cloud_ms: float
    cloud_accuracy: float | None
    level_accuracy: float | None
    n: int
    share: float | None = None
    notes: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[Option]:
        """In the order of ``options``."""
        return [option for option in self.options if option.kind in kinds]

    def within(self, options: Iterable[Option], max_loss: float | None, deferred: bool = False) -> list[Option]:
        """Those that lose at most so much of the cloud's accuracy, over all inputs; None: any. What is not known loses
        nothing where it cannot (the same model of the same pixels), else it is taken to lose too much.
        """
        if max_loss is None:
            return list(options)
        return [option for option in options if self._lost(option, deferred) <= max_loss + 1e-9]

    def _lost(self, option: Option, deferred: bool) -> float:
        if option.kind in (WHOLE_HERE, RAW, LOSSLESS, CUT):
            return 0.0
        best = self._deferring_whole() if deferred else self.cloud_accuracy
        own = option.deferred_accuracy if deferred else option.accuracy
        return 1.0 if best is None or own is None else best - own

    def _deferring_whole(self) -> float | None:
        return next((option.deferred_accuracy for option in self.of(RAW)), None)


def taken(option: Option, way: Way, link: Link, energy: Energy, accuracy: float | None = None) -> Taken:
    """By the planner's sum. accuracy: instead of the option's."""
    table = Table([way], Price(watts=energy.watts, joules_per_byte=energy.joules_per_byte))
    (expected,) = table.expected(link.conditions)
    sending_s = option.sent_bytes / link.conditions.bytes_per_s
    joules = expected.energy_j + energy.radio_watts * sending_s
    return Taken(
        option.kind,
        option.name,
        1e3 * expected.latency_s,
        1e3 * joules,
        option.sent_bytes,
        option.cloud_ms,
        option.accuracy if accuracy is None else accuracy,
    )


Measure = Callable[[Taken], float]


def latency(each: Taken) -> float:
    """ms."""
    return each.latency_ms


def energy_of(each: Taken) -> float:
    """mJ."""
    return each.energy_mj


def best(options: Sequence[Option], link: Link, factor: float, energy: Energy, by: Measure = latency) -> Taken | None:
    """Exhaustively, from nothing but the input; None without options."""
    return min((taken(option, option.way(factor), link, energy) for option in options), key=by, default=None)


def best_after(options: Sequence[Option], link: Link, factor: float, energy: Energy) -> Taken | None:
    """The same for a deferred input whose last level has answered."""
    able = [option for option in options if option.after_ms is not None]
    every = (taken(option, option.after(factor), link, energy, option.deferred_accuracy) for option in able)
    return min(every, key=latency, default=None)


def planned(ways: Sequence[Way], link: Link) -> str:
    """The name of the planner's choice, from scratch."""
    return Planner(Table(ways)).plan(link.conditions).name


def cells(setting: Setting, factor: float, energy: Energy, max_loss: float) -> list[Cell]:
    """Every row over the whole grid: of each kind the quickest that loses little enough, or, where none does, the
    quickest of all; then Neurosurgeon's choice, the planner's, and what deferring takes beside the last level.
    """
    return [Cell(link.mbit, link.rtt_ms, _rows(setting, link, factor, energy, max_loss)) for link in GRID]


BEST_CUT, LEAST_ENERGY_CUT = "Neurosurgeon's best cut", "Neurosurgeon's, for energy"
PLANNED, PLANNED_ANY = "the planner's choice", "the planner's choice, any loss"
DEFER_WHOLE, DEFER_SPLIT = "after the device: whole input", "after the device: continuation"


def _rows(setting: Setting, link: Link, factor: float, energy: Energy, max_loss: float) -> dict[str, Taken]:
    found: dict[str, Taken | None] = {}
    for kind in KINDS:
        if kind != CONTINUATION:
            of_kind = setting.of(kind)
            found[kind] = best(setting.within(of_kind, max_loss) or of_kind, link, factor, energy)
    found[BEST_CUT] = best(setting.of(*NEUROSURGEON), link, factor, energy)
    found[LEAST_ENERGY_CUT] = best(setting.of(*NEUROSURGEON), link, factor, energy, energy_of)
    offered = setting.within(setting.of(*WHOLE_FORMS, *SPLITS), max_loss)
    found[PLANNED] = _planned(offered, link, factor, energy)
    found[PLANNED_ANY] = _planned(setting.of(*WHOLE_FORMS, *SPLITS), link, factor, energy)
    whole = [] if setting.share is None else setting.within(setting.of(*WHOLE_FORMS), max_loss, deferred=True)
    found[DEFER_WHOLE] = best_after(whole, link, factor, energy)
    going_on = setting.of(CONTINUATION)
    found[DEFER_SPLIT] = best_after(setting.within(going_on, max_loss, True) or going_on, link, factor, energy)
    return {row: each for row, each in found.items() if each is not None}


def _planned(offered: Sequence[Option], link: Link, factor: float, energy: Energy) -> Taken | None:
    chosen = planned([option.way(factor) for option in offered], link)
    return best([option for option in offered if option.name == chosen], link, factor, energy)


class Scene(msgspec.Struct, frozen=True):
    """Who is compared, and how much may be lost: of all inputs, or of device and cloud together."""

    name: str
    kinds: tuple[str, ...]
    max_loss: float | None
    after: bool = False


def scenes(setting: Setting, max_loss: float) -> tuple[Scene, ...]:
    """Anything: if the device had the cloud's model too. The others: what the agent chooses between."""
    points = f"at most {100 * max_loss:g} {'point' if max_loss == 0.01 else 'points'} lost"
    agent = (*WHOLE_FORMS, *SPLITS)
    found = (
        Scene(f"anything, {points}", KINDS, max_loss),
        Scene("anything but the small model, any loss", KINDS[1:], None),
        Scene(f"whole input or split, {points}", agent, max_loss),
        Scene("whole input or split, any loss", agent, None),
        Scene(f"after the device has answered, {points}", agent, max_loss, after=True),
        Scene("after the device has answered, any loss", agent, None, after=True),
    )
    return tuple(scene for scene in found if not scene.after or setting.share is not None)


def winners(setting: Setting, scene: Scene, factor: float, energy: Energy) -> dict[Link, Taken]:
    """The quickest way of a scene, by link; links without any are left out."""
    offered = setting.within(setting.of(*scene.kinds), scene.max_loss, scene.after)
    search = best_after if scene.after else best
    found = {link: search(offered, link, factor, energy) for link in GRID}
    return {link: each for link, each in found.items() if each is not None}


def ratios(over: Iterable[Cell], row: str, beside: str, by: Measure) -> tuple[float, float]:
    """How many times as much ``beside`` takes as ``row``: mean and largest over the cells. ValueError without any."""
    found = [by(cell.rows[beside]) / by(cell.rows[row]) for cell in over if row in cell.rows and beside in cell.rows]
    if not found:
        raise ValueError(f"no cell has both {row} and {beside}")
    return sum(found) / len(found), max(found)


def saved(over: Iterable[Cell], row: str, beside: str, by: Measure) -> tuple[float, float]:
    """What ``row`` takes less than ``beside``, as a share of it: mean and largest over the cells."""
    shares = [1 - by(cell.rows[row]) / by(cell.rows[beside]) for cell in over if {row, beside} <= set(cell.rows)]
    if not shares:
        raise ValueError(f"no cell has both {row} and {beside}")
    return sum(shares) / len(shares), max(shares)
