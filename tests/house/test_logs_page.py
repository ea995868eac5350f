"""docs/logs-and-traces.md has every event, field, span and attribute that there is, and no other."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgemux.cloud.events import CLOUD_EVENTS
from edgemux.edge.events import EDGE_EVENTS
from edgemux.edge.spans import MOST_ROWS
from edgemux.wire.events import MOST_CHARACTERS, WIRE_EVENTS, Event
from edgemux.wire.log_format import BURST, EVERY_S
from edgemux.wire.otel import EXPORT_S, MOST_WAITING
from edgemux.wire.stderr import MOST_WAITING as MOST_LINES
from edgemux.wire.tracing import Attribute, Stage

PAGE = (Path(__file__).parents[2] / "docs" / "logs-and-traces.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    below = PAGE.split(f"\n{heading}\n")[1]
    table = re.search(r"(?:^\|.*\|$\n)+", below, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


@pytest.mark.parametrize(
    ("heading", "events"),
    [("### Both servers", WIRE_EVENTS), ("### The agent", EDGE_EVENTS), ("### The cloud", CLOUD_EVENTS)],
)
def test_the_tables_of_events_are_the_closed_set(heading: str, events: Sequence[type[Event]]) -> None:
    told = [
        [
            f"`{event.name}`",
            logging.getLevelName(event.level).lower(),
            ", ".join(f"`{field}`" for field in event.__struct_fields__),
            " ".join((event.__doc__ or "").split()),
        ]
        for event in events
    ]
    assert rows(heading) == told


def test_the_table_of_spans_has_every_span_and_attribute() -> None:
    table = rows("## Traces")
    assert {row[0].strip("`") for row in table} == {stage.value for stage in Stage}
    named = {f"edgemux.{word}" for row in table for word in re.findall(r"`(\w+)`", row[4])}
    assert named == {each.value for each in Attribute}


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert (BURST, EVERY_S, MOST_ROWS) == (10, 5.0, 8)  # in words on the page
    for said in (f"{MOST_CHARACTERS} characters", f"{MOST_LINES:,} lines wait", f"a queue of {MOST_WAITING:,}"):
        assert said in text
    assert f"within {EXPORT_S:g} s" in text
