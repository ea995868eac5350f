"""Which shape is run for a batch; the recording itself needs a CUDA device and is in test_torch_backend."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgemux.cloud.torch_graphs import MOST_FILLED_UP, filled_up


@given(st.integers(1, 2000), st.lists(st.integers(1, 9), max_size=3))
def test_a_batch_is_filled_up_to_less_than_twice_its_rows_and_large_ones_stay(rows: int, rest: list[int]) -> None:
    sizes = filled_up((rows, *rest), rows)
    assert sizes[1:] == tuple(rest)
    assert rows <= sizes[0] < 2 * rows
    if rows > MOST_FILLED_UP:
        assert sizes[0] == rows
    else:
        assert sizes[0].bit_count() == 1


def test_what_has_no_batch_stays_as_it_is() -> None:
    assert filled_up((3, 5), 0) == (3, 5)
