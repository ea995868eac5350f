"""``search``: needs first, technique names second. Tries recipes on this device until the time is over.

What to try next is a pure function of what was tried: a coarse grid of how much to take away, then the middle between
the strongest compression that keeps the need and the weakest that does not. Recipes that begin alike share their work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from torch import nn

from edgemux.compression import gauge
from edgemux.compression.artifact import Artifact
from edgemux.compression.pass_recipe import PassRecipe
from edgemux.compression.pipeline import Prefixes, Tell, compress
from edgemux.compression.samples import Samples
from edgemux.multiplexer.certify import interval
from edgemux.multiplexer.errors import ConfigError, PassError

Above = Annotated[float, Meta(gt=0.0)]
GRID = (0.25, 0.5, 0.75)
# Ratios closer than this differ by less than training does.
FINEST = 0.04
# With what a thinned net is finished; the last is the smallest file.
ENDINGS = ("", "int8", "int8_weights")
TRAIN = "distill(T=4)"
CHANNELS, RECURRENT = "prune(lasso, {})", "units({})"
# Points of accuracy that are looked for where the need names none.
DROP = 0.5
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class Need(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the compressed model must keep.

    max_ms: CPU time of one input on one thread of this device. max_kb: bytes as stored / 1000. max_drop: points of
    accuracy below the original.
    """

    max_ms: Above | None = None
    max_kb: Above | None = None
    max_drop: Above | None = None

    @classmethod
    def of(cls, text: str) -> Need:
        """``ms<2,kb<100,drop<0.5``. Raises ConfigError saying which part is not understood."""
        values: dict[str, float] = {}
        for part in text.split(",") if text.strip() else []:
            match = re.fullmatch(r"\s*(ms|kb|drop)\s*<=?\s*(\d+(?:\.\d+)?)\s*", part)
            if match is None:
                raise ConfigError(f"need: {part.strip()!r} is not understood; write it like ms<2,kb<100,drop<0.5")
            values[f"max_{match[1]}"] = float(match[2])
        return cls(**values).checked()

    def checked(self) -> Need:
        """Itself. Raises ConfigError naming the bound that is not above 0."""
        for name in ("max_ms", "max_kb", "max_drop"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ConfigError(f"need: {name} must be above 0, it is {value}")
        return self


class Trial(msgspec.Struct, frozen=True):
    """A recipe and what it gave: accuracy on the half of the test inputs that chooses, ms, bytes, points lost.

    ratio: the share that was taken away, 0 for none. seconds: what trying it took.
    """

    recipe: str
    ratio: float
    ending: str
    accuracy: float
    ms: float
    bytes: int
    drop: float
    seconds: float

    def meets(self, need: Need) -> bool:
        """Does it keep every bound?"""
        return (
            (need.max_ms is None or self.ms <= need.max_ms)
            and (need.max_kb is None or self.bytes <= 1000.0 * need.max_kb)
            and (need.max_drop is None or self.drop <= need.max_drop)
        )

    def beats(self, other: Trial) -> bool:
        """At least as good in everything and better in something."""
        mine, theirs = (-self.accuracy, self.ms, self.bytes), (-other.accuracy, other.ms, other.bytes)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


class Choice(msgspec.Struct, frozen=True):
    """A trial of the Pareto front; accuracy and interval are of the half of the test inputs that chose nothing."""

    trial: Trial
    artifact: Artifact
    accuracy: float
    interval: tuple[float, float]
    meets: bool


class Found(msgspec.Struct, frozen=True):
    """The Pareto front, best accuracy first, and everything that was tried or could not be."""

    need: Need
    front: tuple[Choice, ...]
    trials: tuple[Trial, ...]
    refused: tuple[str, ...]

    @property
    def best(self) -> Choice | None:
        """The most accurate that keeps the need; None when none does."""
        return next((choice for choice in self.front if choice.meets), None)

    def report(self) -> str:
        """A table for people."""
        head = f"{'recipe':<56} {'accuracy (95 %)':<26} {'KB':>8} {'ms':>8}  keeps the need"
        lines = [head]
        for item in self.front:
            low, high = item.interval
            accuracy = f"{100 * item.accuracy:.2f} % ({100 * low:.2f}–{100 * high:.2f})"
            name = item.trial.recipe or "original"
            size = f"{item.trial.bytes / 1000:.1f}"
            lines.append(f"{name:<56} {accuracy:<26} {size:>8} {item.trial.ms:>8.3f}  {'yes' if item.meets else 'no'}")
        lines.append(f"{len(self.trials)} recipes tried; {len(self.front)} are not beaten by another in every respect")
        return "\n".join([*lines, *self.refused])


def proposed(trials: Sequence[Trial], refused: Sequence[str], need: Need, taker: str) -> tuple[float, str, str] | None:
    """What to try next: (ratio, ending, recipe text), or None when nothing new is left. Pure.

    taker: the pass that takes a share away, like ``prune(lasso, {})``. refused: recipes that cannot be applied.
    """
    known = {trial.recipe for trial in trials} | set(refused)
    tried = sorted({trial.ratio for trial in trials})
    ratios = [0.0, *GRID, *_between(trials, need, tried)]
    for ratio in ratios:
        start = [taker.format(ratio), TRAIN] if ratio else []
        for ending in ENDINGS:
            text = " > ".join([*start, *([ending] if ending else [])])
            if text not in known and not any(text.startswith(beginning) for beginning in refused if beginning):
                return ratio, ending, text
    return None


def _between(trials: Sequence[Trial], need: Need, tried: Sequence[float]) -> list[float]:
    """The middle between neighbouring ratios of which one keeps the accuracy and the other does not."""
    limit = need.max_drop if need.max_drop is not None else DROP
    kept = {ratio: min(trial.drop for trial in trials if trial.ratio == ratio) <= limit for ratio in tried}
    pairs = [(a, b) for a, b in pairwise(tried) if kept[a] != kept[b] and b - a > FINEST]
    return [round(0.5 * (a + b), 4) for a, b in pairs]


def search(
    model: nn.Module,
    data: Any,
    need: Need | None = None,
    budget: str = "20min",
    target: str = "auto",
    *,
    seed: int = 0,
    effort: float = 1.0,
    tell: Tell = lambda line: None,
) -> Found:
    """Try recipes until the budget is spent or nothing is left to try; at least the original and one more.

    model, data, target, seed, effort: as for ``compress``. budget: ``90s``, ``20min``, ``1h``. The first half of the
    test inputs chooses, the other half gives the accuracies of the front. A recipe is started only if there is time for
    one as long as the longest so far.

    Raises ConfigError for a wrong need, budget, target or data, and for a model that is not a torch net.
    """
    need = (need if need is not None else Need()).checked()
    end_s = time.monotonic() + seconds_of(budget)
    if not isinstance(model, nn.Module):
        raise ConfigError("search: a torch net is needed, most recipes train it")
    samples = Samples.of(data)
    half = len(samples.test_x) // 2
    if half < 1:
        raise ConfigError("data: a search needs at least two test inputs")
    bench = _Bench(model, replace(samples, test_x=samples.test_x[:half], test_y=samples.test_y[:half]), target)
    taker = RECURRENT if any(isinstance(part, nn.RNNBase) for part in model.modules()) else CHANNELS
    while (todo := proposed(bench.trials, bench.refused, need, taker)) is not None:
        longest_s = max((trial.seconds for trial in bench.trials), default=0.0)
        if len(bench.trials) > 1 and time.monotonic() + longest_s > end_s:
            break
        bench.attempt(*todo, seed=seed, effort=effort, tell=tell)
    front = [trial for trial in bench.trials if not any(other.beats(trial) for other in bench.trials)]
    rest = replace(samples, test_x=samples.test_x[half:], test_y=samples.test_y[half:])
    choices = [_choice(trial, bench.artifacts[trial.recipe], rest, need) for trial in _distinct(front)]
    choices.sort(key=lambda choice: (-choice.trial.accuracy, choice.trial.ms))
    return Found(need, tuple(choices), tuple(bench.trials), tuple(bench.reasons))


def seconds_of(budget: str) -> float:
    """``90s``, ``20min``, ``1h`` -> seconds. Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", budget)
    if match is None or float(match[1]) <= 0.0:
        raise ConfigError(f"budget: {budget!r} is not understood; write it like 90s, 20min or 1h")
    return float(match[1]) * UNITS[match[2]]


class _Bench:
    """What was tried so far on one model."""

    def __init__(self, model: nn.Module, samples: Samples, target: str) -> None:
        self._model, self._samples, self._target = model, samples, target
        self._prefixes = Prefixes()
        self.trials: list[Trial] = []
        self.artifacts: dict[str, Artifact] = {}
        self.refused: list[str] = []
        self.reasons: list[str] = []

    def attempt(self, ratio: float, ending: str, text: str, *, seed: int, effort: float, tell: Tell) -> None:
        """Compress, and note what came of it; a pass that cannot be applied is noted as well."""
        start_s = time.monotonic()
        recipe = PassRecipe.of(text) if text else PassRecipe(())
        try:
            artifact = compress(
                self._model, self._samples, recipe, self._target,
                seed=seed, effort=effort, memory=False, prefixes=self._prefixes,
            )  # fmt: skip
        except PassError as error:
            self.refused.append(text)
            self.reasons.append(f"{text}: {error}")
            tell(self.reasons[-1])
            return
        first, now = artifact.about.original, artifact.figures
        trial = Trial(
            recipe=text,
            ratio=ratio,
            ending=ending,
            accuracy=now.accuracy,
            ms=first.ms / artifact.speed,
            bytes=now.stored_bytes,
            drop=100.0 * (first.accuracy - now.accuracy),
            seconds=time.monotonic() - start_s,
        )
        self.trials.append(trial)
        self.artifacts[text] = artifact
        tell(f"{text or 'original'}: {-trial.drop:+.2f} points, {trial.bytes / 1000:.1f} KB, {trial.ms:.3f} ms")


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Without those whose last pass was rejected, so that they are another trial again."""
    found: dict[tuple[float, int], Trial] = {}
    for trial in sorted(trials, key=lambda trial: len(trial.recipe)):
        found.setdefault((trial.accuracy, trial.bytes), trial)
    return list(found.values())


def _choice(trial: Trial, artifact: Artifact, rest: Samples, need: Need) -> Choice:
    right = int((gauge.answers(artifact.model(), rest.test_x.numpy()).argmax(1) == rest.test_y.numpy()).sum())
    return Choice(trial, artifact, right / len(rest.test_x), interval(right, len(rest.test_x)), trial.meets(need))
