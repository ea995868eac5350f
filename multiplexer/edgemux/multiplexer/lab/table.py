"""The lab's findings as text: the cells of its table, and the sentences around it."""

from __future__ import annotations

import json

from edgemux.multiplexer.lab.results import Judged, Study

HEADERS = ("router", "area", "±", "vs max-softmax", "±", "oracle gap", "at 10 %", "20 %", "30 %", "ECE", "ms")


def figures_of(name: str, judged: Judged) -> list[str]:
    """The cells of one router's row, in the order of HEADERS; shares in %, ± half of a 95 % interval."""
    return [
        name,
        f"{100 * judged.auc:.2f}",
        f"{_half(judged.auc_interval):.2f}",
        f"{100 * judged.difference:+.3f}",
        f"{_half(judged.difference_interval):.3f}",
        _or_dash(judged.oracle_gap_closed, 100, ".1f"),
        *(f"{100 * value:.2f}" for value in judged.accuracy_at.values()),
        _or_dash(judged.ece, 1, ".4f"),
        f"{judged.ms:.3f}" if judged.ms else "-",
    ]


def _half(bounds: tuple[float, float]) -> float:
    return 50.0 * (bounds[1] - bounds[0])


def _or_dash(value: float | None, factor: float, style: str) -> str:
    return "-" if value is None else format(factor * value, style)


def sentences(study: Study) -> list[str]:
    """What was looked at, what was chosen and why, and what is certified."""
    truth = "the labels" if study.labelled else "the cloud's answers, there being no labels"
    return [
        f"{study.rows} rows of {study.classes} classes, {study.fitted} for fitting, {study.certificate.n} for the "
        f"certificate, {study.tested} for these figures; right is what agrees with {truth}.",
        f"Device {100 * study.device_accuracy:.2f} %, cloud {100 * study.cloud_accuracy:.2f} %. Areas under the "
        f"deferral curve: random {100 * study.random:.2f} %, oracle {100 * study.oracle:.2f} %; "
        + ", ".join(f"{name} oracle {100 * area:.2f} %" for name, area in study.oracles.items())
        + ".",
        f"Chosen: {study.chosen}.",
        *study.notes,
        *_certified(study),
    ]


def _certified(study: Study) -> list[str]:
    certificate = study.certificate
    if certificate.threshold is None:
        return []
    naive = certificate.naive
    return [
        f"Certificate: kept and in error on at most {certificate.alpha:.1%} of inputs, with confidence "
        f"{1 - certificate.delta:.0%}, from {certificate.n} rows (bound {certificate.bound:.2%}). On the test rows it "
        f"defers {certificate.offload:.1%} and errs on {certificate.risk:.2%}; the threshold without a margin for "
        f"chance defers {naive.offload:.1%} and errs on {naive.risk:.2%}."
    ]


def policy_lines(study: Study) -> list[str]:
    """The saved policies as lines of an agent's configuration, in TOML."""
    return [
        f"policy = {json.dumps(text, ensure_ascii=False)}" + ("  # chosen" if name == study.chosen else "")
        for name, text in study.policies.items()
    ]
