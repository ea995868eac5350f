"""The lab's report as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape

import numpy as np

from edgemux.multiplexer.lab.pictures import Pictures
from edgemux.multiplexer.lab.plots import Line, plot
from edgemux.multiplexer.lab.results import Study
from edgemux.multiplexer.lab.routers import BASELINE, OURS, RANDOM, REFERENCES
from edgemux.multiplexer.lab.table import HEADERS, figures_of, sentences
from edgemux.multiplexer.training.reliability import Reliability

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.2rem .7rem;text-align:right}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #333}tr.chosen{font-weight:700}
.wide{overflow-x:auto}svg{max-width:44rem;width:100%;font:12px system-ui,sans-serif}.grid{stroke:#ddd;fill:none}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}svg{background:#eee}}
"""


def page(study: Study, pictures: Pictures, title: str) -> str:
    """Table, sentences and five plots."""
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in sentences(study)),
        _table(study),
        "<h2>Deferral</h2><p>Accuracy in %, against the share of inputs deferred to the cloud.</p>",
        _deferral(study, pictures),
        "<h2>Does a probability mean what it says?</h2>",
        _reliability("P(only the cloud is right)", {"foretold": pictures.gain}),
        _reliability("P(the device is right)", pictures.device),
        "<h2>Certificate</h2><p>Kept by the device, against the share kept and in error on the certificate rows.</p>",
        _certificate(study, pictures),
        "<h2>Accuracy for a cost</h2>",
        _frontier(study, pictures),
        "<h2>Routers</h2><dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in REFERENCES.items()),
        "</dl>",
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f"{head}<body>{''.join(body)}</body></html>\n"


def _table(study: Study) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADERS)
    rows = [
        f'<tr class="{"chosen" if name == study.chosen else ""}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in figures_of(name, judged))
        + "</tr>"
        for name, judged in study.routers.items()
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _deferral(study: Study, pictures: Pictures) -> str:
    named = [name for name in (OURS, BASELINE, study.chosen, RANDOM) if name in pictures.curves]
    best = sorted(study.routers, key=lambda name: -study.routers[name].auc)
    named += best[:2]
    curves = {name: pictures.curves[name] for name in dict.fromkeys(named)}
    lines = [Line(name, curve.share, 100 * curve.accuracy) for name, curve in curves.items()]
    lines += [Line(name, curve.share, 100 * curve.accuracy, "dash") for name, curve in pictures.oracles.items()]
    return plot("Deferral curves", "share deferred", "accuracy, %", lines)


def _reliability(title: str, groups: dict[str, Reliability]) -> str:
    top = max(float(max(group.said.max(), group.true.max())) for group in groups.values())
    low = min(float(min(group.said.min(), group.true.min())) for group in groups.values())
    lines = [Line("perfect", np.array([low, top]), np.array([low, top]), "dash")]
    lines += [Line(f"{name}, ECE {group.error:.4f}", group.said, group.true, "dots") for name, group in groups.items()]
    return plot(title, title, "share that came true", lines)


def _certificate(study: Study, pictures: Pictures) -> str:
    certificate = study.certificate
    ends = np.array([0.0, 1.0])
    lines = [
        Line("in error", pictures.kept, pictures.risk),
        Line(f"bound at {1 - certificate.delta:.0%}", pictures.kept, pictures.risk_bound),
        Line(f"alpha {certificate.alpha:g}", ends, np.full(2, certificate.alpha), "dash"),
    ]
    return plot("Certificate", "share kept on the device", "share kept and in error", lines)


def _frontier(study: Study, pictures: Pictures) -> str:
    """Every input pays for the device and the router, deferred ones for the cloud too."""
    known = pictures.device_ms is not None and pictures.cloud_ms is not None
    device = pictures.device_ms if known and pictures.device_ms is not None else 1.0
    cloud = pictures.cloud_ms if known and pictures.cloud_ms is not None else 10.0
    lines = []
    for name in dict.fromkeys((OURS, BASELINE, study.chosen)):
        if name in pictures.curves:
            curve = pictures.curves[name]
            own = study.routers[name].ms if known else 0.0
            lines.append(Line(name, device + own + cloud * curve.share, 100 * curve.accuracy))
    lines.append(Line("cloud only", np.array([cloud]), np.array([100 * study.cloud_accuracy]), "dots"))
    lines.append(Line("device only", np.array([device]), np.array([100 * study.device_accuracy]), "dots"))
    unit = "mean ms of an input" if known else "mean cost of an input: a device answer is 1, a cloud answer 10"
    return plot("Accuracy for a cost", unit, "accuracy, %", lines)
