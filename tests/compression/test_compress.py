# ruff: noqa: E402 - nothing here can be imported without torch
"""`compress` from end to end on small nets: what it returns, what it saves, what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgemux.multiplexer.errors import ArtifactError, ConfigError, PassError

torch = pytest.importorskip("torch")
import edgemux.compression as toolkit
from edgemux.compression import gauge
from edgemux.compression.artifact import MANIFEST, MODEL
from edgemux.compression.pass_contract import PassContract
from edgemux.compression.passes import Pass
from edgemux.compression.pipeline import Prefixes
from edgemux.compression.quantize.targets import TARGETS, this_device
from edgemux.compression.samples import Samples, logits_of
from edgemux.compression.structure import rebuilt, same_weights, structure_of
from edgemux.compression.to_onnx import exported

MADE = PassContract()


@pytest.fixture(autouse=True)
def one_thread(torch: Any) -> None:
    """The fixture of the folder keeps torch on one thread."""


@pytest.fixture
def net() -> Any:
    return MADE.net()


@pytest.fixture
def samples() -> Samples:
    return MADE.samples()


class Worse(Pass, frozen=True):
    """Promises accuracy and turns every answer round."""

    label = "worse"
    gives = frozenset({"accuracy"})

    def apply(self, subject: Any, setting: Any) -> Any:
        net = copy.deepcopy(subject.net)
        with torch.no_grad():
            net[-1].weight.neg_()
            net[-1].bias.neg_()
        return subject.with_net(net)


def compressed(net: Any, samples: Any, recipe: Any, **more: Any) -> toolkit.Artifact:
    return toolkit.compress(net, samples, recipe, effort=0.01, memory=False, **more)


def test_every_pass_is_reported_with_figures_before_and_after(net: Any, samples: Samples) -> None:
    lines: list[str] = []
    made = compressed(net, samples, "prune(l1, 0.5, 1)! > finetune! > int8!", tell=lines.append)
    assert [report.step for report in made.about.passes] == ["prune(criterion=l1, round_to=1)!", "finetune!", "int8!"]
    assert lines == [report.verdict.line for report in made.about.passes]
    assert made.figures.macs < made.about.original.macs
    assert made.figures.stored_bytes == len(made.content)
    low, high = made.figures.interval
    assert low <= made.figures.accuracy <= high
    text = made.report()
    assert all(report.verdict.line in text for report in made.about.passes)


def test_the_model_passed_in_is_never_changed_and_keeps_its_mode(net: Any, samples: Samples) -> None:
    net.train()
    before = copy.deepcopy(net)
    compressed(net, samples, "prune(lasso, 0.5, 1)! > finetune!")
    assert same_weights(before, net)
    assert net.training


def test_a_rejected_pass_leaves_the_model_as_it_was(net: Any, samples: Samples) -> None:
    """What it made is measured, refused, and not saved."""
    lines: list[str] = []
    sure = Samples(samples.train_x, samples.train_y, samples.test_x, logits_of(net, samples.test_x).argmax(1))
    made = compressed(net, sure, [Worse()], tell=lines.append)
    assert made.about.original.accuracy == 1.0
    assert not made.about.passes[0].verdict.kept
    assert lines == ["worse lost 100.00 points: rejected"]
    assert made.figures == made.about.original
    answers = made.model().run({"input": samples.test_x.numpy()})[0]
    assert np.allclose(answers, logits_of(net, samples.test_x), atol=1e-4)


def test_an_artifact_is_saved_without_pickles_and_a_pruned_net_reloads(
    net: Any, samples: Samples, tmp_path: Path
) -> None:
    made = compressed(net, samples, "prune(thinet, 0.5, 1)!")
    folder = made.save(tmp_path / "small")
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.onnx", "weights.npz"]
    assert not any(b"torch" in path.read_bytes()[:64] for path in folder.iterdir())
    again = toolkit.Artifact.load(folder)
    answers = again.model().run({"input": samples.test_x.numpy()})[0]
    torch.manual_seed(99)
    back = again.net(MADE.net())
    assert back[4].out_channels == 4
    assert np.allclose(logits_of(back, samples.test_x), answers, atol=1e-4)


def test_an_artifact_replaces_an_older_one_and_nothing_else(net: Any, samples: Samples, tmp_path: Path) -> None:
    made = compressed(net, samples, "finetune!")
    made.save(tmp_path / "a")
    made.save(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="left alone"):
        made.save(tmp_path / "mine")


def test_a_damaged_or_missing_file_is_named(net: Any, samples: Samples, tmp_path: Path) -> None:
    folder = compressed(net, samples, "finetune!").save(tmp_path / "a")
    content = bytearray((folder / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MODEL).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx: is not the file"):
        toolkit.Artifact.load(folder)
    (folder / MODEL).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        toolkit.Artifact.load(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        toolkit.Artifact.load(folder)


def test_a_net_of_another_architecture_is_not_taken_for_the_compressed_one(net: Any, samples: Samples) -> None:
    made = compressed(net, samples, "prune(l1, 0.5, 1)!")
    for other in (torch.nn.Linear(2, 2), torch.nn.Sequential(*list(MADE.net())[:-1])):
        with pytest.raises(ArtifactError, match="architecture"):
            made.net(other)


def test_recipes_that_begin_alike_share_their_work(net: Any, samples: Samples) -> None:
    prefixes = Prefixes()
    first = compressed(net, samples, "finetune! > int8!", prefixes=prefixes)
    second = compressed(net, samples, "finetune! > prune(l1, 0.5, 1)!", prefixes=prefixes)
    assert second.about.passes[0] is first.about.passes[0]
    assert len(prefixes.states) == 3


def test_an_onnx_file_takes_the_passes_that_need_no_torch_net(net: Any, samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(exported(net, samples.test_x), path)
    made = compressed(path, samples, "int8!")
    assert made.about.structure is None
    with pytest.raises(ArtifactError, match="no torch weights"):
        made.net(net)
    with pytest.raises(PassError, match="an ONNX file has none"):
        compressed(path, samples, "prune")


def test_torch_passes_after_an_onnx_pass_are_refused(net: Any, samples: Samples) -> None:
    with pytest.raises(PassError, match="put it before the first ONNX pass"):
        compressed(net, samples, "int8! > prune")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_int8_uses_the_types_of_the_target(target: str, net: Any, samples: Samples) -> None:
    made = compressed(net, samples, "int8!", target=target)
    graph = onnx.load_from_string(made.content)
    kinds = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    signed = TARGETS[target].signed_activations
    wanted = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
    found = {kinds[node.input[2]] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    assert wanted in found
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in graph.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    widest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    assert widest <= (64 if TARGETS[target].reduce_range else 127)


def test_this_device_is_known_by_its_instructions() -> None:
    assert this_device("flags : avx2 fma", "x86_64") == "x86-avx2"
    assert this_device("flags : avx2 avx512_vnni", "x86_64") == "x86-vnni"
    assert this_device("flags : avx_vnni", "x86_64") == "x86-vnni"
    assert this_device("", "aarch64") == "arm64"


def test_training_with_rounding_comes_back_as_weights_of_the_same_net(net: Any, samples: Samples) -> None:
    made = compressed(net, samples, "qat(1)")
    back = made.net(MADE.net())
    assert not same_weights(back, net)
    assert made.about.passes[0].verdict.kept
    assert [tuple(t.shape) for t in back.state_dict().values()] == [tuple(t.shape) for t in net.state_dict().values()]


class Untraceable(torch.nn.Module):
    """Turns its tensor into Python and back."""

    def forward(self, x: Any) -> Any:
        return torch.stack([torch.tensor([float(len(str(v))), v.sum().item(), 0.0]) for v in x])


@pytest.mark.parametrize(
    ("make", "data", "error", "message"),
    [
        (lambda: torch.nn.Linear(2, 3), None, ConfigError, "does not take inputs of shape"),
        (lambda: torch.nn.Flatten(0), None, ConfigError, r"must answer logits \[n, classes\]"),
        (
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)),
            None,
            ConfigError,
            "answers 2 classes",
        ),
        (lambda: 3, None, ConfigError, "torch.nn.Module or an ONNX file"),
        (MADE.net, (1, 2), ConfigError, "train_x, train_y, test_x, test_y"),
        (MADE.net, "nowhere.npz", ConfigError, "cannot be read"),
        (lambda: Path("nowhere.onnx"), None, ConfigError, "cannot be read"),
    ],
)
def test_a_model_or_data_that_do_not_fit_get_one_line(
    make: Any, data: Any, error: Any, message: str, samples: Samples
) -> None:
    with pytest.raises(error, match=message) as caught:
        compressed(make(), samples if data is None else data, "finetune")
    assert "\n" not in str(caught.value)


def test_a_net_that_cannot_be_traced_is_refused_or_exports_as_it_answers(samples: Samples) -> None:
    with pytest.raises((PassError, ConfigError)):
        compressed(Untraceable(), samples, "finetune")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s.train_x, s.train_y[:-1], s.test_x, s.test_y), r"train_y must be int64 \[48\]"),
        (lambda s: (s.train_x, s.train_y - 1, s.test_x, s.test_y), "count classes from 0"),
        (lambda s: (s.train_x, s.train_y, s.test_x[:, :, :4], s.test_y), "train_x is float32"),
        (lambda s: (s.train_x[:, 0, 0, 0], s.train_y, s.test_x, s.test_y), "train_x must be float32"),
    ],
)
def test_data_of_the_wrong_shape_are_named(change: Any, message: str, samples: Samples) -> None:
    with pytest.raises(ConfigError, match=message):
        Samples.of(change(samples))


def test_pixels_are_scaled_and_an_npz_file_is_read(samples: Samples, tmp_path: Path) -> None:
    pixels = np.full((4, 1, 8, 8), 255, np.uint8)
    np.savez(tmp_path / "d.npz", train_x=pixels, train_y=np.arange(4), test_x=pixels, test_y=np.arange(4))
    read = Samples.of(tmp_path / "d.npz")
    assert float(read.train_x.max()) == 1.0
    np.savez(tmp_path / "e.npz", train_x=pixels)
    with pytest.raises(ConfigError, match="lacks train_y, test_x, test_y"):
        Samples.of(tmp_path / "e.npz")


def test_a_structure_makes_the_same_net_of_fresh_weights(net: Any) -> None:
    thin = rebuilt(MADE.net(), structure_of(net), net.state_dict())
    assert same_weights(thin, net)


def test_memory_is_that_of_the_model_and_not_of_the_runtime() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4096, 1024))
    graph = exported(model, torch.zeros(1, 4096))
    taken = gauge.memory_bytes(graph.SerializeToString(), (4096,))
    assert taken is None or 0.9 * 4 * 4096 * 1024 <= taken <= 60e6
