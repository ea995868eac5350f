"""What the agent remembers over a restart, and what it makes of a disk that lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.store import FILE, Store

TOKENS = {"offloads/day": 3.5}


def stopped(folder: Path) -> None:
    """An agent has run here and stopped in order."""
    store = Store(folder)
    store.begin()
    store.end(TOKENS)


def test_where_no_agent_has_ever_run_budgets_are_full(tmp_path: Path) -> None:
    assert Store(tmp_path / "new").begin() is None


def test_after_an_orderly_stop_they_are_what_they_were(tmp_path: Path) -> None:
    stopped(tmp_path)
    assert Store(tmp_path).begin() == TOKENS
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_after_a_crash_they_are_empty_however_often_it_crashes(tmp_path: Path) -> None:
    Store(tmp_path).begin()
    for _ in range(3):
        assert Store(tmp_path).begin() == {}


def test_without_a_folder_they_are_empty_and_nothing_is_written() -> None:
    store = Store(None)
    assert store.begin() == {}
    assert not store.works
    store.end(TOKENS)


def test_a_folder_that_cannot_be_written_empties_them_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "state")
    assert store.begin() == {}
    assert not store.works
    store.end(TOKENS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_leaves_no_half_file_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "budgets.new").symlink_to("/dev/full")
    store = Store(tmp_path)
    assert store.begin() == {}
    assert not store.works
    assert not (tmp_path / FILE).exists()


@given(st.data())
def test_a_file_that_was_cut_short_or_damaged_means_empty(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("state")
    stopped(folder)
    content = bytearray((folder / FILE).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / FILE).write_bytes(bytes(content))
    assert Store(folder).begin() == {}
