"""The nested family: a higher level never changes a lower one, in torch and in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemux.compression.chain import run_levels, run_top
from edgemux.multiplexer.onnx_model import OnnxModel


def loaded(family: Any, temperatures: list[float], int8: bool) -> list[OnnxModel]:
    from edgemux.compression.export import level_graph

    graphs = [level_graph(family, k, t, int8) for k, t in enumerate(temperatures, start=1)]
    return [OnnxModel(graph.SerializeToString(), f"level{k}") for k, graph in enumerate(graphs, start=1)]


def test_channels_of_a_group_read_only_groups_up_to_their_own(family: Any) -> None:
    for layer in (family.conv2, family.conv3, family.conv4):
        weight = layer.weight().detach().numpy()
        for rows_end, seen in zip(layer.c_out, layer.c_in, strict=True):
            assert not weight[:rows_end, seen:].any()


def test_weights_of_a_higher_level_do_not_reach_a_lower_one_in_torch(family: Any, torch: Any) -> None:
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = family(x)
        for layer in (family.conv1, family.conv2, family.conv3, family.conv4):
            for level in (2, 3, 4):
                layer.conv.weight[layer.c_out[level - 2] : layer.c_out[level - 1]].normal_()
        after = family(x)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[3], after[3])


def test_a_step_of_training_keeps_the_masked_weights_without_effect(family: Any, torch: Any) -> None:
    family.train()
    optimiser = torch.optim.SGD(family.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        family(torch.rand(8, 1, 28, 28)).square().sum().backward()
        optimiser.step()
    assert not family.conv3.weight()[: family.conv3.c_out[0], family.conv3.c_in[0] :].any()


def test_a_level_answers_the_same_bits_whether_or_not_the_next_is_run_in_onnx(family: Any, images: Any) -> None:
    chain = loaded(family, [1.0, 1.1, 1.2, 1.3], int8=True)
    everything = run_levels(chain, images)
    for level in range(1, 5):
        assert np.array_equal(run_levels(chain[:level], images)[-1], everything[level - 1])
        assert np.array_equal(run_top(chain[:level], images), everything[level - 1])


def test_the_files_answer_as_torch_does(family: Any, torch: Any, images: Any) -> None:
    temperatures = [1.0, 0.8, 1.5, 2.0]
    with torch.inference_mode():
        logits = family(torch.from_numpy(images).float()[:, None] / 255.0)
        trained = torch.softmax(logits / torch.tensor(temperatures)[:, None, None], -1).numpy()
    for int8 in (False, True):
        for answers, expected in zip(run_levels(loaded(family, temperatures, int8), images), trained, strict=True):
            assert np.abs(answers - expected).max() < 1e-4


def test_level_one_fits_in_6_kb_and_all_levels_in_100_kb(family: Any) -> None:
    from edgemux.compression.export import level_graph

    sizes = [level_graph(family, k, 1.0, int8=True).ByteSize() for k in range(1, 5)]
    assert sizes[0] <= 6_000
    assert sum(sizes) <= 100_000


def test_the_last_level_hands_on_no_state_and_every_delta_reads_only_lower_levels(family: Any) -> None:
    chain = loaded(family, [1.0] * 4, int8=True)
    known = {"image"}
    for model in chain:
        assert set(model.inputs) <= known
        known |= set(model.outputs) - {"probabilities"}
    assert chain[-1].outputs == ("probabilities",)
