"""Which inputs' traces an agent's calls carry to the cloud."""

from __future__ import annotations

from typing import Any

from edgemux.edge.spans import MOST_ROWS, carried, of_rows
from edgemux.edge.together import Row
from edgemux.wire.tracing import Unrecorded

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_several_inputs_in_a_call_go_under_the_first_one_that_is_recorded() -> None:
    first, second, linked = Recorded("a"), Recorded("b"), Unrecorded()
    assert carried([None, linked, first, second]) == (("traceparent", "a"),)
    assert second.links == [first]
    assert first.links == []
    assert carried([None, None]) == ()
    assert carried([linked]) == linked.headers
    assert Row(None, 0.0).trace is None


def test_rows_beyond_the_first_ones_of_a_large_request_are_not_recorded() -> None:
    trace = Recorded(f"00-{TRACE}-{SPAN}-01")
    assert of_rows(None, 3) == [None] * 3
    assert of_rows(trace, MOST_ROWS) == [trace] * MOST_ROWS
    many = of_rows(trace, 100)
    assert len(many) == 100
    rest = many[-1]
    assert rest is not None
    assert not rest.recording
    assert rest.headers == (("traceparent", f"00-{TRACE}-{SPAN}-00"),)


class Recorded(Unrecorded):
    """A trace that a test looks at."""

    recording = True

    def __init__(self, header: str) -> None:
        super().__init__()
        self._header = header
        self.links: list[Any] = []

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("traceparent", self._header),)

    def link(self, other: Any) -> None:
        self.links.append(other)
