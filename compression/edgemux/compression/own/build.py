"""`edgemux build` for models that are there already: wrap, ask, fit, certify, measure, pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemux.compression import measure
from edgemux.compression.models import read_report
from edgemux.compression.multiplex import Prices, read_prices
from edgemux.compression.own import answers, given, models, pack, router
from edgemux.compression.own.answers import Splits
from edgemux.compression.own.feed import Feed
from edgemux.compression.own.inputs import Inputs, find
from edgemux.compression.own.models import Pair, class_names, paired
from edgemux.compression.own.plan import Plan
from edgemux.compression.pack import check_target
from edgemux.compression.recipe import digest
from edgemux.compression.workshop import Workshop

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What all stages work on."""

    plan: Plan
    pair: Pair
    inputs: Inputs
    feed: Feed
    dealt: Splits

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Of all inputs, None when there are none."""
        return self.inputs.labels

    def key(self) -> str:
        """A digest of the inputs and how they were dealt out."""
        labels = None if self.labels is None else self.labels.tolist()
        sizes = len(self.dealt.gate), len(self.dealt.certify)
        return digest(self.inputs.sha256, labels, self.inputs.classes, self.plan.seed, sizes)


def build(plan: Plan, root: Path, recipe: str, recipe_sha256: str, out: Path, workshop: Workshop, tell: Tell) -> Path:
    """Build the bundle of a plan whose paths are relative to ``root``, and return its directory.

    recipe, recipe_sha256: what made it, for the manifest. tell: is called with what a reader should know about the
    result. Raises ConfigError for models and inputs that do not fit, in one line that names the file.
    """
    check_target(out)
    job = _job(plan, root)
    at_models, at_answers = _asked(workshop, job)
    classes = class_names(job.inputs, answers.read(at_answers, "test")[1].cloud.shape[1])
    at_gates, prices = _priced(workshop, job, at_answers)
    parts = pack.Parts(
        models=at_models,
        gates=at_gates,
        feed=job.feed,
        dealt=job.dealt,
        labels=job.labels,
        classes=classes,
        preprocessing=job.pair.preprocessing,
        exported=read_report(at_models),
        prices=prices,
        figures=_figures(workshop, job, at_models, at_answers, at_gates, prices),
        note=router.sentence(prices, at_answers),
    )
    if parts.note:
        tell(f"note: {parts.note}")
    return pack.write(plan, recipe, recipe_sha256, parts, sum(workshop.seconds.values()), out)


def _job(plan: Plan, root: Path) -> Job:
    inputs = find(plan.inputs, root)
    dealt = answers.splits(inputs.count, plan.certify, plan.seed)
    device, cloud = (given.read(root / path) for path in (plan.models.device, plan.models.cloud))
    pair, inputs = paired(plan, device, cloud, inputs, root)
    return Job(plan, pair, inputs, Feed(inputs, pair.device_entry.tensor), dealt)


def _asked(workshop: Workshop, job: Job) -> tuple[Path, Path]:
    """The folders of the wrapped models and of their answers."""
    device, cloud = job.pair.device, job.pair.cloud
    at_models = workshop.stage(
        "models",
        lambda folder, _: models.write(job.pair, job.feed, job.inputs, job.dealt.gate, folder),
        (device.file, device.sha256),
        (cloud.file, cloud.sha256),
        job.key(),
        job.plan.preprocessing,
    )
    files = device.file, cloud.file
    at_answers = workshop.stage(
        "answers",
        lambda folder, tick: answers.write(at_models, job.feed, job.dealt, job.labels, files, folder, tick),
        at_models.name,
    )
    return at_models, at_answers


def _priced(workshop: Workshop, job: Job, at_answers: Path) -> tuple[Path, Prices]:
    """The folder of the gates, and the prices."""
    how = job.plan.gates
    at_gates = workshop.stage(
        "gates",
        lambda folder, tick: router.write_gates(at_answers, job.feed, job.dealt, how, job.plan.seed, folder, tick),
        at_answers.name,
        how,
    )
    labelled = job.labels is not None
    at_prices = workshop.stage(
        "prices",
        lambda folder, _: router.write_prices(
            at_answers, at_gates, labelled, job.plan.certify, how.skip_agreement, folder
        ),
        at_gates.name,
        job.plan.certify,
    )
    return at_gates, read_prices(at_prices)


def _figures(
    workshop: Workshop, job: Job, at_models: Path, at_answers: Path, at_gates: Path, prices: Prices
) -> measure.Figures:
    """What the files cost, and how right they are on the split for reports."""
    repeats = job.plan.pack.repeats

    def make(folder: Path, _: object) -> None:
        one = {job.feed.tensor.name: job.feed.rows(job.dealt.test[:1])}
        test = router.scored(at_answers, at_gates, "test")
        exported = read_report(at_models)
        measure.save(measure.figures(at_models, at_gates, one, test, prices, exported, repeats), folder)

    return measure.read(workshop.stage("measure", make, at_gates.name, prices, repeats))
