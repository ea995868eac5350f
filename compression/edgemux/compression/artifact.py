"""What ``compress`` returns: the model as ONNX, how it came to be, and what each pass was measured to do."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from edgemux.compression.places import check_place, replacing
from edgemux.compression.structure import Structure, rebuilt
from edgemux.compression.verdict import Figures, Verdict
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import OnnxModel

FORMAT = 1
MANIFEST, MODEL, WEIGHTS = "manifest.json", "model.onnx", "weights.npz"
# A manifest holds names and sizes only.
MAX_MANIFEST_BYTES = 64 * 2**20


class PassReport(msgspec.Struct, frozen=True):
    """One pass: what it was, what it promised, the figures before and after it, the verdict, the seconds it took.

    The times before and after were measured in turns: their ratio means more than either.
    """

    step: str
    gives: tuple[str, ...]
    before: Figures
    after: Figures
    verdict: Verdict
    seconds: float


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest. files: sha256 in hex by name. structure: None when an ONNX file was compressed."""

    format: int
    recipe: str
    target: str
    seed: int
    hardware: str
    versions: dict[str, str]
    input_shape: tuple[int, ...]
    classes: int
    original: Figures
    passes: tuple[PassReport, ...]
    structure: Structure | None
    files: dict[str, str]


class Artifact:
    """A compressed model. ``about`` is its manifest, ``content`` the ONNX file, ``files`` all that is saved."""

    def __init__(self, about: About, files: Mapping[str, bytes]) -> None:
        self.about = about
        self.files = dict(files)

    @property
    def content(self) -> bytes:
        """The ONNX file."""
        return self.files[MODEL]

    @property
    def figures(self) -> Figures:
        """What the compressed model was measured to be."""
        kept = [report.after for report in self.about.passes if report.verdict.kept]
        return kept[-1] if kept else self.about.original

    @property
    def speed(self) -> float:
        """How many times faster than the original: the product of what the kept passes were measured to give."""
        return math.prod(item.before.ms / item.after.ms for item in self.about.passes if item.verdict.kept)

    def model(self) -> OnnxModel:
        """The compressed model, ready to run: ``input`` float32 [n, ...] -> ``logits`` [n, classes]."""
        return OnnxModel(self.content, MODEL)

    def net(self, fresh: nn.Module) -> nn.Module:
        """The compressed net in torch, to go on training: ``fresh`` is any net of the original's architecture.

        Raises ArtifactError when it is not, or the compression left nothing that torch could take up again.
        """
        if self.about.structure is None or WEIGHTS not in self.files:
            raise ArtifactError("this artifact holds no torch weights: it was made from an ONNX file")
        with np.load(io.BytesIO(self.files[WEIGHTS]), allow_pickle=False) as stored:
            state = {name: torch.from_numpy(stored[name].copy()) for name in stored.files}
        return rebuilt(fresh, self.about.structure, state)

    def report(self) -> str:
        """A table for people: a line a pass, with the verdict below it."""
        head = f"{'pass':<34} {'accuracy (95 %)':<26} {'bytes':>10} {'memory':>8} {'MACs':>12} {'ms':>8}  speed   size"
        first = self.about.original
        lines, speed = [head, _line("original", first, first, 1.0)], 1.0
        for item in self.about.passes:
            faster = speed * item.before.ms / item.after.ms
            lines += [_line(item.step, item.after, first, faster), f"    {item.verdict.line}"]
            speed = faster if item.verdict.kept else speed
        return "\n".join([*lines, f"measured on {self.about.hardware}; ms is CPU time of one input on one thread"])

    def save(self, folder: Path | str) -> Path:
        """Write ``model.onnx``, ``manifest.json`` and further files; an older artifact there is replaced.

        Raises ConfigError for a place that holds something else.
        """
        out = Path(folder)
        self.check_place(out)
        with replacing(out) as part:
            for name, content in self.files.items():
                (part / name).write_bytes(content)
            (part / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(self.about), indent=1) + b"\n")
        return out

    @staticmethod
    def check_place(out: Path) -> None:
        """Raises ConfigError for a place that holds anything but an older compressed model."""
        check_place(out, MODEL, "no compressed model")

    @classmethod
    def load(cls, folder: Path | str) -> Artifact:
        """Read what ``save`` wrote. Raises ArtifactError when a file is missing or is not what the manifest says."""
        at = Path(folder)
        try:
            with (at / MANIFEST).open("rb") as file:
                about = msgspec.json.decode(file.read(MAX_MANIFEST_BYTES), type=About)
            if about.format != FORMAT:
                raise ArtifactError(f"{at.name}: format {about.format}, this version reads {FORMAT}")
            files = {name: (at / Path(name).name).read_bytes() for name in about.files}
        except OSError as error:
            raise ArtifactError(
                f"{at}: not a compressed model ({error.strerror}: {Path(error.filename or '').name})"
            ) from error
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise ArtifactError(f"{at.name}/{MANIFEST}: {error}") from error
        for name, content in files.items():
            if sha256(content) != about.files[name]:
                raise ArtifactError(f"{at.name}/{name}: is not the file that was saved")
        return cls(about, files)


def sha256(content: bytes) -> str:
    """Digest in hex."""
    return hashlib.sha256(content).hexdigest()


def weights_file(net: nn.Module) -> bytes:
    """The state of a net as an .npz file of plain arrays."""
    arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in net.state_dict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _line(step: str, now: Figures, first: Figures, speed: float) -> str:
    low, high = now.interval
    accuracy = f"{100 * now.accuracy:.2f} % ({100 * low:.2f}–{100 * high:.2f})"
    memory = "–" if now.memory_bytes is None else f"{now.memory_bytes / 1e6:.1f} MB"
    ratios = f"{speed:5.2f}× {first.stored_bytes / now.stored_bytes:5.1f}×"
    work = f"{now.macs:>12,} {first.ms / speed:>8.3f}"
    return f"{step:<34} {accuracy:<26} {now.stored_bytes:>10,} {memory:>8} {work}  {ratios}"
