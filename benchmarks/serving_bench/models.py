"""The two models that every server is given: made here, with weights by chance; what they answer does not matter.

A CNN of 49,018 parameters on FP32 [N, 1, 28, 28], where serving costs more than computing; and a net of ResNet-18's
layers and size, 11 million parameters, on UINT8 [N, 3, 112, 112], where computing is nearly all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 112


def _cnn(nn: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


def _resnet(torch: Any) -> Any:
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
            )
            self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
            plain = stride == 1 and inside == outside
            self.past = (
                nn.Identity()
                if plain
                else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
            )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(self.first(x)) + self.past(x))

    class Bytes(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.to(torch.float32) / 127.5 - 1.0

    widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    blocks = [Block(*args) for i, o, s in widths for args in ((i, o, s), (o, o, 1))]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(Bytes(), *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def make(folder: Path) -> dict[str, Path]:
    """``small`` and ``large`` as ONNX files in ``folder``; made once. Needs torch and onnx."""
    paths = {name: folder / f"{name}.onnx" for name in ("small", "large")}
    if all(path.is_file() for path in paths.values()):
        return paths
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    examples = {
        "small": (_cnn(torch.nn), torch.zeros(2, 1, 28, 28)),
        "large": (_resnet(torch), torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)),
    }
    for name, (net, example) in examples.items():
        partial = paths[name].with_suffix(".partial")
        torch.onnx.export(
            net.eval(),
            (example,),
            str(partial),
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "n"}, "scores": {0: "n"}},
            opset_version=17,
            dynamo=False,
        )
        partial.rename(paths[name])
    return paths
