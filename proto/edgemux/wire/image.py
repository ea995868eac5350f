"""Encoded pictures (JPEG, PNG, WebP) to pixels, as a bundle's preprocessing says."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Preprocessing
from edgemux.multiplexer.errors import InputError, TooLarge

FORMATS = ("JPEG", "PNG", "WEBP")
# Sizes are read from the header and refused before the pixels are unpacked.
MAX_ENCODED_BYTES = 16 * 2**20
MAX_PIXELS = 24_000_000


def decode_image(field: str, content: bytes, how: Preprocessing) -> NDArray[np.uint8]:
    """Pixels of one encoded picture, UINT8 [height, width] or [height, width, 3] by ``how.mode``.

    Raises InputError naming ``field`` when it does not decode, TooLarge when it is too big to try.
    """
    from PIL import Image  # on use: tensors need no picture library

    if len(content) > MAX_ENCODED_BYTES:
        raise TooLarge(field, f"an encoded picture of {len(content)} bytes, at most {MAX_ENCODED_BYTES}")
    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise TooLarge(field, f"a picture of more than {MAX_PIXELS} pixels")
            # A palette with an alpha per colour converts without complaint by way of RGBA only.
            palette = picture.mode == "P" and "transparency" in picture.info
            plain = picture.convert("RGBA") if palette else picture
            resized = plain.convert(how.mode).resize((how.width, how.height), filters[how.resample])
            pixels = np.asarray(resized, dtype=np.uint8)
    except TooLarge:
        raise
    except Exception as error:  # Pillow raises a dozen types for damaged data
        raise InputError(field, f"not a {', '.join(FORMATS)} picture that decodes") from error
    return np.asarray(255 - pixels, dtype=np.uint8) if how.invert else pixels
