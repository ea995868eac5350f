"""What is known of one level from comparisons with the cloud: its risk, its calibration, a certificate made here."""

from __future__ import annotations

import random

import msgspec
import numpy as np

from edgemux.multiplexer.audits import Calibration, Reservoir, certify_again, log_odds, recalibrate, risk_interval

# Rows kept of each kind; a row is three numbers.
CAPACITY = 2048
# The calibration is fitted again at this many comparisons, and at every doubling.
FIRST_FIT = 64
# A certificate is tried at this many draws, and at every doubling; the j-th try gets delta / 2^j.
FIRST_TRY = 256


class Comparison(msgspec.Struct, frozen=True):
    """A device answer and the cloud's. ``level`` is 0 when the device was skipped, and then nothing else is known.

    surest: the device's largest probability. kept: the device's answer was given because the policy preferred it.
    drawn: picked by chance beforehand; what was not drawn is here only because the cloud was asked anyhow.
    epoch: that of the terms under which the answer was given.
    """

    epoch: int
    level: int
    surest: float
    differs: bool
    kept: bool
    drawn: bool


class Recertified(msgspec.Struct, frozen=True):
    """A certificate for one level, made on this device from ``n`` draws after the bundle's was withdrawn.

    doubt: the highest 1 - max softmax at which answers are kept; kept: their share. The risk is at most ``alpha`` with
    confidence 1 - ``delta``. since_s: wall clock.
    """

    n: int
    doubt: float
    kept: float
    alpha: float
    delta: float
    since_s: float


class Ledger:
    """One level's comparisons, in bounded memory. ``price`` is on the scale of the calibration."""

    def __init__(self, price: float, alpha: float | None, delta: float, chance: random.Random) -> None:
        """price: the bundle's; alpha: what to certify, None for nothing; delta: this level's share."""
        self._bundle_price = price
        self._alpha = alpha
        self._delta = delta
        self._drawn = Reservoir(CAPACITY, 3, chance)
        self._offloaded = Reservoir(CAPACITY, 3, chance)
        self.calibration = self._prior = Calibration()
        self.certified: Recertified | None = None
        self._start()

    def _start(self) -> None:
        self._drawn.clear()
        self._offloaded.clear()
        self.certified = None
        self.draws = 0
        self.wrong = 0
        self.used = False
        self._fit_at = FIRST_FIT
        self._tries = 0

    def forget(self) -> None:
        """Start afresh after a change; only the calibration stays, fitted to what was known, as a first guess."""
        self._fit()
        self._prior = self.calibration
        self._start()

    def record(self, seen: Comparison) -> None:
        """Take a comparison in. A random sample is kept apart from those that were made because of their doubt."""
        self.used = True
        row = (log_odds(seen.surest), float(seen.differs), float(seen.kept))
        (self._drawn if seen.drawn else self._offloaded).offer(*row)
        if seen.drawn:
            self.draws += 1
            self.wrong += seen.differs and seen.kept

    @property
    def price(self) -> float:
        """The gain from which an answer is not kept, where gain is 1 - the calibrated confidence.

        Without a certificate made here it is the bundle's. The cloud then counts as always right, which makes the gain
        larger than the one that the price was certified on: fewer answers are kept, never more. A price that kept
        all, whatever the gain, gives way to alpha: answers that differ with at most that chance.
        """
        if self.certified is None:
            return self._bundle_price if self._bundle_price < 1.0 or self._alpha is None else self._alpha
        return 1.0 - self.calibration.confidence(1.0 - self.certified.doubt)

    @property
    def risk_limit(self) -> float:
        """A bound on P(kept and differs) since the price was set; 1 while nothing is known, 0 for a level unused."""
        if self.certified is not None:
            return self.certified.alpha
        return risk_interval(self.wrong, self.draws, self._delta)[1] if self.used else 0.0

    def review(self, now_s: float, certify: bool) -> bool:
        """Fit and, if it may, certify again where enough has come in since the last time. True for another price."""
        changed = False
        if self._drawn.seen + self._offloaded.seen >= self._fit_at:
            self._fit_at = 2 * (self._drawn.seen + self._offloaded.seen)
            self._fit()
            changed = True
        if certify and self._alpha is not None and self._drawn.seen >= FIRST_TRY * 2**self._tries:
            self._tries += 1
            changed = self._certify(self._alpha, now_s) or changed
        if changed and self.certified is None:
            # Another price keeps other answers: what was counted says nothing about them.
            self.draws = self.wrong = 0
        return changed

    def _certify(self, alpha: float, now_s: float) -> bool:
        rows = self._drawn.rows
        delta = self._delta / 2**self._tries
        price = certify_again(1.0 / (1.0 + np.exp(rows[:, 0])), rows[:, 1] > 0.5, alpha, delta)
        if price is None:
            return False
        self.certified = Recertified(len(rows), price.price, price.kept, alpha, self._delta, now_s)
        return True

    def _fit(self) -> None:
        """The draws say how common doubt is, the offloads only what it means: together they weigh what was drawn."""
        drawn, offloaded = self._drawn.rows, self._offloaded.rows
        rows = np.concatenate([drawn, offloaded])
        let_go = int((drawn[:, 2] < 0.5).sum())
        share = let_go / max(1, let_go + len(offloaded)) if len(drawn) else 1.0
        weight = np.where(rows[:, 2] > 0.5, 1.0, share)
        self.calibration = recalibrate(rows[:, 0], 1.0 - rows[:, 1], weight, self._prior)
