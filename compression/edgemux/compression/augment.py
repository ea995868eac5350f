"""Random changes of whole batches of training images, in torch, from one seeded generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgemux.compression.nets import PIXEL_SCALE
from edgemux.compression.recipe import Augment


@dataclass(frozen=True, slots=True)
class Batch:
    """pixels: what the net takes, here float [n, 1, 28, 28] in 0..1; flipped: bool [n].

    index: int64 [n] into the training set.
    """

    pixels: Tensor
    index: Tensor
    flipped: Tensor


def draw(images: Tensor, index: Tensor, how: Augment, generator: torch.Generator) -> Batch:
    """Pick the images (uint8 [N, 28, 28]) at ``index`` and change each one at random."""
    n = len(index)
    picked = images[index]
    flipped = torch.zeros(n, dtype=torch.bool)
    if how.flip:
        flipped = torch.rand(n, generator=generator) < 0.5
        picked = torch.where(flipped[:, None, None], picked.flip(2), picked)
    if how.shift_px:
        picked = _shift(picked, how.shift_px, generator)
    pixels = picked.float() * PIXEL_SCALE
    if how.erase:
        pixels = _erase(pixels, how, generator)
    return Batch(pixels[:, None], index, flipped)


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``most`` pixels along both axes; what comes in is black."""
    n, height, width = images.shape
    padded = torch.nn.functional.pad(images, (most, most, most, most))
    top, left = torch.randint(0, 2 * most + 1, (2, n, 1, 1), generator=generator)
    rows = torch.arange(height)[None, :, None] + top
    columns = torch.arange(width)[None, None, :] + left
    return padded[torch.arange(n)[:, None, None], rows, columns]


def _erase(pixels: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """Overwrite a rectangle of some of the images with noise (random erasing, Zhong et al. 2017)."""
    n, height, width = pixels.shape
    sides = torch.randint(2, how.erase_px + 1, (2, n, 1, 1), generator=generator)
    corner = torch.rand((2, n, 1, 1), generator=generator)
    top = (corner[0] * (height - sides[0] + 1)).long()
    left = (corner[1] * (width - sides[1] + 1)).long()
    rows = torch.arange(height)[None, :, None]
    columns = torch.arange(width)[None, None, :]
    inside = (rows >= top) & (rows < top + sides[0]) & (columns >= left) & (columns < left + sides[1])
    chosen = torch.rand((n, 1, 1), generator=generator) < how.erase
    noise = torch.rand(pixels.shape, generator=generator)
    return torch.where(inside & chosen, noise, pixels)
