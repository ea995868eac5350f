"""Which metrics and labels an expression of PromQL reads, and which labels its result can have.

Prometheus 2.42 has no page that parses a query, so this reads what dashboards and rules write: selectors, functions,
aggregations, operators with their matching, ranges, subqueries, offset and @. The grammar is that of Prometheus'
documentation; what it does not know is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

import msgspec

T = TypeVar("T")
AGGREGATIONS = frozenset(
    {"sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "count_values", "quantile", "topk", "bottomk"}
)
# They keep series as they are, with all their labels.
PICKING = frozenset({"topk", "bottomk"})
# The weakest first.
OPERATORS = (
    ("or",),
    ("and", "unless"),
    ("==", "!=", "<=", "<", ">=", ">"),
    ("+", "-"),
    ("*", "/", "%", "atan2"),
    ("^",),
)
_TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*\s*)*(?:
    (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
  | (?P<duration>(?:\d+(?:ms|[smhdwy]))+(?![A-Za-z0-9_]))
  | (?P<number>0x[0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?i:inf|nan)(?![A-Za-z0-9_:]))
  | (?P<name>[A-Za-z_][A-Za-z0-9_:]*)
  | (?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^()\[\]{},=<>@:])
)""",
    re.VERBOSE,
)


class NotPromQL(ValueError):
    """The text is not an expression that is understood; says where."""


class Matcher(msgspec.Struct, frozen=True):
    """A label with what it is compared with."""

    label: str
    sign: str
    value: str


class Selector(msgspec.Struct, frozen=True):
    """Series of a metric: ``name`` may be empty where the matchers say it."""

    name: str
    matchers: tuple[Matcher, ...] = ()


class Number(msgspec.Struct, frozen=True):
    """A number or a text: no series."""

    text: str


class Call(msgspec.Struct, frozen=True):
    """A function of its arguments."""

    name: str
    arguments: tuple[Expression, ...]


class Aggregation(msgspec.Struct, frozen=True):
    """``labels`` are kept (by) or dropped (without); with neither word, all are dropped."""

    name: str
    word: str
    labels: tuple[str, ...]
    arguments: tuple[Expression, ...]


class Binary(msgspec.Struct, frozen=True):
    """Two operands. ``word``: on, ignoring or nothing. ``group``: group_left, group_right or nothing."""

    sign: str
    left: Expression
    right: Expression
    word: str = ""
    labels: tuple[str, ...] = ()
    group: str = ""
    included: tuple[str, ...] = ()


Expression: TypeAlias = Selector | Number | Call | Aggregation | Binary


def parse(text: str) -> Expression:
    """The expression. Raises NotPromQL."""
    return _Reader(text).whole()


def selectors(expression: Expression) -> Iterator[Selector]:
    """All selectors in an expression."""
    if isinstance(expression, Selector):
        yield expression
    elif isinstance(expression, Call | Aggregation):
        for argument in expression.arguments:
            yield from selectors(argument)
    elif isinstance(expression, Binary):
        yield from selectors(expression.left)
        yield from selectors(expression.right)


class _Reader:
    """Recursive descent over the tokens."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        end = len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise NotPromQL(f"not understood from {text[at : at + 20]!r}")
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        self._at = 0

    def whole(self) -> Expression:
        made = self._operators(0)
        if self._at < len(self._tokens):
            raise NotPromQL(f"{self._next()!r} is too much")
        return made

    def _next(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        """The next token, which must be one of ``wanted``, or of that kind."""
        if self._next().lower() not in wanted and self._kind() not in wanted:
            raise NotPromQL(f"{self._next()!r} where {' or '.join(wanted)} is wanted")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _operators(self, strength: int) -> Expression:
        if strength == len(OPERATORS):
            return self._signed()
        left = self._operators(strength + 1)
        while self._kind() in ("name", "sign") and self._next().lower() in OPERATORS[strength]:
            sign = self._take(*OPERATORS[strength]).lower()
            if self._next() == "bool":
                self._take("bool")
            word, labels, group, included = self._matching()
            # ^ alone is right-associative.
            right = self._operators(strength if sign == "^" else strength + 1)
            left = Binary(sign, left, right, word, labels, group, included)
        return left

    def _matching(self) -> tuple[str, tuple[str, ...], str, tuple[str, ...]]:
        word, group = "", ""
        labels: tuple[str, ...] = ()
        included: tuple[str, ...] = ()
        if self._next() in ("on", "ignoring"):
            word, labels = self._take("on", "ignoring"), self._labels()
            if self._next() in ("group_left", "group_right"):
                group = self._take("group_left", "group_right")
                included = self._labels() if self._next() == "(" else ()
        return word, labels, group, included

    def _labels(self) -> tuple[str, ...]:
        return self._list(lambda: self._take("name"))

    def _list(self, item: Callable[[], T]) -> tuple[T, ...]:
        found: list[T] = []
        self._take("(")
        while self._next() != ")":
            found.append(item())
            if self._next() != ")":
                self._take(",")
        self._take(")")
        return tuple(found)

    def _signed(self) -> Expression:
        if self._next() in ("-", "+"):
            self._take("-", "+")
            # -2^2 is -(2^2).
            return Binary("-", Number("0"), self._operators(len(OPERATORS) - 1))
        return self._ranged(self._atom())

    def _ranged(self, made: Expression) -> Expression:
        """[5m], [1h:1m], offset 5m, @ 1609746000: none of them changes which labels there are."""
        while self._next() in ("[", "offset", "@"):
            if self._take("[", "offset", "@") == "[":
                self._take("duration")
                if self._next() == ":":
                    self._take(":")
                    if self._kind() == "duration":
                        self._take("duration")
                self._take("]")
            else:
                if self._next() == "-":
                    self._take("-")
                if self._next() in ("start", "end"):
                    self._take("start", "end")
                    self._list(lambda: self._take("name"))
                else:
                    self._take("duration", "number")
        return made

    def _atom(self) -> Expression:
        if self._kind() in ("number", "string", "duration"):
            return Number(self._take("number", "string", "duration"))
        if self._next() == "(":
            self._take("(")
            made = self._operators(0)
            self._take(")")
            return made
        if self._next() == "{":
            return Selector("", self._matchers())
        name = self._take("name")
        if name in AGGREGATIONS and self._next() in ("(", "by", "without"):
            return self._aggregation(name)
        if self._next() == "(":
            return Call(name, self._list(lambda: self._operators(0)))
        return Selector(name, self._matchers() if self._next() == "{" else ())

    def _aggregation(self, name: str) -> Aggregation:
        word = ""
        labels: tuple[str, ...] = ()
        if self._next() in ("by", "without"):
            word, labels = self._take("by", "without"), self._labels()
        arguments = self._list(lambda: self._operators(0))
        if self._next() in ("by", "without"):
            word, labels = self._take("by", "without"), self._labels()
        return Aggregation(name, word, labels, arguments)

    def _matchers(self) -> tuple[Matcher, ...]:
        found = []
        self._take("{")
        while self._next() != "}":
            label, sign = self._take("name"), self._take("=", "!=", "=~", "!~")
            found.append(Matcher(label, sign, self._take("string")[1:-1]))
            if self._next() != "}":
                self._take(",")
        self._take("}")
        return tuple(found)


class Labels:
    """Follows labels through an expression. ``of``: those that a metric has, None for one that was never seen.

    ``faults`` is what was found: unknown metrics, and labels that are asked for where there are none.
    """

    def __init__(self, of: Callable[[str], frozenset[str] | None]) -> None:
        self._of = of
        self.faults: list[str] = []

    def through(self, expression: Expression) -> frozenset[str]:
        """The labels that the result can have."""
        if isinstance(expression, Selector):
            return self._selected(expression)
        if isinstance(expression, Call):
            return self._called(expression)
        if isinstance(expression, Aggregation):
            return self._aggregated(expression)
        if isinstance(expression, Binary):
            return self._combined(expression)
        return frozenset()

    def _missing(self, labels: tuple[str, ...], there: frozenset[str], where: str) -> None:
        for label in labels:
            if label not in there:
                self.faults.append(f"unused label {label!r} in {where}")

    def _selected(self, selector: Selector) -> frozenset[str]:
        name = selector.name or next((m.value for m in selector.matchers if m.label == "__name__"), "")
        labels = self._of(name)
        if labels is None:
            self.faults.append(f"unknown metric {name!r}")
            return frozenset(matcher.label for matcher in selector.matchers)
        self._missing(
            tuple(matcher.label for matcher in selector.matchers if matcher.label != "__name__"), labels, name
        )
        return labels

    def _called(self, call: Call) -> frozenset[str]:
        found = [self.through(argument) for argument in call.arguments]
        labels = frozenset().union(*found)
        if call.name == "histogram_quantile":
            self._missing(("le",), labels, call.name)
            return labels - {"le"}
        if call.name in ("label_replace", "label_join"):
            texts = [argument.text[1:-1] for argument in call.arguments if isinstance(argument, Number)]
            sources = texts[2:3] if call.name == "label_replace" else texts[2:]
            self._missing(tuple(sources), labels, call.name)
            return labels | {texts[0]}
        if call.name in ("scalar", "time", "vector", "absent", "absent_over_time"):
            return frozenset()
        return labels

    def _aggregated(self, made: Aggregation) -> frozenset[str]:
        inner = self.through(made.arguments[-1])
        self._missing(made.labels, inner, f"{made.name} {made.word}")
        if made.name in PICKING:
            return inner
        return inner - set(made.labels) if made.word == "without" else inner & set(made.labels)

    def _combined(self, made: Binary) -> frozenset[str]:
        left, right = self.through(made.left), self.through(made.right)
        if not any(True for _ in selectors(made.left)):
            return right
        if not any(True for _ in selectors(made.right)):
            return left
        if made.word == "on":
            self._missing(made.labels, left, f"on, left of {made.sign}")
            self._missing(made.labels, right, f"on, right of {made.sign}")
        if made.word == "ignoring":
            self._missing(made.labels, left | right, "ignoring")
        if made.sign == "or":
            return left | right
        if made.sign in ("and", "unless"):
            return left
        if made.group:
            many, one = (left, right) if made.group == "group_left" else (right, left)
            self._missing(made.included, one, made.group)
            return many | set(made.included)
        if made.word == "on":
            return left & set(made.labels)
        return left - set(made.labels) if made.word == "ignoring" else left
