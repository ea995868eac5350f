"""``family``: from any image classifier to one small model of several levels, each a delta to the one below.

The classifier is the teacher; widths follow from a budget of bytes; all levels are trained at once, with weights
rounded to int8 in the last quarter, and every figure is of the ONNX files, on the test inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression import profile, widths
from edgemux.compression.artifact import sha256
from edgemux.compression.augment import Batch
from edgemux.compression.chain import answers_of_levels, top_of
from edgemux.compression.distill.family import distilled
from edgemux.compression.export import level_graph
from edgemux.compression.fit import Tick, fit_drawn
from edgemux.compression.hardware import hardware
from edgemux.compression.models import level_file
from edgemux.compression.nested import NestedNet
from edgemux.compression.recipe import Augment, Family, Schedule
from edgemux.compression.samples import Samples, accuracy_of, logits_of
from edgemux.compression.verify import same_answers
from edgemux.multiplexer.certify import interval
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.calibrate import temperature

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20
MOST_LEVELS, LEAST_PX, KB = 8, 16, 1000
# A tenth of the training inputs, but no more than this, choose the temperatures and are not learnt from.
MOST_HELD_OUT = 2500
VERIFY_COUNT, REPEATS = 200, 50


class LevelFigures(msgspec.Struct, frozen=True):
    """One level as its files answer the test inputs.

    bytes: of all files up to the level; macs: of one input; ms: median of one input on one thread, from its pixels.
    """

    level: int
    accuracy: float
    interval: tuple[float, float]
    bytes: int
    macs: int
    ms: float


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest. input_shape: channels, height, width; files: sha256 in hex by name."""

    format: int
    input_shape: tuple[int, int, int]
    classes: int
    widths: tuple[tuple[int, ...], ...]
    teacher_accuracy: float
    epochs: int
    seed: int
    hardware: str
    levels: tuple[LevelFigures, ...]
    files: dict[str, str]


class NestedModels:
    """The levels of a family: ``about`` is the manifest, ``files`` are the deltas by name, level 1 first."""

    def __init__(self, about: About, files: Mapping[str, bytes]) -> None:
        self.about, self.files = about, dict(files)

    @property
    def levels(self) -> tuple[LevelFigures, ...]:
        """Figures by rising level."""
        return self.about.levels

    def models(self) -> list[OnnxModel]:
        """The deltas, loaded, for a ``Chain`` whose one input is ``image``: what ``pixels_of`` gives."""
        return [OnnxModel(content, name) for name, content in self.files.items()]

    def save(self, folder: str | Path) -> Path:
        """Write the ONNX files and ``manifest.json``, last; returns the folder."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (place / name).write_bytes(content)
        (place / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(self.about)) + b"\n")
        return place

    @classmethod
    def load(cls, folder: str | Path) -> NestedModels:
        """Read what ``save`` wrote. Raises ArtifactError naming a file that is missing or is not what was saved."""
        place = Path(folder)
        try:
            about = msgspec.json.decode(_read(place, MANIFEST, MAX_MANIFEST_BYTES), type=About)
        except msgspec.MsgspecError as error:
            raise ArtifactError(f"{MANIFEST}: not the manifest of a nested family ({error})") from error
        if about.format != FORMAT or [*about.files] != [level_file(k) for k in range(1, len(about.levels) + 1)]:
            raise ArtifactError(f"{MANIFEST}: its format or its files are not those of a nested family")
        files = {name: _read(place, name, about.levels[-1].bytes) for name in about.files}
        for name, content in files.items():
            if sha256(content) != about.files[name]:
                raise ArtifactError(f"{name}: is not the file that was saved")
        return cls(about, files)

    def report(self) -> str:
        """The figures as a table of plain text."""
        head = f"{'level':>5}  {'accuracy (95 %)':<24}{'KB':>8}{'MACs':>13}{'ms':>8}"
        lines = [
            f"{f.level:>5}  {f'{100 * f.accuracy:.2f} % ({100 * f.interval[0]:.2f}–{100 * f.interval[1]:.2f})':<24}"
            f"{f.bytes / KB:>8.1f}{f.macs:>13,}{f.ms:>8.3f}"
            for f in self.levels
        ]
        teacher = f"teacher: {100 * self.about.teacher_accuracy:.2f} %; measured on: {self.about.hardware}"
        return "\n".join([head, *lines, teacher])


def family(
    model: nn.Module,
    data: Any,
    levels: int = 4,
    max_kb: float = 100.0,
    *,
    epochs: int = 20,
    seed: int = 0,
    checkpoint: Path | None = None,
    tick: Tick = lambda done: None,
) -> NestedModels:
    """Train ``levels`` nested models whose files take at most ``max_kb`` (1000 bytes) together, from a teacher.

    model: takes float32 [n, c, h, w] and answers logits [n, classes]; it is not changed. data: Samples or what
    ``Samples.of`` takes, with images float32 [n, c, h, w] in 0..1 or uint8, c in 1..3, h and w at least 16; its
    ``change`` is applied in training, and the teacher asked anew. checkpoint: where an interrupted training goes on.

    Raises ConfigError naming the argument that is wrong.
    """
    samples = Samples.of(data)
    shape = _checked_shape(samples)
    _check_numbers(levels, max_kb, epochs)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    classes = _classes_of(teacher, samples)
    with torch.random.fork_rng(devices=[]):
        plan = _plan(widths.within(max_kb * KB, levels, shape, classes), levels, epochs, len(samples.train_y))
        torch.manual_seed(seed)
        net = NestedNet(plan, shape, classes)
        held = _train(net, plan, samples, teacher, seed, checkpoint, tick)
    files = _files(net, samples, held)
    about = About(
        format=FORMAT,
        input_shape=shape,
        classes=classes,
        widths=tuple(widths.at_level(plan, k) for k in range(1, levels + 1)),
        teacher_accuracy=accuracy_of(teacher, samples.test_x, samples.test_y),
        epochs=epochs,
        seed=seed,
        hardware=hardware(),
        levels=_figures(files, pixels_of(samples.test_x), samples.test_y.numpy()),
        files={name: sha256(content) for name, content in files.items()},
    )
    return NestedModels(about, files)


def pixels_of(x: Tensor) -> NDArray[np.uint8]:
    """Inputs float32 [n, c, h, w] in 0..1 as the files take them: uint8 [n, c, h, w], or [n, h, w] of one channel."""
    pixels: NDArray[np.uint8] = (x * 255.0).round().to(torch.uint8).numpy()
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels


def _checked_shape(samples: Samples) -> tuple[int, int, int]:
    shape = samples.shape
    if len(shape) != 3 or not 1 <= shape[0] <= 3 or min(shape[1:]) < LEAST_PX:
        wanted = f"[n, c, h, w] with c in 1..3, h and w at least {LEAST_PX}"
        raise ConfigError(f"data: images must be {wanted}, they are {['n', *shape]}".replace("'", ""))
    for name in ("train_x", "test_x"):
        x: Tensor = getattr(samples, name)
        low, high = (float(bound) for bound in x.aminmax())
        if not (low >= 0.0 and high <= 1.0):  # also false where there is a NaN
            raise ConfigError(f"data: {name} must be pixels in 0..1 (or uint8), they are in {low:g}..{high:g}")
    if len(samples.train_y) < 2 * LEAST_PX:
        raise ConfigError(f"data: at least {2 * LEAST_PX} training images are needed, there are {len(samples.train_y)}")
    return shape[0], shape[1], shape[2]


def _check_numbers(levels: int, max_kb: float, epochs: int) -> None:
    if not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        raise ConfigError(f"levels: must be a whole number in 1..{MOST_LEVELS}, it is {levels!r}")
    if not max_kb > 0:
        raise ConfigError(f"max_kb: must be above 0, it is {max_kb!r}")
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f"epochs: must be a whole number above 0, it is {epochs!r}")


def _classes_of(teacher: nn.Module, samples: Samples) -> int:
    """How many classes the teacher tells apart."""
    try:
        logits = logits_of(teacher, samples.train_x[:2])
    except Exception as error:  # a foreign net: anything may happen in it
        shape = ", ".join(map(str, ("n", *samples.shape)))
        raise ConfigError(f"model: fails on inputs float32 [{shape}] ({type(error).__name__})") from error
    if logits.ndim != 2 or len(logits) != min(2, len(samples.train_x)) or not logits.isfinite().all():
        raise ConfigError(f"model: must answer finite logits [n, classes], it answers {list(logits.shape)}")
    if logits.shape[1] < samples.classes:
        raise ConfigError(f"model: answers {logits.shape[1]} classes, the data has {samples.classes}")
    return int(logits.shape[1])


def _plan(chosen: Mapping[str, tuple[int, ...]], levels: int, epochs: int, count: int) -> Family:
    """The defaults: those of the starter bundle's recipe, with steps of 64 where there is less data."""
    schedule = Schedule(epochs=epochs, batch=min(64, count // 2), peak_rate=0.1, weight_decay=2e-4)
    return Family(
        **chosen,
        loss_weights=(1.5, *(1.0,) * (levels - 1)),
        distill=0.7,
        temperature_t=2.0,
        quantise_last=0.25,
        schedule=schedule,
        augment=Augment(flip=False, shift_px=0),
    )


def _train(
    net: NestedNet,
    plan: Family,
    samples: Samples,
    teacher: nn.Module,
    seed: int,
    checkpoint: Path | None,
    tick: Tick,
) -> Tensor:
    """Train in place; returns the indices int64 [n] of the training inputs that were held out."""
    count = len(samples.train_y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held, learnt = order.split([min(MOST_HELD_OUT, count // 10), count - min(MOST_HELD_OUT, count // 10)])
    known = logits_of(teacher, samples.train_x) if samples.change is None else None
    weights = torch.tensor(plan.loss_weights)

    def drawn(index: Tensor, generator: torch.Generator) -> Batch:
        return samples.draw(learnt[index], generator)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.pixels.contiguous(memory_format=torch.channels_last)).float()
        targets = known[batch.index] if known is not None else logits_of(teacher, batch.pixels).clone()
        labels = samples.train_y[batch.index]
        # The sum over the levels: their mean trains what only one level has at a fraction of the rate.
        return (distilled(logits, targets, labels, plan.distill, plan.temperature_t) * weights).sum()

    first_quantised = round(plan.schedule.epochs * (1.0 - plan.quantise_last))

    def on_epoch(epoch: int) -> None:
        net.quantise(epoch >= first_quantised)

    fit_drawn(net, len(learnt), drawn, loss, plan.schedule, seed, checkpoint, tick, on_epoch)
    net.quantise(True)
    net.eval()
    return held


@torch.inference_mode()
def _files(net: NestedNet, samples: Samples, held: Tensor) -> dict[str, bytes]:
    """Calibrated deltas by name. Raises PassError when one answers otherwise than the net."""
    logits = torch.cat([net(part).float() for part in samples.train_x[held].split(250)], dim=1).numpy()
    temperatures = [temperature(of_level, samples.train_y[held].numpy()) for of_level in logits]
    graphs = [level_graph(net, k, value, int8=True) for k, value in enumerate(temperatures, start=1)]
    files = {level_file(k): graph.SerializeToString(deterministic=True) for k, graph in enumerate(graphs, start=1)}
    pixels = pixels_of(samples.test_x[:VERIFY_COUNT])
    seen = torch.from_numpy(pixels).float() / 255.0
    trained = net(seen if seen.ndim == 4 else seen[:, None])
    softened = torch.softmax(trained / torch.tensor(temperatures)[:, None, None], dim=-1).numpy()
    answers = answers_of_levels([OnnxModel(content, name) for name, content in files.items()], pixels)
    for (name, answered), expected in zip(zip(files, answers, strict=True), softened, strict=True):
        same_answers(name, answered, expected)
    return files


def _figures(files: Mapping[str, bytes], pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[Any, ...]:
    """Each level over the test inputs."""
    models = [OnnxModel(content, name) for name, content in files.items()]
    graphs = [onnx.load_model_from_string(content) for content in files.values()]
    hits = (answers_of_levels(models, pixels).argmax(2) == labels).sum(1)
    ms = profile.medians_ms([top_of(models[:k], pixels[:1]) for k in range(1, len(models) + 1)], REPEATS)
    sizes = [len(content) for content in files.values()]
    return tuple(
        LevelFigures(
            level=k,
            accuracy=float(hits[k - 1]) / len(labels),
            interval=interval(int(hits[k - 1]), len(labels)),
            bytes=sum(sizes[:k]),
            macs=_macs(graphs[:k]),
            ms=ms[k - 1],
        )
        for k in range(1, len(models) + 1)
    )


def _macs(graphs: Sequence[onnx.ModelProto]) -> int:
    """Heads of lower levels are stored but not run."""
    return sum(map(profile.macs, graphs)) - sum(map(profile.head_macs, graphs[:-1]))


def _read(place: Path, name: str, most: int) -> bytes:
    try:
        with (place / name).open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ArtifactError(f"{name}: cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise ArtifactError(f"{name}: is larger than what was saved")
    return content
