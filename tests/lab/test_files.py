"""Reading arrays that may be larger than memory, and refusing what is not an array of answers."""

from __future__ import annotations

import io
import zipfile
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
    stored = arrays_of(tmp_path / "a.npz", ["table"])["table"]
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
    with pytest.raises(InputError, match=r"a\.npy: the file is damaged or ends early"):
        array_of(tmp_path / "a.npy")


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


def test_what_the_first_rows_are_all_rows_are(tmp_path: Path, make_pair) -> None:
    pair = make_pair(6000, classes=2)
    p = np.exp(log_probabilities(pair["edge_logits"])).astype(np.float64)
    p[-5:] *= 0.9  # as rounding does to some rows, which makes no logits of them
    np.savez(tmp_path / "a.npz", **(pair | {"edge_logits": p}))
    rounded = read(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **(pair | {"edge_logits": np.log(p)}))
    assert np.allclose(rounded.test.logs, read(tmp_path / "a.npz").test.logs, atol=1e-4)
    p[-5:] = -1.0
    np.savez(tmp_path / "a.npz", **(pair | {"edge_logits": p}))
    with pytest.raises(InputError, match=r"edge_logits: row 599[5-9] is below 0, and the rows before it add up to 1"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i2"])
def test_rows_come_in_the_machine_s_own_byte_order(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(3, 2).astype(kind))
    taken = next(array_of(tmp_path / "a.npy").stretches(np.array([1, 2]), 8))
    assert taken.dtype.isnative
    assert taken.tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize("shape", [(-4, 2), (10**13, 2)])
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(64))
    with pytest.raises(InputError, match="the file is damaged or ends early"):
        array_of(tmp_path / "a.npy")


def test_a_damaged_archive_of_any_compression_is_said_to_be(tmp_path: Path, make_pair) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            for name, array in make_pair(300).items():
                content = io.BytesIO()
                np.save(content, array)
                archive.writestr(f"{name}.npy", content.getvalue())
        bent = bytearray((tmp_path / "a.npz").read_bytes())
        bent[400:9000:97] = bytes(len(range(400, 9000, 97)))
        (tmp_path / "a.npz").write_bytes(bent)
        with pytest.raises(InputError, match=r"damaged or ends early|not an array|not finite"):
            read(tmp_path / "a.npz")
