"""What the head of a split must make of a bundle's golden inputs, and what its tail must answer to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle, Split
from edgemux.multiplexer.chain import GOLDEN_TOLERANCE, PROBABILITIES, probabilities
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import Array

Codes = NDArray[np.uint8]

# The array of what is sent in a split's golden file; its answers are there as PROBABILITIES.
SENT = "sent"
# A value that lies between two codes may become the other one where arithmetic rounds otherwise: by one step, and this
# share of values at most. Noise of 1e-5 in what a head reads, ten times such rounding, moved 0.1 % of 8-bit codes.
FLIPPED_SHARE = 0.01


def within(bits: int, codes: Codes) -> bool:
    """Whether all values are below 2**bits."""
    return not int(codes.max(initial=0)) >> bits


def same_codes(given: Codes, expected: Codes) -> bool:
    """Whether both are the same but for rounding: no value by more than one step, few by one."""
    if given.shape != expected.shape:
        return False
    steps = np.abs(given.astype(np.int16) - expected.astype(np.int16))
    return not steps.size or bool(steps.max() <= 1 and np.count_nonzero(steps) <= max(1.0, FLIPPED_SHARE * steps.size))


class GoldenCodes(msgspec.Struct, frozen=True):
    """Of N golden inputs: what a head makes, UINT8 [N, ...], and what the tail answers, FP32 [N, classes]."""

    sent: Codes
    answers: Array

    @classmethod
    def read(cls, bundle: Bundle, split: Split) -> GoldenCodes | None:
        """None for a split that was packed without them. Raises ArtifactError where they do not fit the split."""
        if split.golden is msgspec.UNSET:
            return None
        arrays = bundle.arrays(split.golden)
        sent, answers = arrays.get(SENT), arrays.get(PROBABILITIES)
        if sent is None or sent.dtype != np.uint8 or not sent.ndim or sent.shape[1:] != split.sent.shape[1:]:
            raise ArtifactError(f"{split.golden}: its {SENT} is not what the split sends")
        wanted = (len(sent), len(bundle.manifest.classes))
        if not len(sent) or answers is None or answers.shape != wanted or answers.dtype != np.float32:
            raise ArtifactError(f"{split.golden}: its {PROBABILITIES} are not FP32 {list(wanted)}")
        return cls(sent, answers)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the file holds."""
        return {SENT: self.sent, PROBABILITIES: self.answers}

    def check_head(self, file: str, sent: Codes) -> None:
        """``sent``: what the head has made of all golden inputs. Raises ArtifactError naming ``file``."""
        if not same_codes(sent, self.sent):
            raise ArtifactError(f"{file}: does not make the bundle's golden codes")

    def check_tail(self, file: str, answer: Callable[[Codes], Array]) -> None:
        """``answer``: what the tail says of codes. Raises ArtifactError naming ``file``."""
        given = probabilities(file, self.answers.shape, lambda: answer(self.sent), "the bundle's golden codes")
        if not np.allclose(given, self.answers, rtol=0.0, atol=GOLDEN_TOLERANCE):
            raise ArtifactError(f"{file}: does not give the golden answers to the bundle's golden codes")
