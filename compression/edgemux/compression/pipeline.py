"""``compress``: run a recipe, measure every pass on this device, keep what pays."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch
from torch import nn

from edgemux.compression import gauge
from edgemux.compression.artifact import FORMAT, MODEL, WEIGHTS, About, Artifact, PassReport, sha256, weights_file
from edgemux.compression.hardware import hardware
from edgemux.compression.pass_recipe import PassRecipe, Step
from edgemux.compression.passes import Setting, Subject
from edgemux.compression.quantize.targets import check_target
from edgemux.compression.samples import Samples
from edgemux.compression.structure import structure_of
from edgemux.compression.to_onnx import check_model, exported, shipped
from edgemux.compression.verdict import Figures, judge
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel

Tell = Callable[[str], None]
MAX_MODEL_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class _State:
    """A model between two passes: the subject, its graph as it would be shipped, and its figures."""

    subject: Subject
    graph: onnx.ModelProto
    figures: Figures


@dataclass(eq=False)
class Prefixes:
    """Results by what they depend on: recipes that begin alike share the work. Valid for one model, data and target."""

    states: dict[PassRecipe, tuple[_State, tuple[PassReport, ...]]] = field(default_factory=dict)
    start: _State | None = None


def compress(
    model: nn.Module | onnx.ModelProto | Path | str,
    data: Any,
    recipe: PassRecipe | str | Path | list[Any],
    target: str = "auto",
    *,
    seed: int = 0,
    effort: float = 1.0,
    memory: bool = True,
    prefixes: Prefixes | None = None,
    tell: Tell = lambda line: None,
) -> Artifact:
    """Compress a classifier by a recipe and say what every pass did.

    model: a torch net, float32 [n, ...] -> logits [n, classes], or an ONNX graph or file of that kind; it is never
    changed. data: what ``Samples.of`` takes. recipe: what ``PassRecipe.of`` takes. target: ``auto`` measures on this
    device; or a name of ``quantize.targets.TARGETS``. effort: factor on all epochs. memory: measure memory as well,
    half a second a pass. prefixes: shares work between calls with the same model, data and target. tell: gets a line
    a pass.

    Raises ConfigError for a wrong recipe, target or data, ArtifactError for a file that is no ONNX model, PassError
    when a pass cannot be applied to this model.
    """
    steps = PassRecipe.of(recipe)
    check_target(target)
    samples = Samples.of(data)
    prefixes = prefixes if prefixes is not None else Prefixes()
    if prefixes.start is None:
        prefixes.start = _start(model, samples, memory)
    original = prefixes.start.subject.net
    setting = Setting(samples, original, target, seed, effort)
    state, reports = prefixes.start, tuple[PassReport, ...]()
    for step, prefix in zip(steps.steps, steps.prefixes(), strict=True):
        if prefix not in prefixes.states:
            torch.manual_seed(seed)
            state, report = _apply(step, state, setting, memory)
            prefixes.states[prefix] = state, (*reports, report)
            tell(report.verdict.line)
        state, reports = prefixes.states[prefix]
    return _artifact(steps, setting, prefixes.start, state, reports)


def _start(model: Any, samples: Samples, memory: bool) -> _State:
    """The model as given: checked, copied, exported, measured."""
    if isinstance(model, nn.Module):
        check_model(model, samples)
        subject = Subject(net=copy.deepcopy(model).eval())
        graph = exported(model, samples.test_x)
    else:
        graph = _read(model)
        subject = Subject(graph=graph)
    plain = _check_graph(graph, samples)
    ms = gauge.times_ms([plain], samples.test_x[:1].numpy())[0]
    return _State(subject, graph, gauge.figures_of(graph, plain, None, ms, samples, memory))


def _read(model: Any) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return copy.deepcopy(model)
    if not isinstance(model, (str, Path)):
        raise ConfigError(f"model: a torch.nn.Module or an ONNX file is needed, not {type(model).__name__}")
    path = Path(model)
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ArtifactError(f"{path.name}: larger than {MAX_MODEL_BYTES} bytes")
        graph = onnx.load_from_string(path.read_bytes())
        onnx.checker.check_model(graph)
    except OSError as error:
        raise ConfigError(f"model: {path} cannot be read ({error.strerror})") from error
    except ArtifactError:
        raise
    except Exception as error:  # protobuf's and the checker's own types
        raise ArtifactError(f"{path.name}: not an ONNX model") from error
    return graph


def _check_graph(graph: onnx.ModelProto, samples: Samples) -> OnnxModel:
    """Load the graph and run it once. Raises ConfigError when it does not take these inputs."""
    model = gauge.loaded(graph)
    try:
        y = model.run({model.inputs[0]: samples.test_x[:2].numpy()})[0]
    except Exception as error:  # the runtime's own types
        raise ConfigError(f"data: the model does not take float32 inputs of shape {['n', *samples.shape]}") from error
    if y.ndim != 2 or y.shape[0] != 2 or y.shape[1] < samples.classes:
        raise ConfigError(
            f"model: must answer logits [n, {samples.classes} or more], it answers {list(y.shape)} for n = 2"
        )
    return model


def _apply(step: Step, before: _State, setting: Setting, memory: bool) -> tuple[_State, PassReport]:
    """One pass: applied, exported, measured in turns with what was there before, judged."""
    start_s = time.monotonic()
    what = step.what
    what.requires(before.subject, setting)
    subject = what.apply(before.subject, setting)
    what.ensures(before.subject, subject, setting)
    graph = shipped(subject, setting.samples)
    stored = min((len(content) for content in subject.files.values()), default=None)
    one = setting.samples.test_x[:1].numpy()
    model = gauge.loaded(graph)
    before_ms, after_ms = gauge.times_ms([gauge.loaded(before.graph), model], one)
    figures = gauge.figures_of(graph, model, stored, after_ms, setting.samples, memory)
    old = msgspec.structs.replace(before.figures, ms=before_ms)
    verdict = judge(str(what.label), what.gives, old, figures, step.forced)
    report = PassReport(str(step), tuple(sorted(what.gives)), old, figures, verdict, time.monotonic() - start_s)
    return (_State(subject, graph, figures) if verdict.kept else before), report


def _artifact(
    steps: PassRecipe, setting: Setting, start: _State, end: _State, reports: tuple[PassReport, ...]
) -> Artifact:
    files = {MODEL: end.graph.SerializeToString(deterministic=True), **end.subject.files}
    net = end.subject.net
    if net is not None:
        files[WEIGHTS] = weights_file(net)
    about = About(
        format=FORMAT,
        recipe=str(steps),
        target=setting.target,
        seed=setting.seed,
        hardware=hardware(),
        versions={name: version(name) for name in ("edgemux", "torch", "onnx", "onnxruntime")},
        input_shape=setting.samples.shape,
        classes=setting.samples.classes,
        original=start.figures,
        passes=reports,
        structure=structure_of(net) if net is not None else None,
        files={name: sha256(content) for name, content in files.items()},
    )
    return Artifact(about, files)
