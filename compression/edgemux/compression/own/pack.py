"""Puts models of somebody's own, their router and what was found out into a sealed bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.data import stratified
from edgemux.compression.measure import Figures
from edgemux.compression.models import CLOUD, Exported, level_file
from edgemux.compression.multiplex import POST_GATE, PRE_GATE, Prices
from edgemux.compression.own.answers import Splits
from edgemux.compression.own.feed import Feed
from edgemux.compression.own.plan import Plan, without_places
from edgemux.compression.pack import GOLDEN, SAMPLES, check_target, golden_answers, manifest_of, provenance_of
from edgemux.compression.payloads import add_payloads
from edgemux.compression.places import replacing
from edgemux.multiplexer import bundle
from edgemux.multiplexer.bundle import Bundle, Manifest, Preprocessing, Provenance
from edgemux.multiplexer.usual import add_references

# Samples are for looking at a bundle at work; they should not outweigh its models.
MAX_SAMPLE_BYTES = 8 * 2**20
MAX_REFERENCE_BYTES = 64 * 2**20
# From fewer, agents do better to learn what is usual for themselves.
LEAST_REFERENCE = 300


@dataclass(frozen=True)
class Parts:
    """What the stages left: folders, inputs and findings. labels: None where the cloud stood in for the truth."""

    models: Path
    gates: Path
    feed: Feed
    dealt: Splits
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    exported: Exported
    prices: Prices
    figures: Figures
    note: str


def write(plan: Plan, recipe: str, recipe_sha256: str, parts: Parts, seconds: float, out: Path) -> Path:
    """Write the bundle beside ``out``, check it, and put it in the place of an older one."""
    check_target(out)
    with replacing(out) as part:
        listed = [level_file(1), CLOUD, PRE_GATE, POST_GATE, GOLDEN]
        for folder, name in zip([parts.models] * 2 + [parts.gates] * 2, listed, strict=False):
            shutil.copyfile(folder / name, part / name)
        _write_golden(part, plan, parts)
        if parts.labels is not None and plan.pack.samples:
            _write_samples(part, plan, parts, parts.labels)
            listed.append(SAMPLES)
        bundle.seal(part, _manifest(plan, parts, listed, _provenance(plan, recipe, recipe_sha256, parts, seconds)))
        known = (parts.dealt.test, parts.dealt.certify)
        if min(len(rows) for rows in known) >= LEAST_REFERENCE:
            add_references(part, *(_some(parts, rows) for rows in known))
        test = parts.dealt.test
        add_payloads(part, parts.feed.rows, test, None if parts.labels is None else parts.labels[test])
        Bundle.open(part).verify()
    return out


def _some(parts: Parts, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Inputs to tell what is usual from: as many of the rows as fit."""
    most = max(1, MAX_REFERENCE_BYTES // parts.feed.rows(rows[:1]).nbytes)
    return {parts.feed.tensor.name: parts.feed.rows(rows[:most])}


def _write_golden(part: Path, plan: Plan, parts: Parts) -> None:
    rows = parts.dealt.certify[: plan.pack.golden]
    inputs = {parts.feed.tensor.name: parts.feed.rows(rows)}
    labels = np.full(len(rows), -1, np.int64) if parts.labels is None else parts.labels[rows]
    np.savez_compressed(part / GOLDEN, allow_pickle=False, **golden_answers(part, parts.figures, inputs, labels))


def _write_samples(part: Path, plan: Plan, parts: Parts, labels: NDArray[np.int64]) -> None:
    test = parts.dealt.test
    most = MAX_SAMPLE_BYTES // max(1, parts.feed.rows(test[:1]).nbytes)
    count = max(1, min(plan.pack.samples, most, len(test)))
    rows = test[stratified(labels[test], count, np.random.default_rng(plan.seed))[0]]
    np.savez_compressed(part / SAMPLES, images=parts.feed.rows(rows), labels=labels[rows])


def _manifest(plan: Plan, parts: Parts, listed: list[str], provenance: Provenance) -> Manifest:
    assert plan.name is not None
    about = plan.name, plan.pack.version, parts.feed.tensor, parts.classes, parts.preprocessing
    return manifest_of(*about, parts.figures, parts.prices, listed, provenance)


def _provenance(plan: Plan, recipe: str, recipe_sha256: str, parts: Parts, seconds: float) -> Provenance:
    verdicts = parts.exported.verdicts | ({"router": parts.note} if parts.note else {})
    measured = {"labelled": float(parts.labels is not None)} | parts.exported.measured | parts.figures.measured
    return provenance_of(recipe, recipe_sha256, plan.seed, seconds, _data(plan, parts), verdicts, measured)


def _data(plan: Plan, parts: Parts) -> str:
    plan, dealt = without_places(plan), parts.dealt
    truth = "labelled" if parts.labels is not None else "unlabelled, accuracies are agreement with the cloud's answers"
    return (
        f"{plan.inputs.path}, {truth}: {len(dealt.gate)} for gates and temperatures, {len(dealt.certify)} for the "
        f"certificate, {len(dealt.test)} for reports; models as given: {plan.models.device}, {plan.models.cloud}"
    )
