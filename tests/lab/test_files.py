"""Reading arrays that may be larger than memory, and refusing what is not an array of answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from edgemux.multiplexer.errors import InputError
from edgemux.multiplexer.lab.files import array_of, arrays_of
from edgemux.multiplexer.lab.pairs import CERTIFY, FIT, SavedLogits, Splits, draw, splits_of
from edgemux.multiplexer.lab.rows import log_probabilities, tiles_of


def read(path: Path) -> Splits:
    return splits_of(SavedLogits(path), 0, lambda done: None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_rows_asked_for_come_in_order_whether_packed_or_not(tmp_path: Path, save) -> None:
    table = np.arange(3000.0).reshape(1000, 3)
    save(tmp_path / "a.npz", other=np.zeros(7), table=table)
    stored = arrays_of(tmp_path / "a.npz")["table"]
    wanted = np.array([0, 5, 6, 499, 998])
    assert stored.shape == (1000, 3)
    assert np.array_equal(np.concatenate(list(stored.stretches(wanted, 2))), table[wanted])


def test_an_npy_file_is_read_as_well(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12).reshape(6, 2))
    assert next(array_of(tmp_path / "a.npy").stretches(np.array([1, 4]), 8)).tolist() == [[2, 3], [8, 9]]


def test_a_file_cut_short_is_said_to_be(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5000, 10)))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[: len(whole) // 2])
    stored = array_of(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"a\.npy: the file is damaged or ends early"):
        list(stored.stretches(np.array([4999]), 1))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", edge_logits=np.array([{"a": 1}], dtype=object), cloud_logits=np.zeros(1))
    with pytest.raises(InputError, match="edge_logits: holds object, not numbers"):
        SavedLogits(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cloud_logits": np.zeros((300, 9))}, r"cloud_logits: has the shape \[300, 9\], edge_logits \[300, 10\]"),
        ({"edge_logits": np.zeros(300)}, r"edge_logits: has the shape \[300\], not \[rows, classes\]"),
        ({"edge_logits": np.zeros((300, 1))}, "with 2 classes or more"),
        ({"labels": np.zeros(299, int)}, r"labels: has the shape \[299\], not \[300\]: one for each row"),
        ({"labels": np.zeros(300)}, "labels: holds float64, not whole numbers"),
        ({"labels": np.full(300, 10)}, "labels: row 0 is 10, not one of 0 to 9"),
        ({"labels": np.full(300, -1)}, "labels: row 0 is -1, not one of 0 to 9"),
        ({"inputs": np.zeros(300)}, r"inputs: has the shape \[300\], not \[300, ...\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, make_pair, change: dict, message: str) -> None:
    np.savez(tmp_path / "a.npz", **(make_pair(300) | change))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(tmp_path: Path, make_pair, value: float) -> None:
    pair = make_pair(300)
    pair["cloud_logits"][17, 3] = value
    np.savez(tmp_path / "a.npz", **pair)
    with pytest.raises(InputError, match="cloud_logits: row 17 holds a value that is not finite"):
        read(tmp_path / "a.npz")


def test_a_missing_array_is_named_with_what_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", logits=np.zeros((300, 10)))
    with pytest.raises(InputError, match="edge_logits: not in the archive, which has logits"):
        SavedLogits(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"not an \.npz archive"):
        SavedLogits(tmp_path / "b.npz")
    with pytest.raises(InputError, match="no such file"):
        SavedLogits(tmp_path / "c.npz")


def test_too_few_rows_are_refused_with_the_least_number(tmp_path: Path, make_pair) -> None:
    np.savez(tmp_path / "a.npz", **make_pair(199))
    with pytest.raises(InputError, match="rows: 199 are too few: the lab needs at least 200"):
        read(tmp_path / "a.npz")


def test_the_splits_share_no_row_and_of_millions_only_a_sample_is_looked_at() -> None:
    index, split = draw(10_000_000, 0)
    assert len(np.unique(index)) == len(index) == 400_000
    assert (np.diff(index) > 0).all()
    assert (split == FIT).sum() == (split == CERTIFY).sum() == 100_000


def test_rows_keep_the_same_meaning_with_few_and_with_thousands_of_classes(tmp_path: Path, make_pair) -> None:
    for classes in (2, 10, 3000):
        np.savez(tmp_path / "a.npz", **make_pair(400, classes))
        splits = read(tmp_path / "a.npz")
        seen = splits.fit.seen
        assert seen is not None
        whole = np.exp(splits.fit.logs.astype(float)).sum(axis=1)
        whole += (classes - splits.fit.logs.shape[1]) * np.exp(splits.fit.rest.astype(float))
        assert np.allclose(whole, 1.0, atol=1e-4)
        assert splits.fit.features.shape[1] < 150
        assert np.allclose(np.exp(seen.cloud.astype(float)).sum(axis=1), 1.0, atol=1e-2)


def test_probabilities_are_taken_for_what_they_are() -> None:
    p = np.array([[0.2, 0.8], [0.5, 0.5]])
    assert np.allclose(np.exp(log_probabilities(p)), p)
    assert np.allclose(np.exp(log_probabilities(np.log(p) + 3.0)), p)


@pytest.mark.parametrize(
    "shape", [(5, 3), (5, 28, 28), (5, 31, 17), (5, 3, 40, 40), (5, 40, 40, 3), (5, 900), (5, 2, 4)]
)
def test_any_input_is_made_small(shape: tuple[int, ...]) -> None:
    small = tiles_of(np.full(shape, 3, np.uint8))
    assert small.shape[0] == 5
    assert small.shape[1] <= 64
    assert np.allclose(small, 3.0)
