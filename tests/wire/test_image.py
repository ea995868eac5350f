"""Encoded pictures: what decodes, and how the rest is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgemux.multiplexer.bundle import Preprocessing
from edgemux.multiplexer.errors import DeadlineExceeded, InputError, TooLarge
from edgemux.wire import image
from edgemux.wire.image import decode_images

GREY = Preprocessing("L", 28, 28)
RAMP = np.arange(28 * 28, dtype=np.int64).reshape(28, 28).astype(np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_image(field: str, content: bytes, how: Preprocessing) -> Any:
    return decode_images(field, [content], how)[0]


def test_a_lossless_picture_of_the_right_size_keeps_its_pixels() -> None:
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert (decode_image("image", encoded(Image.fromarray(RAMP), kind, **options), GREY) == RAMP).all()


def test_other_sizes_are_resized_and_colours_converted() -> None:
    colours = np.full((56, 40, 3), (10, 200, 30), np.uint8)
    grey = decode_image("image", encoded(Image.fromarray(colours), "JPEG"), GREY)
    assert grey.shape == (28, 28)
    assert np.ptp(grey) <= 2
    assert decode_image("image", encoded(Image.fromarray(RAMP)), Preprocessing("RGB", 14, 14)).shape == (14, 14, 3)


def test_a_picture_can_be_inverted() -> None:
    inverted = decode_image("image", encoded(Image.fromarray(RAMP)), Preprocessing("L", 28, 28, invert=True))
    assert (inverted == 255 - RAMP).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "I;16"])
def test_unusual_kinds_of_png_decode(mode: str) -> None:
    deep = mode == "I;16"
    picture = Image.fromarray(RAMP.astype(np.uint16) * 256) if deep else Image.fromarray(RAMP).convert(mode)
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    assert decode_image("image", encoded(picture, **options), GREY).shape == (28, 28)


@pytest.mark.parametrize("content", [b"", b"text", encoded(Image.fromarray(RAMP))[:60]])
def test_what_does_not_decode_is_refused_by_field(content: bytes) -> None:
    with pytest.raises(InputError, match=r"^image: not a JPEG"):
        decode_image("image", content, GREY)


def test_other_formats_are_not_even_tried() -> None:
    with pytest.raises(InputError, match=r"^image: not a JPEG"):
        decode_image("image", encoded(Image.fromarray(RAMP), "BMP"), GREY)


# Pillow itself warns from 89 million pixels on, which pytest makes an error.
@pytest.mark.parametrize(("side", "refused"), [(6000, TooLarge), (9600, InputError)])
def test_a_size_that_is_too_large_is_refused_from_the_header(side: int, refused: type[InputError]) -> None:
    bomb = encoded(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(refused):
        decode_image("image", bomb, GREY)


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(TooLarge):
        decode_image("image", bytes(16 * 2**20 + 1), GREY)


def test_the_pixels_of_a_request_are_bounded_together_before_the_first_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = encoded(Image.fromarray(RAMP))
    monkeypatch.setattr(image, "MAX_REQUEST_PIXELS", 3 * 784)
    assert decode_images("image", [picture] * 3, GREY).shape == (3, 28, 28)
    monkeypatch.setattr(image, "_pixels", None)
    with pytest.raises(TooLarge, match=r"^image: pictures of more than 2352 pixels in one request"):
        decode_images("image", [picture] * 4, GREY)


def test_a_full_batch_of_small_photographs_is_within_the_bound() -> None:
    assert image.MAX_REQUEST_PIXELS > 256 * 640 * 480


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5])
def test_the_work_ends_between_pictures_when_it_is_told_to(steps: int) -> None:
    left = [None] * steps

    def go_on() -> None:
        if not left:
            raise DeadlineExceeded("over")
        left.pop()

    with pytest.raises(DeadlineExceeded):
        decode_images("image", [encoded(Image.fromarray(RAMP))] * 3, GREY, go_on)
