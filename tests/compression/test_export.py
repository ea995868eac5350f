"""Export: the files say what the nets say, hold themselves together, and lose nothing on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.compression.chain import answers_of
from edgemux.multiplexer.errors import PassError
from edgemux.multiplexer.onnx_model import OnnxModel


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 3), (4, 2, 3, 3), (10, 16)]))
def test_int8_storage_keeps_every_weight_within_half_a_step(seed: int, shape: tuple[int, ...]) -> None:
    from edgemux.compression.quantize.weights import from_int8, to_int8

    weight = np.random.default_rng(seed).normal(size=shape)
    steps, scale = to_int8(weight)
    back = from_int8(steps, scale)
    step = np.broadcast_to(scale.reshape(-1, *(1,) * (weight.ndim - 1)), shape)
    assert np.all(np.abs(back - weight) <= 0.5001 * step)
    again, _ = to_int8(back)
    assert np.array_equal(steps, again)


def test_int8_storage_of_nothing_but_zeros_is_zero() -> None:
    from edgemux.compression.quantize.weights import from_int8, to_int8

    assert not from_int8(*to_int8(np.zeros((2, 3)))).any()


def test_training_rounds_exactly_as_storage_does(torch: Any) -> None:
    from edgemux.compression.quantize.weights import from_int8, round_to_int8, to_int8

    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    rounded = round_to_int8(weight)
    stored = from_int8(*to_int8(weight.detach().numpy()))
    assert np.abs(rounded.detach().numpy() - stored).max() < 1e-6
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.fixture
def cloud(torch: Any) -> Any:
    from edgemux.compression.nets import CloudNet

    torch.manual_seed(0)
    net = CloudNet((8, 12, 16), (1, 2))
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0.0, 0.1)
            part.running_var.uniform_(0.5, 2.0)
    return net.eval()


def test_the_cloud_file_answers_as_torch_does(cloud: Any, torch: Any, images: Any) -> None:
    from edgemux.compression.export import cloud_graph
    from edgemux.compression.verify import same_answers, self_contained

    graph = cloud_graph(cloud, temperature=1.7, int8=False)
    self_contained("cloud", graph)
    with torch.inference_mode():
        logits = cloud(torch.from_numpy(images).float()[:, None] / 255.0)
    trained = torch.softmax(logits / 1.7, -1).numpy()
    answers = answers_of(OnnxModel(graph.SerializeToString(), "cloud"), images)
    assert same_answers("cloud", answers, trained, 1e-4) < 1e-4
    with pytest.raises(PassError, match="cloud"):
        same_answers("cloud", answers[:, ::-1], trained)
    with pytest.raises(PassError, match="cloud"):
        same_answers("cloud", np.full_like(answers, np.nan), trained)


def test_a_graph_with_weights_elsewhere_or_doc_strings_is_refused(cloud: Any) -> None:
    from edgemux.compression.export import cloud_graph
    from edgemux.compression.verify import self_contained

    graph = cloud_graph(cloud, 1.0, int8=True)
    graph.graph.doc_string = "made by me"
    with pytest.raises(PassError, match="doc strings"):
        self_contained("cloud", graph)
    graph.graph.doc_string = ""
    graph.graph.initializer[0].data_location = 1
    with pytest.raises(PassError, match="another file"):
        self_contained("cloud", graph)


def test_int8_storage_is_a_quarter_of_the_bytes(cloud: Any) -> None:
    from edgemux.compression.export import cloud_graph

    assert cloud_graph(cloud, 1.0, int8=True).ByteSize() < 0.5 * cloud_graph(cloud, 1.0, int8=False).ByteSize()


def test_parameters_and_work_are_those_of_the_net(cloud: Any, torch: Any) -> None:
    from edgemux.compression import profile
    from edgemux.compression.export import cloud_graph

    convs = [part for part in cloud.modules() if isinstance(part, torch.nn.Conv2d)]
    weights = sum(conv.weight.numel() + conv.out_channels for conv in convs) + 16 * 10 + 10
    # Stem and middle at 14x14, the top at 7x7.
    work = 196 * (8 * 25 + 8 * 12 * 9 + 12 * 12 * 9) + 49 * (12 * 16 * 9 + 2 * 16 * 16 * 9) + 160
    for int8 in (False, True):
        graph = cloud_graph(cloud, 1.0, int8)
        assert profile.parameters(graph) == weights
        assert profile.macs(graph) == work


def test_the_gates_in_onnx_score_as_they_were_fitted(images: Any) -> None:
    from edgemux.compression.gates import post_gate_graph, pre_gate_graph
    from edgemux.compression.multiplex import glances
    from edgemux.multiplexer.learned import Net
    from edgemux.multiplexer.training.fit import post_features, post_scores, pre_scores
    from edgemux.multiplexer.training.labels import one_hot

    rng = np.random.default_rng(4)

    def net(width: int, outputs: int, scale: float) -> Net:
        return Net(
            rng.normal(size=(6, width)) * scale,
            rng.normal(size=6),
            rng.normal(size=(outputs, 6)),
            rng.normal(size=outputs),
        )

    pre = net(49, 5, 1 / 255)
    scores = answers_of(OnnxModel(pre_gate_graph(pre).SerializeToString(), "pre"), images)
    assert np.abs(scores - pre_scores(pre, glances(images))).max() < 1e-5
    level = one_hot(3, 4, len(images))
    for classes in (2, 10, 200):
        p = rng.dirichlet(np.ones(classes), len(images)).astype(np.float32)
        post = net(post_features(p, level, scores).shape[1], 5, 0.2)
        gate = OnnxModel(post_gate_graph(post, 4, classes).SerializeToString(), "post")
        (after,) = gate.run({"probabilities": p, "level": level, "scores": scores})
        assert np.abs(after - post_scores(post, p, level, scores)).max() < 1e-4
