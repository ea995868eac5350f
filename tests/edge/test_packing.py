"""In which form an input is sent: the soonest answered, of those that were measured to be right enough."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.packing import BETTER, LOOK_S, Packing, most_lost, usable
from edgemux.multiplexer.bundle import Bundle, Payload, Preprocessing, Tensor
from edgemux.wire.payload import LOSSLESS, RAW

NAMES = ("png", "webp-lossless", "jpeg-95", "jpeg-70")


def payload(name: str, size: float, encode_ms: float = 0.0, accuracy: float = 0.9, n: int = 1000) -> Payload:
    return Payload(name, size, accuracy, (accuracy, accuracy), 0.0, encode_ms, 0.0, n)


RAW_FORM = payload(RAW, 27_648)
JPEG = payload("jpeg-95", 3_700, encode_ms=0.2)
PNG = payload("png", 18_400, encode_ms=1.4)
forms = st.lists(
    st.builds(payload, st.sampled_from(NAMES), st.floats(100, 1e6), st.floats(0, 50)),
    max_size=4,
    unique_by=lambda each: each.encoding,
)


@given(forms, st.floats(1e3, 1e9), st.booleans())
def test_nothing_that_is_measured_is_clearly_sooner_than_what_is_chosen(
    others: list[Payload], bytes_per_s: float, exact: bool
) -> None:
    packing = Packing((RAW_FORM, *others))
    packing._looked_s = 0.0
    chosen = packing.choose(bytes_per_s, 1.0, 0.0, exact)
    taken = {p.encoding: p.encode_ms / 1000 + p.bytes / bytes_per_s for p in (RAW_FORM, *others)}
    allowed = [name for name in taken if name in LOSSLESS or not exact]
    assert chosen in allowed
    assert min(taken[name] for name in allowed) >= BETTER * taken[chosen] - 1e-12


def test_a_slow_link_gets_the_small_form_and_a_quick_one_the_tensor() -> None:
    packing = Packing((RAW_FORM, JPEG, PNG))
    assert packing.choose(None, 1.0, 0.0) == RAW, "nothing is known"
    packing._looked_s = 0.0
    assert packing.choose(125_000.0, 1.0, 0.0) == "jpeg-95"
    assert packing.choose(None, 1.0, 0.0) == "jpeg-95", "nothing new is known"
    assert packing.choose(125_000.0, 1.0, 0.0, exact=True) == "png"
    assert packing.choose(1e9, 1.0, 0.0) == RAW


def test_now_and_then_the_tensor_is_sent_to_find_out_how_quick_the_link_is_where_there_is_time() -> None:
    packing = Packing((RAW_FORM, JPEG))
    assert packing.choose(125_000.0, 1.0, 0.0) == RAW
    assert packing.choose(125_000.0, 1.0, 0.1) == "jpeg-95"
    assert packing.choose(125_000.0, 1.0, LOOK_S + 0.1) == RAW
    assert packing.choose(125_000.0, 0.3, 2 * LOOK_S + 0.2) == "jpeg-95", "221 ms are too many of 300"


def test_what_a_form_takes_on_this_device_counts_once_it_is_known() -> None:
    packing = Packing((RAW_FORM, JPEG))
    packing._looked_s = 0.0
    assert packing.choose(1e6, 1.0, 0.0) == "jpeg-95"
    packing.encoded("jpeg-95", 0.5, 0.0)
    assert packing.encode_s(0.0, "jpeg-95") == 0.5
    assert packing.choose(1e6, 1.0, 0.0) == RAW


def test_a_form_that_the_cloud_does_not_take_is_not_sent_again() -> None:
    packing = Packing((RAW_FORM, JPEG))
    packing._looked_s = 0.0
    packing.choose(1e4, 1.0, 0.0)
    packing.refused("jpeg-95")
    packing.refused(RAW)
    assert packing.choose(1e4, 1.0, 0.0) == RAW
    assert packing.encode_s(0.0) == 0.0


def test_only_what_loses_little_enough_and_was_measured_finely_enough_is_used(tiny_bundle: object) -> None:
    plain = Bundle.open(str(tiny_bundle)).manifest
    assert usable(plain, 0.002) == ()
    manifest = msgspec.structs.replace(
        plain,
        inputs=(Tensor("image", "UINT8", (-1, 96, 96, 3)),),
        preprocessing=Preprocessing("RGB", 96, 96),
        payloads=(
            RAW_FORM,
            PNG,
            JPEG,
            payload("jpeg-85", 2_000, accuracy=0.897),
            payload("jpeg-70", 1_500, n=400),
            payload("of-tomorrow", 10),
        ),
    )

    def names(max_loss: float) -> list[str]:
        return [each.encoding for each in usable(manifest, max_loss)]

    assert names(0.0) == names(0.002) == [RAW, "png"]  # none of 1,000 changed: 0.3 % may be
    assert names(0.004) == [RAW, "png", "jpeg-95"]
    assert names(0.006) == [RAW, "png", "jpeg-95", "jpeg-85"]
    assert names(0.01) == [RAW, "png", "jpeg-95", "jpeg-85", "jpeg-70"]
    assert usable(msgspec.structs.replace(manifest, payloads=(RAW_FORM, payload("u8", 10))), 0.1) == ()


@given(st.integers(200, 5_000), st.floats(0.0, 0.05), st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_what_a_form_loses_is_hardly_ever_more_than_the_bound(n: int, changed: float, lost: float, seed: int) -> None:
    """Of the changed labels a share was right before, of the others all are right after."""
    draws = np.random.default_rng(seed).multinomial(n, [changed * lost, changed * (1 - lost), 1 - changed], 400)
    over = 0
    for worse, better, _ in draws:
        form = Payload("jpeg-95", 1.0, 0.5 - (worse - better) / n, (0, 1), (worse + better) / n, 0.0, 0.0, n)
        over += changed * (2 * lost - 1) > most_lost(0.5, form)
    assert over <= 0.09 * len(draws)  # 0.05, and what chance adds to it in 400 draws


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_without_measurements_there_is_no_choice(most: float) -> None:
    assert Packing(()).choose(1e4, most, 0.0) == RAW
