# ruff: noqa: E402 - nothing here can be imported without torch
"""Deep Compression as passes: what is zero stays zero, what is shared stays shared, and ONNX Runtime folds the rest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

torch = pytest.importorskip("torch")
from torch import nn

import edgemux.compression as toolkit
from edgemux.compression import gauge
from edgemux.compression.deep import container
from edgemux.compression.deep.clusters import _Sharing, centroids_of, nearest, shared
from edgemux.compression.deep.layers import connections
from edgemux.compression.deep.passes import Cluster, Deep, Sparsify, same_model
from edgemux.compression.deep.post import Codebook, Fp16, Int8Weights
from edgemux.compression.deep.sparsity import RAMP, keeping, ratio_at, zeros_in
from edgemux.compression.deep.storage import codebook_form, packed_codes, restored, weights_of
from edgemux.compression.pass_contract import PassContract
from edgemux.compression.passes import Pass, Setting, Subject
from edgemux.compression.samples import Samples, logits_of
from edgemux.compression.to_onnx import exported, shipped

MADE = PassContract()


@pytest.fixture(autouse=True)
def one_thread(torch: Any) -> None:
    """The fixture of the folder keeps torch on one thread."""


class TestSparsify(PassContract):
    def make(self) -> Pass:
        return Sparsify()


class TestCluster(PassContract):
    def make(self) -> Pass:
        return Cluster(bits=3, start="density")


class TestDeep(PassContract):
    def make(self) -> Pass:
        return Deep(0.8, 2)


class TestCodebook(PassContract):
    def make(self) -> Pass:
        return Codebook()


class TestInt8Weights(PassContract):
    def make(self) -> Pass:
        return Int8Weights()


class TestFp16(PassContract):
    def make(self) -> Pass:
        return Fp16()


class Recurrent(nn.Module):
    """Steps of 6 numbers -> logits of 3 classes, through a GRU or an LSTM that looks both ways."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells = kind(6, 20, batch_first=True, bidirectional=True)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.cells(x)[0][:, -1])


class Batched(nn.Module):
    """Convolutions with batch norm, plain, grouped and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.b, self.bn = nn.Conv2d(16, 16, 3, groups=2, bias=False), nn.BatchNorm2d(16)
        self.c, self.cn = nn.ConvTranspose2d(16, 12, 3), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn(self.b(torch.relu(self.an(self.a(x))))))
        return self.head(torch.relu(self.cn(self.c(x))).mean((2, 3)))


def series() -> Samples:
    x = torch.randn(48, 9, 6, generator=torch.Generator().manual_seed(2))
    y = torch.arange(48) % 3
    return Samples(x, y, x[:20], y[:20])


def seeded(make: Any) -> Any:
    torch.manual_seed(1)
    net = make().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0.0, 0.5)
            part.running_var.uniform_(0.3, 3.0)
            nn.init.normal_(part.weight)
    return net


def applied(what: Pass, net: Any, samples: Samples) -> Subject:
    setting, subject = Setting(samples, net, effort=0.01), Subject(net=net)
    what.requires(subject, setting)
    after = what.apply(subject, setting)
    what.ensures(subject, after, setting)
    return after


def folded(graph: Any, tmp_path: Path) -> Any:
    """What ONNX Runtime makes of a graph at load, under the options of ``OnnxModel``."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "folded.onnx")


def operators(graph: Any) -> list[str]:
    return [node.op_type for node in graph.graph.node]


KINDS = {
    "plain": (PassContract().net, PassContract().samples),
    "batch-norm": (lambda: seeded(Batched), PassContract().samples),
    "gru": (lambda: seeded(lambda: Recurrent(nn.GRU)), series),
    "lstm": (lambda: seeded(lambda: Recurrent(nn.LSTM)), series),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_codebooks_are_folded_at_load_and_answer_bit_for_bit_what_plain_weights_do(
    kind: str, tmp_path: Path
) -> None:
    make, samples = KINDS[kind][0], KINDS[kind][1]()
    after = applied(Cluster(bits=4), make(), samples)
    assert after.net is not None
    plain, small = exported(after.net, samples.test_x), shipped(after, samples)
    assert "Gather" in operators(small)
    assert operators(folded(small, tmp_path)) == operators(folded(plain, tmp_path))
    x = samples.test_x.numpy()
    answers = gauge.answers(gauge.loaded(small), x)
    assert np.array_equal(answers, gauge.answers(gauge.loaded(plain), x))
    assert np.abs(answers - logits_of(after.net, samples.test_x).numpy()).max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_container_gives_back_a_graph_that_runs_with_every_bit_of_the_clustered_weights(kind: str) -> None:
    make, samples = KINDS[kind][0], KINDS[kind][1]()
    after = applied(Deep(ratio=0.5, bits=3), make(), samples)
    assert after.net is not None
    graph = container.decode(after.files[container.FILE])
    assert same_model(graph, exported(after.net, samples.test_x))
    x = samples.test_x.numpy()
    assert np.array_equal(
        gauge.answers(gauge.loaded(graph), x), gauge.answers(gauge.loaded(shipped(after, samples)), x)
    )


def test_a_plain_layer_s_weights_are_in_the_container_as_torch_has_them() -> None:
    samples = MADE.samples()
    after = applied(Deep(ratio=0.5, bits=3), MADE.net(), samples)
    assert after.net is not None
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in container.decode(after.files["model.dcz"]).graph.initializer
    }
    for name in ("4.weight", "6.weight", "10.weight", "12.weight"):
        assert stored[name].tobytes() == after.net.get_parameter(name).detach().numpy().tobytes()


def test_connections_that_went_stay_zero_and_what_remains_is_shared() -> None:
    samples = MADE.samples()
    sparse = applied(Sparsify(ratio=0.75), MADE.net(), samples)
    assert sparse.net is not None
    before = {name: weight.detach() == 0 for name, weight in connections(sparse.net).items()}
    assert zeros_in(sparse.net) == pytest.approx(0.75, abs=1e-3)
    after = Cluster(bits=2).apply(sparse, Setting(samples, sparse.net, effort=2.0))
    assert after.net is not None
    for name, weight in connections(after.net).items():
        assert torch.equal(weight == 0, before[name])
        assert len(weight.unique()) <= 4
        assert not torch.signbit(weight[weight == 0]).any()


def test_a_sparser_net_is_not_filled_again() -> None:
    samples = MADE.samples()
    sparse = applied(Sparsify(ratio=0.9), MADE.net(), samples)
    again = Sparsify(ratio=0.5).apply(sparse, Setting(samples, sparse.net, effort=0.01))
    assert again.net is not None
    assert sparse.net is not None
    assert zeros_in(again.net) == zeros_in(sparse.net)


def test_the_ratio_rises_monotonously_from_what_there_was_to_what_was_asked_for() -> None:
    ratios = [ratio_at(done / 50, 0.2, 0.9) for done in range(51)]
    assert ratios[0] == pytest.approx(0.2)
    assert ratios == sorted(ratios)
    assert ratio_at(RAMP, 0.2, 0.9) == ratio_at(1.0, 0.2, 0.9) == 0.9


def test_thresholds_are_in_units_of_a_layer_s_deviation() -> None:
    """A layer with larger weights does not lose fewer."""
    weights = torch.randn(40, 50, generator=torch.Generator().manual_seed(3))
    masks = keeping({"small": 0.01 * weights, "large": 5.0 * weights}, 0.8)
    assert torch.equal(masks["small"], masks["large"])
    assert float(masks["small"].float().mean()) == pytest.approx(0.2)
    assert weights[masks["small"]].abs().min() >= weights[~masks["small"]].abs().max()


def test_a_centroid_s_gradient_is_the_sum_over_its_cluster() -> None:
    """Han et al. 2016, equation 3, against torch's own gradient of the codebook."""
    layer = nn.Linear(30, 20, bias=False)
    with torch.no_grad():
        layer.weight[torch.rand(20, 30, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.0
    sharing = _Sharing(layer.weight, 3, "linear")
    x = torch.randn(11, 30)
    layer(x).square().sum().backward()
    codes = sharing.codes.reshape(20, 30)
    codebook = layer.weight.detach().reshape(-1)[sharing.first].clone().requires_grad_(True)
    nn.functional.linear(x, codebook[codes]).square().sum().backward()
    assert codebook.grad is not None
    assert layer.weight.grad is not None
    wanted = torch.where(codebook == 0, 0.0, codebook.grad)[codes]
    assert torch.allclose(layer.weight.grad, wanted, rtol=1e-4)


def test_training_moves_the_centroids_but_keeps_the_clusters() -> None:
    samples, net = MADE.samples(), MADE.net()
    before = {name: shared(w.detach().numpy(), 3)[1] for name, w in connections(net).items()}
    after = Cluster(bits=3, rate=0.01).apply(Subject(net=net), Setting(samples, net, effort=2.0))
    assert after.net is not None
    for name, weight in connections(after.net).items():
        value = weight.detach().numpy()
        for code in np.unique(before[name]):
            assert len(np.unique(value[before[name] == code])) == 1
        assert not np.array_equal(value, shared(connections(net)[name].detach().numpy(), 3)[0][before[name]])


@given(st.lists(st.floats(-5, 5, width=32), max_size=60), st.integers(1, 16), st.sampled_from(["linear", "density"]))
@settings(max_examples=60, deadline=None)
def test_k_means_is_no_worse_than_one_cluster_and_keeps_zeros_apart(
    values: list[float], count: int, start: Any
) -> None:
    flat = np.array(values, np.float32)
    centroids = centroids_of(flat, count, start)
    assert len(centroids) <= count
    assert (np.diff(centroids) > 0).all()
    if len(flat):
        error = np.square(flat - centroids[nearest(flat, centroids)]).sum()
        assert error <= np.square(flat - flat.mean()).sum() * (1 + 1e-4) + 1e-6
    entries, codes = shared(flat, 4, start)
    assert len(entries) <= 16
    assert np.array_equal(entries[codes][flat == 0], flat[flat == 0])


def test_k_means_finds_values_that_are_apart() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(np.array([-3, -1, 0.5, 4], np.float32), 50) + rng.normal(size=200).astype(np.float32) * 0.01
    for start in ("linear", "density"):
        assert np.allclose(centroids_of(values, 4, start), [-3, -1, 0.5, 4], atol=0.01)


@given(st.sampled_from([1, 2, 3, 16, 17, 200, 256]), st.sampled_from([(16, 24), (13, 11), (8, 3, 3, 3)]))
@settings(max_examples=21, deadline=None)
def test_codes_of_any_width_unfold_to_the_same_bits(values: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(values)
    codebook = rng.normal(size=values).astype(np.float32)
    weight = codebook[rng.integers(0, values, shape)]
    form = codebook_form("w", weight)
    assert form is not None
    helper = onnx.helper
    y = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, list(shape))
    graph = helper.make_graph(form.nodes, "g", [], [y], form.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert gauge.loaded(model).run({})[0].tobytes() == weight.tobytes()


def test_codes_are_packed_highest_bits_first() -> None:
    assert packed_codes(np.array([1, 2, 15, 0]), 4).tolist() == [0x12, 0xF0]
    assert packed_codes(np.array([3, 0, 1, 2]), 2).tolist() == [0b11000110]


def test_weights_of_too_many_values_are_left_as_they_are() -> None:
    graph = exported(MADE.net(), MADE.samples().test_x)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 30)).eval()
    assert restored(graph, lambda name, value: None).SerializeToString() == graph.SerializeToString()
    left = exported(wide, MADE.samples().test_x)
    assert operators(restored(left, codebook_form)) == operators(left)


@pytest.mark.parametrize(("what", "most"), [(Codebook(4), 0.30), (Int8Weights(), 0.40), (Fp16(), 0.60)])
def test_passes_on_a_file_make_it_smaller_and_are_folded(what: Pass, most: float, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 40), nn.ReLU(), nn.Linear(40, 3))
    samples = MADE.samples()
    graph = exported(net.eval(), samples.test_x)
    before = copy.deepcopy(graph)
    after = what.apply(Subject(graph=graph), Setting(samples, None)).graph
    assert graph == before
    assert after is not None
    assert after.ByteSize() < most * graph.ByteSize()
    assert operators(folded(after, tmp_path)) == operators(folded(graph, tmp_path))
    wanted = gauge.answers(gauge.loaded(graph), samples.test_x.numpy())
    assert np.abs(gauge.answers(gauge.loaded(after), samples.test_x.numpy()) - wanted).max() < 0.1


def test_int8_weights_are_within_half_a_step_in_every_output_channel(tmp_path: Path) -> None:
    """Whatever axis they lie along: convolutions, transposed ones, matrix products, recurrent gates."""
    for make, samples in (
        (lambda: seeded(Batched), MADE.samples()),
        (lambda: seeded(lambda: Recurrent(nn.GRU)), series()),
    ):
        graph = exported(make(), samples.test_x)
        after = Int8Weights().apply(Subject(graph=graph), Setting(samples, None)).graph
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
        made = {node.output[0]: node for node in after.graph.node}
        for name, weight in weights_of(graph):
            if name in made:
                scale = stored[made[name].input[1]]
                steps = stored[made[made[name].input[0]].input[0]]
                assert scale.size < weight.size / 2
                assert (np.abs(steps * scale - weight) <= scale * 0.501).all()


def test_a_weight_too_large_for_float16_stays_float32() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Linear(30, 3)).eval()
    with torch.no_grad():
        net[1].weight[0, 0] = 1e6
    samples = MADE.samples()
    after = Fp16().apply(Subject(graph=exported(net, samples.test_x)), Setting(samples, None)).graph
    assert operators(after).count("Cast") == 0
    assert {t.name for t in after.graph.initializer if t.data_type == onnx.TensorProto.FLOAT} >= {"1.weight"}


def test_a_net_without_weights_and_a_graph_without_float_weights_are_refused() -> None:
    samples = MADE.samples()
    bare = nn.Sequential(nn.AvgPool2d((8, 2)), nn.Flatten()).eval()
    for what in (Sparsify(), Cluster(), Deep()):
        with pytest.raises(PassError, match=f"{what.label}: the net has no convolution"):
            what.requires(Subject(net=bare), Setting(samples, bare))
    with pytest.raises(PassError, match="fp16: the graph holds no float32 weights"):
        Fp16().apply(Subject(net=bare), Setting(samples, bare))


def test_the_smallest_stored_form_counts_until_the_net_changes() -> None:
    made = toolkit.compress(MADE.net(), MADE.samples(), "deep(0.8, 3)! > finetune!", effort=0.01, memory=False)
    first, second = (report.after for report in made.about.passes)
    assert first.stored_bytes < first.bytes
    assert second.stored_bytes == second.bytes
    assert container.FILE not in made.files
    kept = toolkit.compress(MADE.net(), MADE.samples(), "deep(0.8, 3)!", effort=0.01, memory=False)
    assert kept.figures.stored_bytes == len(kept.files["model.dcz"])
