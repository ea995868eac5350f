"""Recipes of passes are values: text, list and TOML are one thing, and what is wrong is named."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.errors import ConfigError

pytest.importorskip("torch")
from edgemux.compression.pass_recipe import PassRecipe, Step, split_outside
from edgemux.compression.prune.channels import Prune
from edgemux.compression.quantize.int8 import Int8
from edgemux.compression.retrain import Finetune

STEPS = st.one_of(
    st.builds(
        Prune,
        criterion=st.sampled_from(["lasso", "thinet", "l1", "random"]),
        ratio=st.floats(0.01, 0.99),
        round_to=st.integers(0, 64),
        refit=st.booleans(),
    ),
    st.builds(Int8, calibration=st.integers(1, 1000), method=st.sampled_from(["minmax", "percentile", "entropy"])),
    st.builds(Finetune, epochs=st.floats(0.01, 1000.0), rate=st.floats(1e-9, 10.0)),
)


@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=4))
def test_a_recipe_reads_back_from_its_text(steps: list[tuple[Any, bool]]) -> None:
    recipe = PassRecipe(tuple(Step(what, forced) for what, forced in steps))
    if steps:
        again = PassRecipe.of(str(recipe))
        assert again == recipe
        assert hash(again) == hash(recipe)
    assert [len(prefix.steps) for prefix in recipe.prefixes()] == list(range(1, len(steps) + 1))


def test_text_list_and_toml_are_the_same_recipe(tmp_path: Path) -> None:
    text = PassRecipe.of("prune(thinet, 0.5, refit=false) > finetune(epochs=2) > int8!")
    listed = PassRecipe.of(
        [
            {"pass": "prune", "criterion": "thinet", "ratio": 0.5, "refit": False},
            Finetune(epochs=2),
            {"pass": "int8", "force": True},
        ]
    )
    path = tmp_path / "small.toml"
    path.write_text('passes = ["prune(thinet, refit=false)", {pass = "finetune", epochs = 2}, "int8!"]')
    assert text == listed == PassRecipe.of(path)
    assert str(text) == "prune(criterion=thinet, refit=false) > finetune(epochs=2.0) > int8!"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("prun(0.5)", "no pass 'prun'; there are .*finetune.*prune"),
        ("prune(ratio=0.5, share=1)", "prune has no parameter 'share'; it has criterion, ratio, round_to, refit"),
        ("prune(lasso, 1.5)", "prune: Expected `float` < 1.0"),
        ("prune(magic)", "prune: Invalid enum value 'magic'"),
        ("prune(lasso, 0.5, 1, true, 5)", "at most 4 parameters: criterion"),
        ("prune(lasso, criterion=l1)", "gets 'criterion' twice"),
        ("prune(ratio=0.5, ratio=0.6)", "gets 'ratio' twice"),
        ("prune(ratio=0.5, lasso)", "'lasso' must come before the named"),
        ("prune(lasso", "is not a pass"),
        ("prune(lasso, 0.5)) > int8", "is not a pass|no number"),
        ("prune(@)", "'@' is no number"),
        ("", "lacks a pass"),
        ("prune > > int8", "lacks a pass"),
        ([3], "3 is no pass"),
        ([{"ratio": 0.5}], "a table names its pass"),
        ([{"pass": "int8", "force": "yes"}], "a table names its pass"),
    ],
)
def test_what_is_wrong_is_named_and_what_is_allowed_is_listed(recipe: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PassRecipe.of(recipe)


@pytest.mark.parametrize("content", ["passes = 3", "other = []", "passes = [", 'passes = ["int8"]\nmore = 1'])
def test_a_toml_file_of_another_kind_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        PassRecipe.of(path)


def test_a_toml_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        PassRecipe.of(tmp_path / "none.toml")


@given(st.text(alphabet="ab>,()\"' ", max_size=30), st.sampled_from([">", ","]))
def test_splitting_loses_no_character(text: str, separator: str) -> None:
    assert separator.join(split_outside(text, separator)) == text


def test_any_text_gives_a_recipe_or_a_config_error() -> None:
    @given(st.text(max_size=40))
    def attempt(text: str) -> None:
        with contextlib.suppress(ConfigError):
            PassRecipe.of(text)

    attempt()
