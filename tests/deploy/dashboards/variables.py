"""Expressions with their variables replaced as Grafana's Prometheus data source does it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

ALL = "$__all"
_VARIABLE = re.compile(r"\$\{(?P<braced>\w+)(?::(?P<form>\w+))?\}|\$(?P<plain>\w+)|\[\[(?P<old>\w+)\]\]")
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<metric>.+),\s*)?(?P<label>\w+)\)", re.DOTALL)
# What a screen of this width asks for, when a panel does not say.
POINTS = 600


class Span(msgspec.Struct, frozen=True):
    """The time that is looked at, in Unix seconds, and how often Prometheus scrapes, as the data source knows it."""

    start_s: float
    end_s: float
    scrape_s: float

    def step_s(self, points: int = POINTS) -> float:
        """$__interval: no finer than scrapes, in whole seconds as Prometheus takes them."""
        return max(self.scrape_s, float(-(-(self.end_s - self.start_s) // points)))

    def built_in(self) -> dict[str, str]:
        """The variables that are always there."""
        step_s = self.step_s()
        # Four scrapes, so that a rate has two of them even where one was missed.
        rate_s = max(step_s + self.scrape_s, 4 * self.scrape_s)
        range_s = self.end_s - self.start_s
        return {
            "__interval": f"{step_s:g}s",
            "__interval_ms": f"{step_s * 1000:g}",
            "__rate_interval": f"{rate_s:g}s",
            "__range": f"{range_s:.0f}s",
            "__range_s": f"{range_s:.0f}",
            "__range_ms": f"{range_s * 1000:.0f}",
        }


class UnknownVariable(LookupError):
    """An expression has a variable that the dashboard does not."""


def replaced(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its variables' values. Raises UnknownVariable."""

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"] or found["old"]
        if name not in values:
            raise UnknownVariable(name)
        return values[name]

    return _VARIABLE.sub(value, text)


def written(variable: Mapping[str, Any], picked: str | Sequence[str]) -> str:
    """How a variable's picked values stand in an expression: escaped for a pattern where it can have several."""
    if picked == ALL:
        every: str = variable["allValue"]
        return every
    if not variable.get("multi") and not variable.get("includeAll"):
        return str(picked).replace("\\", "\\\\").replace('"', '\\"')
    values = [picked] if isinstance(picked, str) else list(picked)
    # A backslash for the pattern, written as two for the text it stands in.
    escaped = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value.replace("\\", r"\\\\")) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def label_values(query: str) -> tuple[str | None, str]:
    """The selector and the label of ``label_values(selector, label)``. Raises ValueError for other queries."""
    found = _LABEL_VALUES.fullmatch(query.strip())
    if found is None:
        raise ValueError(f"not a query for label values: {query}")
    return found["metric"], found["label"]
