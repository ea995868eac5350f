"""Recipes: what is wrong in one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemux.compression import recipe
from edgemux.multiplexer.errors import ConfigError


def load(text: str, folder: Path) -> recipe.Recipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return recipe.load(path)


def test_the_committed_recipe_loads(recipe_path: Path) -> None:
    plan = recipe.load(recipe_path)
    assert plan.name == "fashion-mnist"
    assert plan.family.levels == 4


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed = ", "sede = 1\nseed = ", "sede"),
        ("held_out = 5000", "held_out = 0", "held_out"),
        ("blocks = [1, 2]", "blocks = [1, 2, 3]", "blocks"),
        ("label_smoothing = 0.05", "label_smoothing = 1.5", "label_smoothing"),
        ("delta = 0.1", 'delta = "small"', "delta"),
        ("epochs = 30", "epoch = 30", "epoch"),
        ("conv1 = [6, 12, 20, 32]", "conv1 = [6, 12, 20, 20]", "conv1"),
        ("conv2 = [8, 16, 32, 48]", "conv2 = [8, 16, 32]", "conv2"),
        ("loss_weights = [", "loss_weights = [9.0, ", "loss_weights"),
        ('static_int8 = "measure"', 'static_int8 = "maybe"', "static_int8"),
        ('name = "fashion-mnist"', 'name = "../etc"', "name"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(
    recipe_text: str, tmp_path: Path, old: str, new: str, named: str
) -> None:
    assert old in recipe_text
    with pytest.raises(ConfigError, match=named):
        load(recipe_text.replace(old, new, 1), tmp_path)


def test_a_missing_section_is_refused_by_name(recipe_text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pack"):
        load(recipe_text[: recipe_text.index("[pack]")], tmp_path)


def test_what_is_no_toml_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TOML"):
        load("name = [", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load(tmp_path / "absent.toml")


def test_the_quick_form_keeps_the_nets_and_shrinks_the_work(recipe_path: Path) -> None:
    plan = recipe.load(recipe_path)
    small = recipe.quick(plan)
    assert small.cloud.widths == plan.cloud.widths
    assert small.family.conv4 == plan.family.conv4
    assert small.data.limit is not None
    assert small.cloud.schedule.epochs < plan.cloud.schedule.epochs


def test_a_digest_changes_with_any_value_and_with_nothing_else(recipe_path: Path) -> None:
    plan = recipe.load(recipe_path)
    assert recipe.digest(plan) == recipe.digest(recipe.load(recipe_path))
    assert recipe.digest(plan) != recipe.digest(recipe.quick(plan))
