"""Products of signs: the C kernel and numpy answer what the dense product answers; none of it needs torch."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.compression.quantize import xnor
from edgemux.compression.quantize.xnor import SignMatrix, packed_signs

has_compiler = shutil.which("cc") is not None
WAYS = [False, pytest.param(True, marks=pytest.mark.skipif(not has_compiler, reason="no C compiler"))]


def dense(weight: Any, x: Any) -> Any:
    return np.where(x >= 0, 1, -1) @ np.where(weight >= 0, 1, -1).T


@pytest.mark.parametrize("compiled", WAYS)
@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 300), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_products_are_exact_for_any_size(compiled: bool, rows: int, count: int, inputs: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    weight, x = (draw.integers(-2, 3, (size, count)).astype(np.float32) for size in (rows, inputs))
    matrix = SignMatrix(weight, compiled)
    found = matrix.times(x)
    assert found.dtype == np.int32
    assert np.array_equal(found, dense(weight, x))
    assert matrix.nbytes == rows * 8 * -(-count // 64)


@pytest.mark.parametrize("compiled", WAYS)
def test_one_vector_and_inputs_that_are_not_contiguous(compiled: bool) -> None:
    draw = np.random.default_rng(1)
    weight = draw.normal(size=(5, 130)).astype(np.float32)
    x = np.asfortranarray(draw.normal(size=(4, 260)).astype(np.float32))[:, ::2]
    matrix = SignMatrix(weight, compiled)
    assert np.array_equal(matrix.times(x), dense(weight, x))
    assert np.array_equal(matrix.times(x[0]), dense(weight, x[:1])[0])
    with pytest.raises(ValueError, match="130 columns"):
        matrix.times(x[:, :-1])


@pytest.mark.parametrize("compiled", WAYS)
def test_zero_counts_as_positive_and_nan_as_negative_whatever_its_sign(compiled: bool) -> None:
    x = np.array([0.0, -0.0, np.nan, -np.nan, 1e-40, -1e-40] * 12, np.float32)
    eye = np.where(np.eye(72), 1, -1).astype(np.float32)
    assert np.array_equal(SignMatrix(eye, compiled).times(x), dense(eye, x))


def test_numpy_before_2_counts_by_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    draw = np.random.default_rng(2)
    weight, x = draw.normal(size=(7, 100)), draw.normal(size=(3, 100))
    assert np.array_equal(SignMatrix(weight, False).times(x), dense(weight, x))


def test_features_are_bits_from_the_lowest() -> None:
    x = np.full(70, -1.0, np.float32)
    x[[0, 65]] = 1.0
    assert packed_signs(x).tolist() == [1, 2]


@pytest.mark.skipif(not has_compiler, reason="no C compiler")
def test_the_kernel_is_compiled_once_into_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = xnor._built()
    assert path.parent == tmp_path / "edgemux" / "kernels"
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setenv("CC", "no-such-compiler")
    assert xnor._built() == path


def test_without_a_compiler_numpy_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(xnor, "kernel", xnor.kernel.__wrapped__)
    weight = np.random.default_rng(3).normal(size=(4, 65))
    assert np.array_equal(SignMatrix(weight).times(weight), dense(weight, weight))
    with pytest.raises(OSError, match="no C compiler"):
        SignMatrix(weight, compiled=True)


def test_the_source_of_the_kernel_is_in_the_package_and_short() -> None:
    source = resources.files("edgemux.compression.quantize").joinpath("xnor.c").read_text()
    assert len(source.splitlines()) <= 100
