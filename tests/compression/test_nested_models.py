"""``family``: any image classifier in, a family of delta files out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.errors import ArtifactError, ConfigError

COLOUR = (3, 18, 23)


def pictures(torch: Any, shape: tuple[int, int, int], count: int = 96) -> Any:
    """Random pixels in three classes: dark, bright on the left, bright on the right."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 3
    x = torch.randint(0, 128, (count, *shape), generator=generator)
    half = shape[2] // 2
    x[y == 1, :, :, :half] += 120
    x[y == 2, :, :, half:] += 120
    return x.to(torch.uint8), y


@pytest.fixture(scope="module")
def teacher(torch: Any) -> Any:
    """A net that sees the sides, with batch norm and dropout, its modules in different modes."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d((1, 2)),
        torch.nn.Flatten(),
        torch.nn.BatchNorm1d(2 * COLOUR[0]),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(2 * COLOUR[0], 3),
    )
    net.train()
    net[3].eval()
    return net


@pytest.fixture(scope="module")
def made(torch: Any, teacher: Any) -> Any:
    """A family of colour pictures whose height and width are odd and not equal."""
    from edgemux.compression.nested_models import family

    x, y = pictures(torch, COLOUR)
    return family(teacher, (x[:64], y[:64], x[64:], y[64:]), levels=3, max_kb=9.0, epochs=2, seed=3)


def test_every_level_is_a_delta_within_the_budget_of_bytes(made: Any) -> None:
    assert list(made.files) == ["level1.onnx", "level2.onnx", "level3.onnx"]
    sizes = [len(content) for content in made.files.values()]
    assert [level.bytes for level in made.levels] == list(np.cumsum(sizes))
    assert 6_000 < sum(sizes) <= 9_000
    assert made.levels[0].macs < made.levels[1].macs < made.levels[2].macs


def test_the_figures_are_those_of_the_files(torch: Any, made: Any) -> None:
    from edgemux.compression.nested_models import pixels_of
    from edgemux.multiplexer.chain import Chain

    x, y = pictures(torch, COLOUR)
    chain = Chain(made.models(), ["image"])
    pixels = pixels_of(x[64:].float() / 255)
    assert np.array_equal(pixels, x[64:].numpy())
    for level in made.levels:
        chosen = chain.answer({"image": pixels}, level.level).argmax(1)
        assert level.accuracy == np.mean(chosen == y[64:].numpy())
        assert level.interval[0] <= level.accuracy <= level.interval[1]
        assert f"{100 * level.accuracy:.2f} %" in made.report()


def test_the_teacher_is_left_as_it_was(torch: Any, teacher: Any) -> None:
    from edgemux.compression.nested_models import family

    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    drawn = torch.random.get_rng_state()
    x, y = pictures(torch, COLOUR, 48)
    family(teacher, (x, y, x, y), levels=1, max_kb=20, epochs=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert teacher.training and not teacher[3].training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_saved_family_reads_back_and_holds_no_pickle(made: Any, tmp_path: Path) -> None:
    from edgemux.compression.nested_models import NestedModels

    folder = made.save(tmp_path / "family")
    assert sorted(path.name for path in folder.iterdir()) == [*made.files, "manifest.json"]
    again = NestedModels.load(folder)
    assert again.about == made.about
    assert again.files == made.files


def test_a_changed_file_of_a_saved_family_is_refused(made: Any, tmp_path: Path) -> None:
    from edgemux.compression.nested_models import NestedModels

    folder = made.save(tmp_path)
    content = bytearray((folder / "level2.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "level2.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"level2\.onnx"):
        NestedModels.load(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        NestedModels.load(folder)


def test_equal_seeds_give_equal_files(torch: Any, teacher: Any, made: Any) -> None:
    from edgemux.compression.nested_models import family

    x, y = pictures(torch, COLOUR)
    again = family(teacher, (x[:64], y[:64], x[64:], y[64:]), levels=3, max_kb=9.0, epochs=2, seed=3)
    assert again.files == made.files


def test_the_teacher_is_asked_about_pictures_as_they_were_changed(torch: Any, teacher: Any) -> None:
    from edgemux.compression.nested_models import family
    from edgemux.compression.samples import Samples

    asked = []

    class Watched(torch.nn.Module):
        """Notes the mean of what it is asked; copies share the notes."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher

        def forward(self, x: Any) -> Any:
            asked.append(float(x.mean()))
            return self.inner(x)

    x, y = pictures(torch, COLOUR, 48)
    given = Samples.of((x, y, x, y))
    black = Samples(*(getattr(given, n) for n in ("train_x", "train_y", "test_x", "test_y")), change=lambda x, g: x * 0)
    family(Watched(), black, levels=1, max_kb=20, epochs=1)
    assert 0.0 in asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 0}, "levels: "),
        ({"levels": 2.5}, "levels: "),
        ({"max_kb": 2.0}, "max_kb: 3 levels for 3 classes take at least"),
        ({"max_kb": -1}, "max_kb: "),
        ({"epochs": 0}, "epochs: "),
    ],
)
def test_a_wrong_number_is_named(torch: Any, teacher: Any, change: dict[str, Any], message: str) -> None:
    from edgemux.compression.nested_models import family

    x, y = pictures(torch, COLOUR, 48)
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        family(teacher, (x, y, x, y), **{"levels": 3, "epochs": 1} | change)
    assert "\n" not in str(raised.value)


def test_data_that_is_not_pictures_is_refused_in_one_line(torch: Any, teacher: Any) -> None:
    from edgemux.compression.nested_models import family

    x, y = pictures(torch, COLOUR, 48)
    loud = x.float() * 2
    for wrong, message in (
        (x[:, 0], "data: images must be .n, c, h, w. with c in 1..3"),
        (x[:, :, :12], "h and w at least 16, they are .n, 3, 12, 23."),
        (loud, "data: train_x must be pixels in 0..1"),
        (torch.where(loud > 100, torch.nan, 0.5), "data: train_x must be pixels in 0..1"),
        (x[:, :2], "model: fails on inputs float32 .n, 2, 18, 23."),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            family(teacher, (wrong, y, wrong, y), epochs=1)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="model: answers 3 classes, the data has 5"):
        family(teacher, (x, torch.arange(48) % 5, x, y), epochs=1)


def test_files_of_one_channel_take_pictures_without_its_axis(torch: Any) -> None:
    from edgemux.compression.export import level_graph
    from edgemux.compression.nested import NestedNet
    from edgemux.compression.recipe import Augment, Family, Schedule
    from edgemux.multiplexer.chain import Chain
    from edgemux.multiplexer.onnx_model import OnnxModel

    family = Family(
        conv1=(2, 3), conv2=(2, 3), conv3=(3, 4), conv4=(3, 4), loss_weights=(1.0, 1.0), distill=0.0,
        temperature_t=1.0, quantise_last=0.0, schedule=Schedule(epochs=1, batch=1, peak_rate=0.1), augment=Augment(),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for shape in ((1, 17, 30), (2, 31, 16)):
        net = NestedNet(family, shape, 5).eval()
        graphs = [level_graph(net, k, 1.0, int8=False) for k in (1, 2)]
        chain = Chain([OnnxModel(g.SerializeToString(), "level") for g in graphs], ["image"])
        pixels = rng.integers(0, 256, (4, *shape), dtype=np.uint8)
        with torch.inference_mode():
            trained = torch.softmax(net(torch.from_numpy(pixels).float() / 255), -1).numpy()
        fed = pixels[:, 0] if shape[0] == 1 else pixels
        for level in (1, 2):
            assert np.abs(chain.answer({"image": fed}, level) - trained[level - 1]).max() < 1e-4
