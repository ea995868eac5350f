"""Trained nets -> the ONNX files of a bundle: calibrated, verified against torch, and compressed where it pays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgemux.compression import export
from edgemux.compression.chain import answers_of, answers_of_levels, run_top
from edgemux.compression.data import Split
from edgemux.compression.fit import Tick, outputs_of
from edgemux.compression.nested import NestedNet
from edgemux.compression.nets import CloudNet
from edgemux.compression.profile import medians_ms
from edgemux.compression.quantize.static import static_int8
from edgemux.compression.recipe import Quantise
from edgemux.compression.verify import same_answers, self_contained
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.calibrate import temperature

CLOUD = "cloud.onnx"
REPORT = "models.json"
VERIFY_COUNT = 500
COMPARE_REPEATS = 200
# A pass that changes the arithmetic must be clearly faster; one that changes only the storage, not slower than noise.
FASTER = 0.9
NO_SLOWER = 1.05
NOT_PORTABLE = "its answers change with the CPU's instructions, and the certificate is about the cloud's answers"


class Exported(msgspec.Struct, frozen=True):
    """What came out: how the weights are stored, the verdicts, and what was measured, temperatures among it."""

    level_storage: str
    cloud_storage: str
    verdicts: dict[str, str]
    measured: dict[str, float]


class Trial(msgspec.Struct, frozen=True):
    """One candidate form of a model: accuracy on the gate split, median ms of one input, bytes."""

    accuracy: float
    ms: float
    bytes: int

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} %, {self.ms:.3f} ms, {self.bytes / 1000:.1f} KB"


def level_file(level: int) -> str:
    """The name of a level's delta."""
    return f"level{level}.onnx"


def write(cloud: CloudNet, family: NestedNet, gate: Split, how: Quantise, folder: Path, tick: Tick) -> None:
    """Write ``cloud.onnx``, ``level1.onnx``, ... and ``models.json``. Raises PassError when a file answers otherwise.

    gate: the split for temperatures and verdicts; neither model was trained on it.
    """
    images = torch.from_numpy(gate.images)
    cloud_t = temperature(outputs_of(cloud, images).numpy(), gate.labels)
    level_t = [temperature(logits, gate.labels) for logits in outputs_of(family, images).numpy()]
    tick(0.1)
    levels, level_storage, level_verdicts = _levels(family, level_t, gate, how)
    tick(0.5)
    top, cloud_storage, cloud_verdicts = _cloud(cloud, cloud_t, gate, how)
    for number, model in enumerate(levels, start=1):
        _save(model, folder / level_file(number))
    _save(top, folder / CLOUD)
    report = Exported(
        level_storage=level_storage,
        cloud_storage=cloud_storage,
        verdicts=level_verdicts | cloud_verdicts,
        measured={"cloud_temperature": cloud_t}
        | {f"level{k}_temperature": value for k, value in enumerate(level_t, start=1)},
    )
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


def take(source: Bundle, folder: Path) -> None:
    """Write the models of a bundle as ``write`` would have. Raises ArtifactError naming a damaged file."""
    manifest = source.manifest
    for level in manifest.levels:
        (folder / level_file(level.level)).write_bytes(source.read(level.files[-1]))
    (folder / CLOUD).write_bytes(source.read(manifest.cloud.files[0]))
    made = manifest.provenance
    report = Exported(
        level_storage=manifest.levels[-1].storage,
        cloud_storage=manifest.cloud.storage,
        verdicts=made.verdicts,
        measured={name: value for name, value in made.measured.items() if name.endswith("_temperature")},
    )
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


def read_report(folder: Path) -> Exported:
    """What ``write`` reported."""
    return msgspec.json.decode((folder / REPORT).read_bytes(), type=Exported)


def _save(model: onnx.ModelProto, path: Path) -> None:
    self_contained(path.name, model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _levels(
    family: NestedNet, temperatures: Sequence[float], gate: Split, how: Quantise
) -> tuple[list[onnx.ModelProto], str, dict[str, str]]:
    """The family's deltas, as int8 if that pays."""
    numbers = range(1, len(temperatures) + 1)
    forms = {
        int8: [export.level_graph(family, k, temperatures[k - 1], int8) for k in numbers] for int8 in (False, True)
    }
    chains = {int8: [_loaded(model) for model in models] for int8, models in forms.items()}
    _verify_levels(family, temperatures, gate.images[:VERIFY_COUNT], chains)
    one = gate.images[:1]
    ms = medians_ms([lambda c=chains[int8]: run_top(c, one) for int8 in (False, True)], COMPARE_REPEATS)  # type: ignore[misc]
    accuracies = {
        int8: (answers_of_levels(chain, gate.images).argmax(2) == gate.labels).mean(1) for int8, chain in chains.items()
    }
    plain, small = (
        Trial(float(accuracies[int8][-1]), ms[int8], sum(m.ByteSize() for m in forms[int8])) for int8 in (False, True)
    )
    loss = float((accuracies[False] - accuracies[True]).max())
    kept = how.weights_int8 and loss <= how.max_loss and small.ms <= NO_SLOWER * plain.ms
    verdict = f"{_word(kept)}; all levels: int8 {small}; fp32 {plain}; largest loss of a level {100 * loss:.2f} points"
    return forms[kept], "int8 weights" if kept else "fp32", {"levels: weights as int8": verdict}


def _verify_levels(
    family: NestedNet,
    temperatures: Sequence[float],
    images: NDArray[np.uint8],
    chains: dict[bool, list[OnnxModel]],
) -> None:
    """Both storage forms against torch: the family was trained with rounded weights, so both must match it."""
    logits = outputs_of(family, torch.from_numpy(images))
    trained = torch.softmax(logits / torch.tensor(temperatures)[:, None, None], dim=-1).numpy()
    for chain in chains.values():
        for number, answers in enumerate(answers_of_levels(chain, images), start=1):
            same_answers(level_file(number), answers, trained[number - 1])


def _cloud(cloud: CloudNet, cloud_t: float, gate: Split, how: Quantise) -> tuple[onnx.ModelProto, str, dict[str, str]]:
    """The cloud model: fp32, int8 weights or int8 arithmetic, the last that pays."""
    forms = {"fp32": export.cloud_graph(cloud, cloud_t, int8=False)}
    if how.weights_int8:
        forms["int8 weights"] = export.cloud_graph(cloud, cloud_t, int8=True)
    if how.static_int8 != "off":
        forms["int8 arithmetic"] = static_int8(forms["fp32"], gate.images[:VERIFY_COUNT])
    models = {name: _loaded(form) for name, form in forms.items()}
    logits = outputs_of(cloud, torch.from_numpy(gate.images[:VERIFY_COUNT]))
    trained = torch.softmax(logits / cloud_t, dim=-1).numpy()
    same_answers(CLOUD, answers_of(models["fp32"], gate.images[:VERIFY_COUNT]), trained)
    ms = medians_ms([lambda m=m: m.run({"image": gate.images[:1]}) for m in models.values()], COMPARE_REPEATS)  # type: ignore[misc]
    trials = {
        name: Trial(
            float((answers_of(models[name], gate.images).argmax(1) == gate.labels).mean()), taken, form.ByteSize()
        )
        for (name, form), taken in zip(forms.items(), ms, strict=True)
    }
    chosen, verdicts = _choose(trials, how)
    return forms[chosen], chosen, verdicts


def _choose(trials: dict[str, Trial], how: Quantise) -> tuple[str, dict[str, str]]:
    """The last form that pays, and why each was kept or not."""
    chosen, plain, verdicts = "fp32", trials["fp32"], dict[str, str]()
    for name, limit in (("int8 weights", NO_SLOWER), ("int8 arithmetic", FASTER)):
        if name not in trials:
            continue
        trial = trials[name]
        pays = plain.accuracy - trial.accuracy <= how.max_loss and trial.ms <= limit * plain.ms
        kept = pays and (name != "int8 arithmetic" or how.static_int8 == "use")
        chosen = name if kept else chosen
        word = f"pays, but not kept: {NOT_PORTABLE}" if pays and not kept else _word(kept)
        verdicts[f"cloud: {name}"] = f"{word}; {trial}; fp32 {plain}"
    return chosen, verdicts


def _loaded(model: onnx.ModelProto) -> OnnxModel:
    return OnnxModel(model.SerializeToString(), "candidate")


def _word(kept: bool) -> str:
    return "kept" if kept else "rejected"
