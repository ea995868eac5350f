"""Networks as others build them can be cut everywhere: head and then tail answer as the whole does."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnx")

pytest.importorskip("torch")

import torch
from torch import nn

from edgemux.compression.to_onnx import exported
from tests.split_graphs import check_every_cut

# A picture or a sequence of one input, each small.
PICTURE, SEQUENCE = (1, 3, 16, 16), (1, 6, 8)


def conv(given: int, made: int, size: int = 3, **how: Any) -> Any:
    how.setdefault("padding", size // 2)
    return nn.Sequential(nn.Conv2d(given, made, size, bias=False, **how), nn.BatchNorm2d(made), nn.ReLU())


class Residual(nn.Module):
    """Two branches and the input itself meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.long, self.short = conv(3, 8), nn.Sequential(conv(8, 8), conv(8, 8)), conv(8, 8, 1)
        self.down, self.out = conv(8, 12, stride=2), nn.Linear(12, 5)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        x = torch.relu(x + self.long(x) + self.short(x))
        return self.out(self.down(x).mean((2, 3))).softmax(1)


class Depthwise(nn.Module):
    """Inverted residuals, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.each = conv(3, 8), conv(8, 24, 1), conv(24, 24, groups=24)
        self.narrow = nn.Sequential(nn.Conv2d(24, 8, 1), nn.BatchNorm2d(8))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.Hardswish(), nn.Conv2d(6, 24, 1), nn.Hardsigmoid()
        )
        self.out = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        inside = self.each(self.wide(x))
        return self.out((x + self.narrow(inside * self.squeeze(inside))).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(3 + 4 * i, 4) for i in range(4))
        self.out = nn.Linear(19, 5)

    def forward(self, x: Any) -> Any:
        made = [x]
        for layer in self.layers:
            made.append(layer(torch.cat(made, 1)))
        return self.out(torch.cat(made, 1).mean((2, 3)))


class Inception(nn.Module):
    """Four branches, and an answer on the way beside the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three, self.five = conv(3, 4, 1), conv(3, 4), nn.Sequential(conv(3, 4, 1), conv(4, 4, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(3, 4, 1))
        self.aside, self.out = nn.Linear(16, 5), nn.Linear(16, 5)
        self.last = conv(16, 16)

    def forward(self, x: Any) -> Any:
        x = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)
        return self.out(self.last(x).mean((2, 3))), self.aside(x.mean((2, 3)))


class Unet(nn.Module):
    """What goes down comes up again, and meets what stayed on its level."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.below = conv(3, 6), conv(6, 12, stride=2)
        self.bottom = conv(12, 12, stride=2)
        self.up, self.last = nn.ConvTranspose2d(12, 12, 2, 2), nn.ConvTranspose2d(24, 6, 2, 2)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Any) -> Any:
        top = self.down(x)
        middle = self.below(top)
        x = self.up(self.bottom(middle))
        return self.out(torch.cat([top, self.last(torch.cat([middle, x], 1))], 1))


class Transformer(nn.Module):
    """Two layers of attention under a mask that is made once, of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(8, 24), "mix": nn.Linear(8, 8), "n": nn.LayerNorm(8)}) for _ in range(2)
        )
        self.out = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        mask = (x[:, :, 0] < -1.0).float()[:, None, None, :] * -1e4
        for layer in self.layers:
            q, k, v = (
                part.reshape(-1, 6, 2, 4).transpose(1, 2) for part in layer["qkv"](layer["n"](x)).chunk(3, dim=2)
            )
            seen = (q @ k.transpose(2, 3) / 2.0 + mask).softmax(3) @ v
            x = x + layer["mix"](seen.transpose(1, 2).reshape(-1, 6, 8))
        return self.out(x.mean(1)).softmax(1)


class Lstm(nn.Module):
    """Two layers, and the state of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 6, num_layers=2, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(x)[0][:, -1])


PICTURES = {"resnet": Residual, "mobilenet": Depthwise, "densenet": Dense, "inception": Inception, "unet": Unet}
SEQUENCES = {"transformer": Transformer, "lstm": Lstm}
# Of each: at least so many cuts, and tensors that cross at the widest of them.
EXPECTED = {
    "resnet": (10, 2),
    "mobilenet": (10, 3),
    "densenet": (10, 4),
    "inception": (12, 4),
    "unet": (8, 3),
    "transformer": (30, 4),
    "lstm": (4, 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_place_in_a_network_of_a_known_kind_is_a_cut(name: str) -> None:
    torch.manual_seed(0)
    net = (PICTURES | SEQUENCES)[name]().eval()
    whole = check_every_cut(exported(net, torch.rand(PICTURE if name in PICTURES else SEQUENCE)).SerializeToString())
    least, widest = EXPECTED[name]
    assert len(whole.cuts) >= least
    assert max(len(cut.tensors) for cut in whole.cuts) >= widest
