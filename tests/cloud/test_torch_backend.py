"""torch behind the port: the answers of the module itself, whatever the batch, and no pickles."""

from __future__ import annotations

import pickle
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgemux.cloud.backend import batched, check, sample
from edgemux.cloud.torch_backend import TorchBackend
from edgemux.cloud.torch_graphs import recordable
from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.errors import ArtifactError, ConfigError, ExecutionError

CUDA = torch.cuda.is_available()
gpu = pytest.mark.skipif(not CUDA, reason="no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


class Net(nn.Module):
    """Pictures UINT8 [N, 28, 28] and a gain FP32 [N, 1] to logits FP32 [N, 10] and labels INT64 [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor, gain: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(image.to(torch.float32).unsqueeze(1) / 255)
        logits = self.head(self.norm(x).relu().mean((2, 3)) * gain)
        return {"logits": logits, "label": logits.argmax(1)}


def export(module: nn.Module, path: Path, *arguments: torch.Tensor, free: bool = True) -> Path:
    """Write a module as an archive; ``free``: its first dimensions are the batch."""
    shapes = tuple({0: torch.export.Dim("batch", min=1, max=1024)} if free else None for _ in arguments)
    torch.export.save(torch.export.export(module.eval(), arguments, dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def archive(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "net.pt2"
    return export(net, path, torch.zeros(2, 28, 28, dtype=torch.uint8), torch.ones(2, 1))


def _inputs(rows: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(rows)
    image = rng.integers(0, 256, (rows, 28, 28), np.uint8)
    return {"image": image, "gain": rng.random((rows, 1), np.float32)}


def _expected(net: Net, given: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    with torch.inference_mode():
        answer = net(torch.from_numpy(given["image"]), torch.from_numpy(given["gain"]))
    return {name: tensor.numpy() for name, tensor in answer.items()}


def test_the_tensors_are_those_of_the_module(archive: Path) -> None:
    backend = TorchBackend(archive, "cpu")
    assert backend.inputs == (Tensor("image", "UINT8", (-1, 28, 28)), Tensor("gain", "FP32", (-1, 1)))
    assert backend.outputs == (Tensor("logits", "FP32", (-1, 10)), Tensor("label", "INT64", (-1,)))
    assert batched(backend.inputs, backend.outputs)
    assert len(backend.digest) == 64


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 5e-2)])
def test_the_answers_are_those_of_the_module_whatever_the_batch(
    net: Net, archive: Path, device: Any, dtype: Any, tolerance: float
) -> None:
    backend = TorchBackend(archive, device, dtype)
    for rows in (1, 3, 64, 2):  # growing and shrinking: buffers are used again
        given = _inputs(rows)
        answer = check(backend, given)
        np.testing.assert_allclose(answer["logits"], _expected(net, given)["logits"], atol=tolerance)
    backend.close()


@pytest.mark.parametrize("device", DEVICES)
def test_an_answer_is_not_changed_by_the_next_batch(archive: Path, device: Any) -> None:
    backend = TorchBackend(archive, device)
    first = backend.run(_inputs(4), ["logits"])["logits"]
    kept = first.copy()
    backend.run(_inputs(5), ["logits"])
    np.testing.assert_array_equal(first, kept)


def test_only_the_outputs_that_are_asked_for_are_given_and_inputs_may_be_read_only(archive: Path) -> None:
    given = _inputs(2)
    for array in given.values():
        array.flags.writeable = False
    assert list(TorchBackend(archive, "cpu").run(given, ["label"])) == ["label"]


def test_a_tuple_of_outputs_is_numbered_and_a_fixed_batch_is_not_batched(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 1, (x * 2).to(torch.bfloat16)

    backend = TorchBackend(export(Pair(), tmp_path / "pair.pt2", torch.zeros(4, 3), free=False), "cpu")
    assert [tensor.name for tensor in backend.outputs] == ["output0", "output1"]
    assert not batched(backend.inputs, backend.outputs)
    answer = check(backend, sample(backend))
    assert answer["output1"].dtype == np.float32


def test_a_model_whose_answers_are_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"ratio": x / x.sum(1, keepdim=True), "lost": x / 0}

    backend = TorchBackend(export(Endless(), tmp_path / "endless.pt2", torch.ones(2, 3)), "cpu")
    with pytest.raises(ArtifactError, match="lost"):
        sample(backend)


def test_a_model_that_divides_by_what_it_is_given_is_tried_with_ones(tmp_path: Path) -> None:
    class Ratio(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.sum(1, keepdim=True)

    backend = TorchBackend(export(Ratio(), tmp_path / "ratio.pt2", torch.ones(2, 3)), "cpu")
    assert sample(backend)["x"].all()


def test_a_module_that_fails_is_an_error_of_execution(archive: Path) -> None:
    backend = TorchBackend(archive, "cpu")
    with pytest.raises(ExecutionError):
        backend.run({"image": np.zeros((1, 5, 5), np.uint8), "gain": np.ones((1, 1), np.float32)}, ["logits"])
    backend.run(_inputs(1), ["logits"])
    backend.close()
    with pytest.raises(ExecutionError):
        backend.run(_inputs(1), ["logits"])


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_a_pickle_in_the_sample_inputs_is_not_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trapped = tmp_path / "trapped.pt2"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(trapped, "w") as target:
        for entry in source.infolist():
            bomb = "/sample_inputs/" in entry.filename
            target.writestr(entry, pickle.dumps(_Bomb()) if bomb else source.read(entry))
    TorchBackend(trapped, "cpu").run(_inputs(1), ["logits"])
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_archive_or_holds_pickles_is_refused_by_name(tmp_path: Path, archive: Path) -> None:
    whole = tmp_path / "whole.pt2"
    torch.save(Net(), whole)
    empty = tmp_path / "empty.pt2"
    empty.write_bytes(b"")
    pickled = tmp_path / "pickled.pt2"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(pickled, "w") as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry).replace(b'"use_pickle": false', b'"use_pickle": true'))
    for path in (whole, empty, pickled, tmp_path / "missing.pt2"):
        with pytest.raises(ArtifactError, match=path.name):
            TorchBackend(path, "cpu")


@pytest.mark.skipif(CUDA, reason="there is a CUDA device here")
def test_a_device_that_is_missing_is_said(archive: Path) -> None:
    assert TorchBackend(archive, "auto").device.type == "cpu"
    with pytest.raises(ConfigError, match="CUDA"):
        TorchBackend(archive, "cuda")


@gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_runs_answer_alike_whatever_is_left_over_from_the_batch_before(
    net: Net, archive: Path, compiled: bool
) -> None:
    recorded, plain = TorchBackend(archive, "cuda", compiled=compiled), TorchBackend(archive, "cuda", graphs=False)
    for rows in (8, 5, 7, 1, 64, 33, 100, 5):
        given = _inputs(rows)
        answers = recorded.run(given, ["logits"]), plain.run(given, ["logits"])
        np.testing.assert_allclose(answers[0]["logits"], answers[1]["logits"], atol=1e-3)
        np.testing.assert_allclose(answers[1]["logits"], _expected(net, given)["logits"], atol=1e-3)


class Asking(nn.Module):
    """Numbers FP32 [N, 3], times N, for which it asks the device in between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.nonzero(x.sum(1) > -1e9).shape[0]


class Counting(nn.Module):
    """Numbers FP32 [N, 3], and how many runs there were."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs.add_(1)
        return x + self.runs


def test_what_depends_on_shapes_alone_can_be_recorded(tmp_path: Path, archive: Path) -> None:
    asking = export(Asking(), tmp_path / "asking.pt2", torch.ones(2, 3))
    counting = export(Counting(), tmp_path / "counting.pt2", torch.ones(2, 3))
    assert recordable(torch.export.load(archive))
    assert not recordable(torch.export.load(asking))
    assert not recordable(torch.export.load(counting))


@gpu
def test_a_module_that_cannot_be_recorded_is_run_all_the_same(tmp_path: Path) -> None:
    backend = TorchBackend(export(Asking(), tmp_path / "asking.pt2", torch.ones(2, 3)), "cuda")
    for rows in (2, 3, 64):
        given = {"x": np.ones((rows, 3), np.float32)}
        np.testing.assert_array_equal(backend.run(given, ["output0"])["output0"], given["x"] * rows)


@gpu
def test_inputs_that_are_put_together_in_the_room_for_them_are_not_copied(net: Net, archive: Path) -> None:
    backend = TorchBackend(archive, "cuda")
    given = _inputs(6)
    there = {name: backend.room(name, array.shape) for name, array in given.items()}
    for name, room in there.items():
        assert room is not None
        room[...] = given[name]
    answer = backend.run({name: room for name, room in there.items() if room is not None}, ["logits"])["logits"]
    np.testing.assert_allclose(answer, _expected(net, given)["logits"], atol=1e-3)


@gpu
def test_two_backends_answer_side_by_side_in_two_threads(net: Net, archive: Path) -> None:
    pair = [TorchBackend(archive, "cuda") for _ in range(2)]
    wrong: list[int] = []

    def work(backend: TorchBackend) -> None:
        for rows in (1, 3, 17, 64, 90, 2) * 5:
            given = _inputs(rows)
            if not np.allclose(backend.run(given, ["logits"])["logits"], _expected(net, given)["logits"], atol=1e-3):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(backend,)) for backend in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@gpu
def test_too_large_a_batch_fails_and_the_next_one_is_answered(net: Net, archive: Path) -> None:
    backend = TorchBackend(archive, "cuda")
    given = _inputs(2)
    backend.run(given, ["logits"])
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    # A batch of 1,000 needs some 90 MB.
    held = torch.empty(max(0, free - 30 * 2**20), dtype=torch.uint8, device="cuda")
    with pytest.raises(ExecutionError, match="memory"):
        backend.run(_inputs(1000), ["logits"])
    np.testing.assert_allclose(backend.run(given, ["logits"])["logits"], _expected(net, given)["logits"], atol=1e-4)
    del held


@gpu
def test_a_compiled_module_answers_alike(net: Net, archive: Path) -> None:
    backend = TorchBackend(archive, "cuda", compiled=True)
    given = _inputs(8)
    np.testing.assert_allclose(backend.run(given, ["logits"])["logits"], _expected(net, given)["logits"], atol=1e-3)
