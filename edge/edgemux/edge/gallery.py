"""The last inputs and what became of them, for whoever looks at the live page; nothing is kept while nobody does."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.edge.sample import Sample
from edgemux.multiplexer.domain import Prediction, Reason
from edgemux.wire.process import Listen
from edgemux.wire.security import is_loopback

# How many inputs are kept, and for how long after somebody has last looked.
MOST = 30
LOOKED_S = 10.0
# Of the times that answers took, over so many seconds, and of no more answers than this.
TIMES_S = 10.0
MOST_TIMES = 4096
# Pixels that a picture has at most, each way; twice that is kept until somebody asks, and then averaged.
SIDE = 64
# Values in a line that stands for what is no picture, and lines at most.
POINTS = 64
LINES = 3
# A picture has at least so many pixels each way; what has fewer is numbers.
LEAST_SIDE = 8
LEAST_SIDE_OF_NUMBERS = 16


class PageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live page. inputs: whether it shows the last inputs with pictures of them, their rows only, or none;
    "auto": pictures where nobody but this machine, a token or a client's certificate opens the page, else rows.
    """

    inputs: Literal["auto", "pictures", "rows", "none"] = "auto"

    def shown(self, listen: Listen) -> Literal["pictures", "rows", "none"]:
        """What is shown of inputs by a server that listens so."""
        if self.inputs != "auto":
            return self.inputs
        guarded = is_loopback(listen.host) or listen.token_file is not None or listen.tls.client_ca is not None
        return "pictures" if guarded else "rows"


class Picture(msgspec.Struct, frozen=True):
    """What a tensor looks like: ``kind`` "gray" or "rgb", rows of pixels, or "lines", one row of values each.

    data: base64 of UINT8 [height, width], with 3 values a pixel of rgb.
    """

    kind: Literal["gray", "rgb", "lines"]
    width: int
    height: int
    data: str


class Entry(msgspec.Struct, frozen=True):
    """One input: what was said about it, why, and how sure everybody was. ``time_s``: wall clock.

    label: the class, None for an input that was refused. route and variant: empty for none. device_before,
    cloud_before: the pre-gate's P(correct) of the device's level and of the cloud. after: that of the answer given.
    device_label, device_sure: what the device's model had said, where the cloud has answered after it.
    """

    number: int
    time_s: float
    model: str
    label: str | None
    route: str
    variant: str
    level: int
    reason: str
    degraded: bool
    device_before: float
    cloud_before: float
    after: float | None
    device_label: str | None
    device_sure: float | None
    elapsed_ms: float
    picture: Picture | None


class Gallery:
    """Kept by one event loop. ``open`` says whether somebody looks: only then is there anything to add."""

    def __init__(
        self,
        shown: Literal["pictures", "rows", "none"],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.open = False
        self._shown = shown
        self._clock = clock
        self._wall = wall
        self._entries: deque[tuple[Entry, NDArray[Any] | None]] = deque(maxlen=MOST)
        self._times: deque[tuple[float, str, str, float]] = deque(maxlen=MOST_TIMES)
        self._number = 0
        self._closing: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Somebody looks: what comes in is kept from now on, until LOOKED_S after the last time this was called."""
        self.open = True
        if self._closing is not None:
            self._closing.cancel()
        self._closing = asyncio.get_running_loop().call_later(LOOKED_S, self.close)

    def close(self) -> None:
        """Nobody looks any more: let go of everything."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self.open = False
        self._entries.clear()
        self._times.clear()

    def add(
        self,
        model: str,
        classes: tuple[str, ...],
        level: int,
        sample: Sample,
        reason: Reason,
        prediction: Prediction | None,
        degraded: bool,
        elapsed_s: float,
    ) -> None:
        """An input is done with. ``level``: the one that the device would use; prediction: None for a refusal."""
        if prediction is not None:
            self._times.append((self._clock(), model, prediction.route.placement.value, elapsed_s))
        if self._shown == "none":
            return
        self._number += 1
        first, scores = sample.answer, sample.scores[0]
        second = prediction is not None and first is not None and prediction.route.level == 0
        entry = Entry(
            number=self._number,
            time_s=round(self._wall(), 3),
            model=model,
            label=None if prediction is None else _name(classes, prediction.label),
            route="" if prediction is None else prediction.route.placement.value,
            variant="" if prediction is None else prediction.route.variant,
            level=0 if prediction is None else prediction.route.level,
            reason=reason.value,
            degraded=degraded,
            device_before=_share(scores[max(0, (first.route.level if first is not None else level) - 1)]),
            cloud_before=_share(scores[-1]),
            after=None if prediction is None else _share(prediction.confidence),
            device_label=_name(classes, first.label) if second and first is not None else None,
            device_sure=_share(first.probabilities[first.label]) if second and first is not None else None,
            elapsed_ms=round(elapsed_s * 1e3, 3),
            picture=None,
        )
        self._entries.append((entry, self._kept(sample)))

    def _kept(self, sample: Sample) -> NDArray[Any] | None:
        if self._shown != "pictures":
            return None
        return thinned(next(iter(sample.tensors.values()))[0])

    def after(self, number: int) -> list[Entry]:
        """What came after that number, the oldest first. A number from before a restart is as good as 0."""
        if number > self._number:
            number = 0
        return [
            msgspec.structs.replace(entry, picture=None if kept is None else picture_of(kept))
            for entry, kept in tuple(self._entries)
            if entry.number > number
        ]

    def times(self, model: str) -> dict[str, dict[str, float]]:
        """By route: how many answers of a model the last TIMES_S saw, and their p50 and p99 in milliseconds."""
        since_s = self._clock() - TIMES_S
        return quantiles(
            (route, took_s) for at_s, name, route, took_s in self._times if name == model and at_s >= since_s
        )


def quantiles(times: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """By route: count, and p50 and p99 in milliseconds, of seconds."""
    by_route: dict[str, list[float]] = {}
    for route, took_s in times:
        by_route.setdefault(route, []).append(took_s)
    found = {}
    for route, taken in by_route.items():
        p50, p99 = np.quantile(taken, (0.5, 0.99)).tolist()
        found[route] = {"n": len(taken), "p50_ms": round(p50 * 1e3, 3), "p99_ms": round(p99 * 1e3, 3)}
    return found


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)


def _share(value: Any) -> float:
    return round(float(value), 4)


def thinned(array: NDArray[Any]) -> NDArray[Any] | None:
    """A copy of an input without its batch that is small, and looks the same; None for what cannot be drawn.

    A picture keeps at most 2 * SIDE pixels each way, as UINT8 [H, W] or [H, W, 3]; else a vector or the rows of
    [time, channels] keep POINTS values of LINES channels, as FP32.
    """
    if array.size == 0 or array.dtype.kind not in "buif":
        return None
    pixels = _pixels(array)
    if pixels is not None:
        step = -(-max(pixels.shape[:2]) // (2 * SIDE))
        few = pixels[::step, ::step]
        return few.copy() if few.dtype == np.uint8 else _scaled(few)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) < 2:
        return None
    step = -(-len(array) // POINTS)
    return array[::step, :LINES].astype(np.float32)


def _pixels(array: NDArray[Any]) -> NDArray[Any] | None:
    """A view as [H, W] or [H, W, 3] of what is [H, W], [H, W, 1 or 3] or [1 or 3, H, W]; None for anything else."""
    least = LEAST_SIDE if array.dtype == np.uint8 or array.ndim == 3 else LEAST_SIDE_OF_NUMBERS
    if array.ndim == 3:
        if array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
            array = np.moveaxis(array, 0, 2)
        if array.shape[2] == 1:
            array = array[:, :, 0]
        elif array.shape[2] != 3:
            return None
    return array if array.ndim in (2, 3) and min(array.shape[:2]) >= least else None


def _scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    """UINT8 of the same shape, from the lowest of the values to the highest; what is no number is the lowest."""
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 0.0)
    shares = (np.where(finite, numbers, low) - low) / (high - low) if high > low else np.full_like(numbers, 0.5)
    return np.rint(shares * 255).astype(np.uint8)


def picture_of(thin: NDArray[Any]) -> Picture:
    """What ``thinned`` has kept, ready to be drawn."""
    if thin.dtype == np.uint8:
        pixels = _halved(thin)
        height, width = pixels.shape[:2]
        return Picture("rgb" if pixels.ndim == 3 else "gray", width, height, _coded(pixels))
    values = _scaled(thin.T)
    return Picture("lines", values.shape[1], values.shape[0], _coded(values))


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At most SIDE pixels each way: means of squares, where there are more."""
    if max(pixels.shape[:2]) <= SIDE:
        return pixels
    if min(pixels.shape[:2]) < 2:
        return pixels[::2, ::2]
    height, width = (size - size % 2 for size in pixels.shape[:2])
    even = pixels[:height, :width].astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return (total // 4).astype(np.uint8)


def _coded(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
