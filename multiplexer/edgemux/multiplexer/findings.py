"""What an examination of a machine has found: values, of which a page or a person makes something."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec


class Grade(StrEnum):
    """OK: as it should be. NOTE: worth knowing, nothing is wrong. PROBLEM: something is wrong."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """One line about one thing. ``part`` groups findings; ``fix``: what to do about it, empty where nothing is to do.

    stops: whether an agent cannot serve because of it; only a problem can.
    """

    part: str
    about: str
    grade: Grade
    says: str
    fix: str = ""
    stops: bool = False

    def __post_init__(self) -> None:
        if self.stops and self.grade is not Grade.PROBLEM:
            raise ValueError("only a problem stops an agent")
        if self.grade is Grade.PROBLEM and not self.fix:
            raise ValueError("a problem needs a way to fix it")


class Findings:
    """The findings of one part, in the order in which they are made."""

    def __init__(self, part: str) -> None:
        self._part = part
        self.all: list[Finding] = []

    def ok(self, about: str, says: str) -> None:
        """As it should be."""
        self.all.append(Finding(self._part, about, Grade.OK, says))

    def note(self, about: str, says: str, fix: str = "") -> None:
        """Worth knowing."""
        self.all.append(Finding(self._part, about, Grade.NOTE, says, fix))

    def problem(self, about: str, says: str, fix: str, stops: bool = False) -> None:
        """Something is wrong."""
        self.all.append(Finding(self._part, about, Grade.PROBLEM, says, fix, stops))


def can_serve(findings: Iterable[Finding]) -> bool:
    """Whether nothing of it stops an agent."""
    return not any(finding.stops for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """The whole in one line."""
    problems = sum(finding.grade is Grade.PROBLEM for finding in findings)
    stops = sum(finding.stops for finding in findings)
    if stops:
        return f"It cannot serve: {_count(stops, 'problem')} in the way, {_count(problems, 'problem')} in all."
    if problems:
        return f"It can serve, with {_count(problems, 'problem')}."
    return "It can serve; no problem was found."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
