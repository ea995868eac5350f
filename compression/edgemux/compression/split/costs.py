"""What every cut of a model costs: bytes on the way, work and time on either side."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import onnx

from edgemux.compression.places import write_whole
from edgemux.compression.profile import macs
from edgemux.compression.split.cuts import Cut, cuts_of, layout_of
from edgemux.compression.split.halves import Halves, check, halves_of, sent_name
from edgemux.compression.split.shapes import Measured, Sizes, example, measure
from edgemux.multiplexer.errors import ArtifactError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel

# Of one half: so long, or so often.
TIMED_S = 0.1
LEAST_RUNS, MOST_RUNS = 3, 30
