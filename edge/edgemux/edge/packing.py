"""In which form an input is sent: whichever is answered soonest, of those that the bundle has measured. Pure.

An encoding has to be paid with the device's time, and saves the link's: on a quick link the tensor itself wins.
"""

from __future__ import annotations

import math

import msgspec

from edgemux.multiplexer.bundle import Manifest, Payload, Split
from edgemux.multiplexer.estimate import RecentMean
from edgemux.wire.payload import LOSSLESS, RAW, encodings

# A link that was slow when it was last seen full may be quick by now: so often the tensor itself is sent to find out.
LOOK_S = 10.0
# And only where it is expected to take at most this share of the time that is left.
LOOK_SHARE = 0.5
# Another form must be better by this share: estimates are not that good, and each change blurs them.
BETTER = 0.9
# How long what was seen of a form on this device counts.
REMEMBERED_S = 600.0
# Of a normal variate 95 % are below.
Z95 = 1.645


def usable(manifest: Manifest, max_loss: float) -> tuple[Payload, ...]:
    """The forms of a manifest that may be used, raw first, none where there is no choice.

    One that loses something must lose at most ``max_loss`` of the accuracy, with a confidence of 95 %.
    """
    if manifest.payloads is msgspec.UNSET or len(manifest.inputs) != 1:
        return ()
    raw, *others = manifest.payloads
    known = encodings(manifest.inputs[0], manifest.preprocessing)
    fine = [
        each
        for each in others
        if each.encoding in known and (each.encoding in LOSSLESS or most_lost(raw.accuracy, each) <= max_loss)
    ]
    return (raw, *fine) if fine else ()


def most_lost(accuracy: float, lossy: Payload | Split) -> float:
    """Upper end, at 95 %, of what a form loses of ``accuracy``: one-sided, for differences of paired shares; over 0.

    The difference of an input is -1, 0 or 1, and 0 unless its label changes, so its variance is at most the share of
    changed labels. With 3 / n on top (the rule of three) none seen of n does not mean none.
    """
    changed = lossy.changed + 3.0 / lossy.n
    return max(0.0, accuracy - lossy.accuracy) + Z95 * math.sqrt(changed / lossy.n)


class OneForm:
    """What has one form only: what a head makes. Not thread-safe; time is passed in."""

    only = True

    def __init__(self, form: str) -> None:
        self.chosen = form
        self._encode_s = RecentMean(stale_s=REMEMBERED_S)

    def choose(self, bytes_per_s: float | None, left_s: float, now_s: float, exact: bool = False) -> str:
        """That form."""
        return self.chosen

    def encode_s(self, now_s: float, encoding: str | None = None) -> float:
        """Seconds that it takes to make, 0 while that is not known."""
        return self._encode_s.mean(now_s) or 0.0

    def encoded(self, encoding: str, elapsed_s: float, now_s: float) -> None:
        """It was made on this device in ``elapsed_s``."""
        self._encode_s.observe(elapsed_s, now_s)

    def refused(self, encoding: str) -> None:
        """There is no other."""


class Packing:
    """The choice for one model at one cloud. Not thread-safe; time is passed in."""

    only = False

    def __init__(self, payloads: tuple[Payload, ...]) -> None:
        """payloads: what ``usable`` gives."""
        self._payloads = {each.encoding: each for each in payloads}
        self._encode_s = {name: RecentMean(stale_s=REMEMBERED_S) for name in self._payloads}
        self.chosen = RAW
        self._looked_s = float("-inf")

    def choose(self, bytes_per_s: float | None, left_s: float, now_s: float, exact: bool = False) -> str:
        """The form for an input that has ``left_s``. bytes_per_s: of the link, None where it is not known.

        exact: only forms that lose nothing. While the bandwidth is not known the choice stays what it was.
        """
        if len(self._payloads) < 2:
            return RAW
        if bytes_per_s is not None:
            self.chosen = self._best(bytes_per_s, now_s)
            if self.chosen != RAW and now_s - self._looked_s >= LOOK_S:
                self._looked_s = now_s
                if self._expected_s(RAW, bytes_per_s, now_s) <= LOOK_SHARE * left_s:
                    return RAW
        if exact and self.chosen not in LOSSLESS:
            return RAW if bytes_per_s is None else self._best(bytes_per_s, now_s, exact=True)
        return self.chosen

    def encode_s(self, now_s: float, encoding: str | None = None) -> float:
        """Seconds that a form takes to make, None for the one that was chosen last."""
        encoding = encoding or self.chosen
        if encoding == RAW:
            return 0.0
        seen = self._encode_s[encoding].mean(now_s)
        return self._payloads[encoding].encode_ms / 1000 if seen is None else seen

    def encoded(self, encoding: str, elapsed_s: float, now_s: float) -> None:
        """A form was made on this device in ``elapsed_s``."""
        if encoding != RAW:
            self._encode_s[encoding].observe(elapsed_s, now_s)

    def refused(self, encoding: str) -> None:
        """The cloud does not take a form, or makes nonsense of it: from now on it is sent the tensor.

        Not only that form is given up: each that is tried costs an answer, and three in a row open the breaker.
        """
        if encoding != RAW:
            self._payloads = {}
            self.chosen = RAW

    def _best(self, bytes_per_s: float, now_s: float, exact: bool = False) -> str:
        names = [name for name in self._payloads if not exact or name in LOSSLESS]
        best = min(names, key=lambda name: self._expected_s(name, bytes_per_s, now_s))
        stays = self._expected_s(best, bytes_per_s, now_s) > BETTER * self._expected_s(self.chosen, bytes_per_s, now_s)
        return self.chosen if stays and self.chosen in names else best

    def _expected_s(self, name: str, bytes_per_s: float, now_s: float) -> float:
        payload = self._payloads[name]
        # What the tensor itself takes to make and read is nothing beside a call, and part of the round trip.
        decode_s = 0.0 if name == RAW else payload.decode_ms / 1000
        return self.encode_s(now_s, name) + payload.bytes / bytes_per_s + decode_s
