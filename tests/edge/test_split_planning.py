"""Which way is taken to the cloud, as pure functions: what may be used, what the link is, what is chosen."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.split_planning import SplitChoice, SplitSettings, link_of, split_way, usable_splits, whole_ways
from edgemux.multiplexer.bundle import Bundle, Manifest, Payload
from edgemux.multiplexer.planner import Conditions
from tests.split_stand import GOING_ON, PLAIN, split_of

QUICK = Conditions(0.001, math.inf)
SLOW = Conditions(0.02, 2000.0)
READY = (PLAIN, GOING_ON)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    plain = Bundle.open(tiny_bundle).manifest
    splits = split_of(PLAIN, 0, plain.cloud.accuracy), split_of(GOING_ON, 2, plain.cloud.accuracy)
    return msgspec.structs.replace(plain, splits=splits)


def choice_of(manifest: Manifest, whole: bool = True) -> SplitChoice:
    splits = usable_splits(manifest, SplitSettings())
    return SplitChoice(manifest, splits, whole_ways(manifest, (), 984.0) if whole else ())


def test_what_loses_too_much_or_was_looked_at_too_seldom_is_not_used(manifest: Manifest) -> None:
    def changed(**changes: float) -> Manifest:
        splits = tuple(msgspec.structs.replace(each, **changes) for each in usable_splits(manifest, SplitSettings()))
        return msgspec.structs.replace(manifest, splits=splits)

    assert len(usable_splits(manifest, SplitSettings(max_loss=0.001))) == 2
    assert usable_splits(manifest, SplitSettings(use="off")) == ()
    assert usable_splits(changed(accuracy=manifest.cloud.accuracy - 0.02), SplitSettings()) == ()
    assert usable_splits(changed(n=100), SplitSettings()) == ()
    assert len(usable_splits(changed(n=100), SplitSettings(max_loss=0.1))) == 2


def test_a_bundle_without_splits_has_none_that_may_be_used(tiny_bundle: Path) -> None:
    assert usable_splits(Bundle.open(tiny_bundle).manifest, SplitSettings()) == ()


def test_the_whole_input_is_sent_until_the_link_is_known_and_on_a_quick_one(manifest: Manifest) -> None:
    choice = choice_of(manifest)
    assert choice.choose(0, READY, None) is None
    assert choice.choose(0, READY, QUICK) is None
    assert choice.choose(0, READY, SLOW) == PLAIN
    assert choice.choose(0, READY, None) == PLAIN, "what was chosen stays while nothing is known"
    choice.forget()
    assert choice.choose(0, READY, None) is None


def test_a_level_that_has_run_makes_what_goes_on_from_it_the_cheaper_one(manifest: Manifest) -> None:
    going_on = next(each for each in usable_splits(manifest, SplitSettings()) if each.name == GOING_ON)
    ways = [split_way(manifest, going_on, reached) for reached in range(5)]
    assert [way.device_s for way in ways] == sorted((way.device_s for way in ways), reverse=True)
    assert ways[2].device_s == ways[4].device_s == pytest.approx(going_on.head_ms / 1000)
    assert ways[0].device_s == pytest.approx((going_on.head_ms + manifest.levels[1].median_ms) / 1000)


def test_without_the_whole_input_there_is_always_a_split_and_without_splits_there_is_none(manifest: Manifest) -> None:
    choice = choice_of(manifest, whole=False)
    assert not choice.has_whole
    for conditions in (None, QUICK, SLOW):
        assert choice.choose(0, READY, conditions) in READY
        assert choice.choose(0, (GOING_ON,), conditions) == GOING_ON
        assert choice.choose(0, (), conditions) is None


def test_a_small_form_of_the_whole_input_is_a_way_like_any_other(manifest: Manifest) -> None:
    small = Payload("jpeg-70", 10.0, 0.9, (0.8, 1.0), 0.0, 0.01, 0.01, 100)
    raw = msgspec.structs.replace(small, encoding="raw", bytes=784.0)
    slow_split = tuple(msgspec.structs.replace(s, bytes=500.0) for s in usable_splits(manifest, SplitSettings()))
    choice = SplitChoice(manifest, slow_split, whole_ways(manifest, (raw, small), 984.0))
    assert choice.choose(0, READY, SLOW) is None


@given(
    st.floats(1e-4, 1.0),
    st.floats(1e2, 1e8),
    st.floats(200, 1000),
    st.floats(1.1, 1000),
    st.booleans(),
)
def test_a_link_is_found_again_from_any_two_sizes_of_call(
    rtt_s: float, bytes_per_s: float, part: float, times: float, small: bool
) -> None:
    def seconds(size: float) -> float:
        return rtt_s + size / bytes_per_s

    whole = part * times
    found = link_of(seconds(128.0) if small else None, (whole, seconds(whole)), (part, seconds(part)))
    assert found is not None
    error = 1e-9 * rtt_s * bytes_per_s / (whole - part)  # of a difference between numbers of this size
    assert found[1] == pytest.approx(bytes_per_s, rel=1e-6 + error)
    assert found[0] <= seconds(whole)


@given(st.none() | st.floats(0, 10), st.none() | st.tuples(st.floats(1, 1e6), st.floats(0, 10)))
def test_one_kind_of_call_alone_says_nothing_and_two_never_nonsense(
    small_s: float | None, part: tuple[float, float] | None
) -> None:
    found = link_of(small_s, None, part)
    assert (found is None) is (small_s is None or part is None)
    if found is not None:
        assert found[0] >= 0 and found[1] > 0


def test_what_was_held_up_by_others_on_the_link_says_nothing_against_what_the_smallest_call_says() -> None:
    rtt_s, bytes_per_s = link_of(0.04, (1000.0, 0.20), (500.0, 0.22)) or (0.0, 0.0)
    assert bytes_per_s == pytest.approx(872 / 0.16)
    assert rtt_s < 0.04
    assert link_of(0.04, (1000.0, 0.04), (500.0, 0.05)) == (0.04, math.inf)
    assert link_of(None, (1000.0, 0.04), (500.0, 0.05)) == (0.04, math.inf)


def test_the_settings_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="max_loss"):
        SplitSettings(max_loss=1.5)
