"""Writes deploy/kubernetes/cloud.yaml: what the chart gives by default.

    python deploy/helm/render.py

Rendering is Helm's own: the package helm-python-sdk holds its library. No cluster is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HELM = Path(__file__).parent
CHART = HELM / "edgemux-cloud"
PLAIN = HELM.parent / "kubernetes" / "cloud.yaml"
HEAD = """\
# What deploy/helm/edgemux-cloud gives by default, for those who have no Helm: kubectl apply -f cloud.yaml
# Made by deploy/helm/render.py: change the chart. NOT RUN: there was no cluster to try it on.
"""


def rendered(values: dict[str, Any] | None = None, namespace: str = "default") -> dict[str, str]:
    """Text by the name of its template, templates that gave nothing left out."""
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values, name="edgemux-cloud", namespace=namespace)
    return {name.rpartition("/")[2]: text for name, text in sorted(texts.items()) if text.strip()}


def plain() -> str:
    """All objects of the default values as one text."""
    texts = [text.strip() for name, text in rendered().items() if name != "NOTES.txt"]
    # Nobody but Helm minds these two.
    lines = "\n---\n".join(texts).splitlines()
    return HEAD + "\n".join(line for line in lines if "helm.sh/chart" not in line and "managed-by" not in line) + "\n"


if __name__ == "__main__":
    PLAIN.write_text(plain())
