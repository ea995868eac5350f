"""What the demo tells its agent about the splits of a bundle, and whoever watches."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from edgemux.cli.part_ways import MOST_LOST, part_ways
from edgemux.edge.split_planning import SplitSettings, usable_splits
from edgemux.multiplexer.bundle import Bundle, Manifest, splits_of
from tests.split_bundle import COARSE, DEEP, EXACT


def losing(folder: Path, *points: float) -> Manifest:
    """The manifest with its splits so much worse than the cloud's model, on very many inputs."""
    manifest = Bundle.open(folder).manifest
    splits = tuple(
        msgspec.structs.replace(split, accuracy=manifest.cloud.accuracy - lost / 100, changed=0.01, n=10**9)
        for split, lost in zip(splits_of(manifest), points, strict=True)
    )
    return msgspec.structs.replace(manifest, splits=splits)


def settings(text: str) -> SplitSettings:
    return msgspec.convert(tomllib.loads(text)["split"], SplitSettings)


def test_the_agent_may_use_exactly_those_splits_that_are_told(split_bundle: Path) -> None:
    manifest = losing(split_bundle, 2.0, 2.0, 1.0)
    ways = part_ways(manifest)
    assert ways is not None and ways.names == (EXACT, COARSE, DEEP) and not ways.default
    assert usable_splits(manifest, SplitSettings()) == ()
    assert usable_splits(manifest, settings(ways.settings())) == splits_of(manifest)
    assert "up to 2.1 points" in ways.told() and "of 784" in ways.told() and "allows 1." in ways.told()


def test_splits_that_lose_little_need_nothing_and_nothing_is_said_of_a_limit(split_bundle: Path) -> None:
    ways = part_ways(losing(split_bundle, 0.5, 0.0, 0.1))
    assert ways is not None and ways.default
    assert settings(ways.settings()).max_loss == SplitSettings().max_loss
    assert "max_loss" not in ways.told()


def test_splits_that_lose_much_are_left_out_and_a_bundle_without_any_has_none(
    tiny_bundle: Path, split_bundle: Path
) -> None:
    assert part_ways(losing(split_bundle, *[100 * MOST_LOST] * 3)) is None
    assert part_ways(Bundle.open(tiny_bundle).manifest) is None
    ways = part_ways(losing(split_bundle, 0.0, 2.0, 20.0))
    assert ways is not None and ways.names == (EXACT, COARSE) and ways.max_loss < 0.03
