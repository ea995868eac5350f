"""Common ONNX operators in torch, for opsets from 13 on: (inputs, attributes) -> the node's first output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn

from edgemux.multiplexer.errors import PassError

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operator = Callable[[Inputs, Attributes], Tensor]

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
_PAD_MODES = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}


def _at(x: Inputs, position: int) -> Tensor:
    value = x[position]
    assert value is not None
    return value


def _optional(x: Inputs, position: int) -> Tensor | None:
    return x[position] if position < len(x) else None


def _integers(x: Inputs, a: Attributes, position: int, name: str) -> list[int] | None:
    """A list that newer opsets take as an input and older ones as an attribute."""
    value = _optional(x, position)
    if value is not None:
        found: list[int] = value.flatten().tolist()
        return found
    return list(a[name]) if name in a else None


def _padded(x: Tensor, a: Attributes, value: float) -> Tensor:
    """With the pads of a convolution or a pool, which may differ between begin and end."""
    dims = x.ndim - 2
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise PassError(f"auto_pad {a['auto_pad'].decode()} cannot be trained here")
    pads = list(a.get("pads", [0] * (2 * dims)))
    if not any(pads):
        return x
    # torch counts from the last axis on, ONNX from the first.
    turned = [pad for axis in reversed(range(dims)) for pad in (pads[axis], pads[axis + dims])]
    return nn.functional.pad(x, turned, value=value)


def _conv(x: Inputs, a: Attributes) -> Tensor:
    data, weight = _at(x, 0), _at(x, 1)
    dims = data.ndim - 2
    if dims not in (1, 2):
        raise PassError(f"Conv over {dims} axes cannot be trained here")
    pads = list(a.get("pads", [0] * (2 * dims)))
    even = a.get("auto_pad", b"NOTSET") == b"NOTSET" and pads[:dims] == pads[dims:]
    data = data if even else _padded(data, a, 0.0)
    run = nn.functional.conv2d if dims == 2 else nn.functional.conv1d
    return run(
        data,
        weight,
        _optional(x, 2),
        list(a.get("strides", [1] * dims)),
        pads[:dims] if even else [0] * dims,
        list(a.get("dilations", [1] * dims)),
        int(a.get("group", 1)),
    )


def _pool_sizes(x: Tensor, a: Attributes) -> tuple[list[int], list[int]]:
    if x.ndim != 4:
        raise PassError(f"a pool over {x.ndim - 2} axes cannot be trained here")
    if a.get("ceil_mode", 0) or any(step != 1 for step in a.get("dilations", ())):
        raise PassError("a pool with ceil_mode or dilations cannot be trained here")
    size = list(a["kernel_shape"])
    return size, list(a.get("strides", [1] * len(size)))


def _max_pool(x: Inputs, a: Attributes) -> Tensor:
    size, strides = _pool_sizes(_at(x, 0), a)
    return nn.functional.max_pool2d(_padded(_at(x, 0), a, -math.inf), size, strides)


def _average_pool(x: Inputs, a: Attributes) -> Tensor:
    size, strides = _pool_sizes(_at(x, 0), a)
    if any(a.get("pads", ())) and not a.get("count_include_pad", 0):
        raise PassError("AveragePool that leaves its padding out cannot be trained here")
    return nn.functional.avg_pool2d(_padded(_at(x, 0), a, 0.0), size, strides)


def _global_average(x: Inputs, a: Attributes) -> Tensor:
    data = _at(x, 0)
    return data.mean(dim=tuple(range(2, data.ndim)), keepdim=True)


def _reduce_mean(x: Inputs, a: Attributes) -> Tensor:
    axes = _integers(x, a, 1, "axes")
    data = _at(x, 0)
    return data.mean(dim=axes if axes is not None else list(range(data.ndim)), keepdim=bool(a.get("keepdims", 1)))


def _gemm(x: Inputs, a: Attributes) -> Tensor:
    left, right, added = _at(x, 0), _at(x, 1), _optional(x, 2)
    left = left.t() if a.get("transA", 0) else left
    right = right.t() if a.get("transB", 0) else right
    y = float(a.get("alpha", 1.0)) * (left @ right)
    return y if added is None else y + float(a.get("beta", 1.0)) * added


def _clip(x: Inputs, a: Attributes) -> Tensor:
    least, most = _optional(x, 1), _optional(x, 2)
    return torch.clamp(
        _at(x, 0), None if least is None else float(least), None if most is None else float(most)
    )  # fmt: skip


def _flatten(x: Inputs, a: Attributes) -> Tensor:
    data = _at(x, 0)
    axis = int(a.get("axis", 1)) % (data.ndim + 1)
    return data.reshape(math.prod(data.shape[:axis]), -1)


def _reshape(x: Inputs, a: Attributes) -> Tensor:
    data, wanted = _at(x, 0), _at(x, 1).tolist()
    if a.get("allowzero", 0):
        raise PassError("Reshape with allowzero cannot be trained here")
    return data.reshape([data.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)])


def _squeeze(x: Inputs, a: Attributes) -> Tensor:
    axes = _integers(x, a, 1, "axes")
    return _at(x, 0).squeeze() if axes is None else _at(x, 0).squeeze(tuple(axes))


def _unsqueeze(x: Inputs, a: Attributes) -> Tensor:
    axes = _integers(x, a, 1, "axes") or []
    data = _at(x, 0)
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _pad(x: Inputs, a: Attributes) -> Tensor:
    data, pads, filled = _at(x, 0), _integers(x, a, 1, "pads") or [], _optional(x, 2)
    mode = a.get("mode", b"constant")
    if mode not in _PAD_MODES or _optional(x, 3) is not None:
        raise PassError(f"Pad with mode {mode.decode()} or with axes cannot be trained here")
    rank = data.ndim
    turned = [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[axis + rank])]
    if mode == b"constant":
        return nn.functional.pad(data, turned, value=0.0 if filled is None else float(filled))
    if any(turned[2 * (rank - 2) :]):
        raise PassError("Pad of the first two axes with what is beside them cannot be trained here")
    return nn.functional.pad(data, turned[: 2 * (rank - 2)], mode=_PAD_MODES[mode])


def _batch_norm(x: Inputs, a: Attributes) -> Tensor:
    """As it answers in use: statistics are constants."""
    scale, bias, mean, var = (_at(x, position) for position in range(1, 5))
    return nn.functional.batch_norm(_at(x, 0), mean, var, scale, bias, False, 0.0, float(a.get("epsilon", 1e-5)))


def _cast(x: Inputs, a: Attributes) -> Tensor:
    kind = _TYPES.get(a["to"])
    if kind is None:
        raise PassError(f"Cast to {TensorProto.DataType.Name(a['to'])} cannot be trained here")
    return _at(x, 0).to(kind)


def _transpose(x: Inputs, a: Attributes) -> Tensor:
    data = _at(x, 0)
    return data.permute(list(a.get("perm", reversed(range(data.ndim)))))


def _concat(x: Inputs, a: Attributes) -> Tensor:
    return torch.cat([value for value in x if value is not None], dim=int(a["axis"]))


def _hard_sigmoid(x: Inputs, a: Attributes) -> Tensor:
    return torch.clamp(float(a.get("alpha", 0.2)) * _at(x, 0) + float(a.get("beta", 0.5)), 0.0, 1.0)


def _one(run: Callable[[Tensor], Tensor]) -> Operator:
    return lambda x, a: run(_at(x, 0))


def _two(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda x, a: run(_at(x, 0), _at(x, 1))


def _along(run: Callable[[Tensor, int], Tensor]) -> Operator:
    return lambda x, a: run(_at(x, 0), int(a.get("axis", -1)))


OPERATORS: Mapping[str, Operator] = {
    "Add": _two(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _two(torch.div),
    "Dropout": _one(lambda x: x),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(nn.functional.hardswish),
    "Identity": _one(lambda x: x),
    "LeakyRelu": lambda x, a: nn.functional.leaky_relu(_at(x, 0), float(a.get("alpha", 0.01))),
    "LogSoftmax": _along(torch.log_softmax),
    "MatMul": _two(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _two(torch.mul),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _one(torch.sigmoid),
    "Softmax": _along(torch.softmax),
    "Squeeze": _squeeze,
    "Sub": _two(torch.sub),
    "Tanh": _one(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
