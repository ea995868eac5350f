"""The dashboards' colours, measured: contrast against both themes, and how far apart they are for everybody."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.grafana import palette

COLOURS = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.RED, palette.PINK, palette.SKY, palette.GREY)
# Linear RGB as it is seen with no cones of one kind: Machado, Oliveira and Fernandes, 2009, severity 1.
SIGHTS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# sRGB's primaries in XYZ, and its white.
XYZ = np.array([[0.412456, 0.357576, 0.180437], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])
WHITE = XYZ.sum(axis=1)
# Of CIE 1976 L*a*b*: about 2 can just be told from each other side by side, 15 as thin lines with others between.
FAR = 15.0
CONTRAST = 3.0


def linear(colour: str) -> NDArray[np.float64]:
    """#RRGGBB to linear RGB, FP64 [3]."""
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    return float(XYZ[1] @ linear(colour))


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear RGB to L*a*b*, FP64 [3]."""
    ratios = XYZ @ np.clip(rgb, 0.0, 1.0) / WHITE
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("background", [palette.LIGHT, palette.DARK])
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_stands_out_from_either_theme(colour: str, background: str) -> None:
    dark, light = sorted((luminance(colour), luminance(background)))
    assert (light + 0.05) / (dark + 0.05) >= CONTRAST


@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_colours_stay_apart_for_everybody(sight: str) -> None:
    seen = {colour: lab(SIGHTS[sight] @ linear(colour)) for colour in COLOURS}
    near = {
        pair: distance
        for pair in itertools.combinations(COLOURS, 2)
        if (distance := float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))) < FAR
    }
    assert not near


def test_red_and_green_as_they_are_often_used_would_not_pass() -> None:
    pure = [lab(SIGHTS["deuteranopia"] @ linear(colour)) for colour in ("#C4162A", "#8A6D00")]
    assert np.linalg.norm(pure[0] - pure[1]) < FAR


TOGETHER = (
    *(palette.ROUTES, palette.AUDITS, palette.CALLS, palette.OUTCOMES, palette.REFUSALS, palette.STAGES),
    *(palette.BUDGETS, palette.VARIANTS, palette.AGENT_REFUSALS, palette.STANDINGS, palette.CAUSES),
    palette.DIRECTIONS,
)


@pytest.mark.parametrize("colours", TOGETHER)
def test_what_is_drawn_together_has_colours_of_its_own(colours: Mapping[str, str]) -> None:
    assert len(set(colours.values())) == len(colours)
    assert set(colours.values()) <= set(COLOURS)


def test_the_states_of_a_breaker_have_words_and_colours_of_their_own() -> None:
    for states in (palette.BREAKER, palette.STANDING, palette.YES_NO, palette.SCRAPED, palette.CHOSEN):
        words, colours = zip(*states.values(), strict=True)
        assert len(set(words)) == len(set(colours)) == len(states)
