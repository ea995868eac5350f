"""Encoded pictures (JPEG, PNG, WebP) to pixels, as a bundle's preprocessing says."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Preprocessing
from edgemux.multiplexer.errors import InputError, TooLarge

FORMATS = ("JPEG", "PNG", "WEBP")
# Sizes are read from the header and refused before the pixels are unpacked.
MAX_ENCODED_BYTES = 16 * 2**20
MAX_PIXELS = 24_000_000
# Of all pictures of a request. A default batch of 256 at 640 x 480 is 79 million and fits; a megabyte of PNG can claim
# a hundred times as much, and at 10-20 ns a pixel would keep the decoder from everybody else for minutes.
MAX_REQUEST_PIXELS = 4 * MAX_PIXELS


def decode_images(
    field: str, contents: Sequence[bytes], how: Preprocessing, go_on: Callable[[], None] = lambda: None
) -> NDArray[np.uint8]:
    """Pixels of encoded pictures, UINT8 [N, height, width] or [N, height, width, 3] by ``how.mode``; N at least 1.

    All headers are read before the first picture is unpacked. ``go_on`` is called before each step and raises to end
    the work. Raises InputError naming ``field`` when one does not decode, TooLarge when one or all are too big to try.
    """
    opened: list[Any] = []
    total = 0
    for content in contents:
        go_on()
        opened.append(_open(field, content))
        total += opened[-1].width * opened[-1].height
        if total > MAX_REQUEST_PIXELS:
            raise TooLarge(field, f"pictures of more than {MAX_REQUEST_PIXELS} pixels in one request")
    pixels = []
    for picture in opened:
        go_on()
        pixels.append(_pixels(field, picture, how))
        picture.close()  # which also lets go of what was unpacked
    return np.stack(pixels)


def _open(field: str, content: bytes) -> Any:
    """The picture by its header, nothing unpacked."""
    from PIL import Image  # on use: tensors need no picture library

    if len(content) > MAX_ENCODED_BYTES:
        raise TooLarge(field, f"an encoded picture of {len(content)} bytes, at most {MAX_ENCODED_BYTES}")
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # Pillow raises a dozen types for damaged data
        raise _undecodable(field) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise TooLarge(field, f"a picture of more than {MAX_PIXELS} pixels")
    return picture


def _pixels(field: str, picture: Any, how: Preprocessing) -> NDArray[np.uint8]:
    from PIL import Image

    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
    try:
        # A palette with an alpha per colour converts without complaint by way of RGBA only.
        palette = picture.mode == "P" and "transparency" in picture.info
        plain = picture.convert("RGBA") if palette else picture
        resized = plain.convert(how.mode).resize((how.width, how.height), filters[how.resample])
        pixels = np.asarray(resized, dtype=np.uint8)
    except Exception as error:
        raise _undecodable(field) from error
    return np.asarray(255 - pixels, dtype=np.uint8) if how.invert else pixels


def _undecodable(field: str) -> InputError:
    return InputError(field, f"not a {', '.join(FORMATS)} picture that decodes")
