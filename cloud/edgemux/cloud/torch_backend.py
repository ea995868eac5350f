"""torch behind the port: an archive of ``torch.export``, on the CPU or on a CUDA device.

The one module of the server that imports torch, and that only where such a model is configured.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export.passes import move_to_device_pass

from edgemux.cloud.backend import Arrays, batched, read_file
from edgemux.cloud.torch_graphs import Graphs, recordable
from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.errors import ArtifactError, ConfigError, ExecutionError

_DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "FP32",  # numpy has none: it leaves as FP32
    torch.float32: "FP32",
    torch.float64: "FP64",
}
_DTYPES = {datatype: dtype for dtype, datatype in _DATATYPES.items() if dtype is not torch.bfloat16}
_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """A ``.pt2`` archive: inputs by their names in ``forward``, outputs by the keys of the dict that it returns, or
    ``output0``, ``output1``, ...; bfloat16 outputs leave as FP32.

    On CUDA everything goes through pinned buffers that are used again, on a stream of its own; runs are recorded.
    """

    def __init__(
        self,
        path: Path,
        device: Literal["cpu", "cuda", "auto"] = "auto",
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        compiled: bool = False,
        threads: int = 1,
        graphs: bool = True,
    ) -> None:
        """Raises ArtifactError naming the file, ConfigError where there is no such device.

        ``dtype`` is that of matrix products, convolutions and their weights. ``threads``: of the CPU, for all models.
        ``graphs``: whether a CUDA device records its runs.
        """
        self.device = _device(device)
        content = read_file(path)
        self.digest = hashlib.sha256(content).hexdigest()
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
        try:
            program = torch.export.load(io.BytesIO(_without_pickles(content, path.name)))
            module = _without_asserts(move_to_device_pass(program, self.device).module())
        except ArtifactError:
            raise
        except Exception as error:  # with any of the library's types
            raise ArtifactError(f"{path.name}: torch cannot load it") from error
        self.inputs, self.outputs = _signature(path.name, program)
        self._reduced = _REDUCED.get(dtype)
        self._module: Callable[..., Any] = _prepared(module, self.device, self._reduced)
        if compiled:
            self._module = torch.compile(self._module, dynamic=True)
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        self._staged: dict[str, torch.Tensor] = {}
        self._kinds = {tensor.name: _DTYPES[tensor.datatype] for tensor in self.inputs}
        self._graphs: Graphs | None = None
        if self._stream is not None and graphs and recordable(program):
            self._graphs = Graphs(self._call, self._stream, batched(self.inputs, self.outputs))

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Raises ExecutionError when the module fails, or the device has too little memory for it."""
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, self._reduced, enabled=self._reduced is not None, cache_enabled=False),
            ):
                if self._stream is None:
                    return self._read(self._call(self._on_cpu(inputs)), outputs)
                with torch.cuda.stream(self._stream):
                    return self._read_back(self._on_device(self._pinned(inputs)), outputs)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise ExecutionError("the device has too little memory for the batch") from error
        except Exception as error:  # with any of the library's types
            raise ExecutionError("the model fails on what it is given") from error

    def close(self) -> None:
        """Give the weights and buffers back."""
        self._module = _closed
        self._staged.clear()
        if self._graphs is not None:
            self._graphs.clear()
        if self._stream is not None:
            torch.cuda.empty_cache()

    def _call(self, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
        given = self._module(*arguments)
        if isinstance(given, Mapping):
            return list(given.values())
        return list(given) if isinstance(given, Sequence) else [given]

    def _on_cpu(self, inputs: Arrays) -> list[torch.Tensor]:
        return [torch.from_numpy(_writable(inputs[tensor.name])) for tensor in self.inputs]

    def _read(self, given: Sequence[torch.Tensor], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self._wanted(given, outputs)}

    def room(self, name: str, shape: Sequence[int]) -> NDArray[Any] | None:
        """Where an input for the next ``run`` may be put together, so that it need not be copied; None on the CPU."""
        if self._stream is None:
            return None
        room: NDArray[Any] = self._stage(f"to {name}", shape, self._kinds[name]).numpy()
        return room

    def _pinned(self, inputs: Arrays) -> list[torch.Tensor]:
        """Inputs in pinned memory: from there they are copied to the device while the processor goes on."""
        pinned = []
        for name, dtype in self._kinds.items():
            array = inputs[name]
            staged = self._stage(f"to {name}", array.shape, dtype)
            there = staged.numpy()
            if there.ctypes.data != array.ctypes.data:
                np.copyto(there, array)
            pinned.append(staged)
        return pinned

    def _on_device(self, pinned: list[torch.Tensor]) -> list[torch.Tensor]:
        given = None if self._graphs is None else self._graphs.run(pinned)
        if given is None:
            given = self._call([tensor.to(self.device, non_blocking=True) for tensor in pinned])
        return given

    def _read_back(self, given: Sequence[torch.Tensor], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        assert self._stream is not None
        staged = {}
        for name, tensor in self._wanted(given, outputs):
            staged[name] = self._stage(f"from {name}", tensor.shape, tensor.dtype)
            staged[name].copy_(tensor, non_blocking=True)
        self._stream.synchronize()
        return {name: tensor.numpy().copy() for name, tensor in staged.items()}

    def _wanted(self, given: Sequence[torch.Tensor], outputs: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and result of each output that is asked for, of the type that is declared."""
        for tensor, result in zip(self.outputs, given, strict=True):
            if tensor.name in outputs:
                yield tensor.name, result.to(_DTYPES[tensor.datatype]).contiguous()

    def _stage(self, key: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A pinned tensor that is overwritten by the next batch; grows to the largest that there was."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._staged.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._staged[key] = torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True)
        return buffer[:size].view(dtype).view(tuple(shape))


def _closed(*arguments: Any) -> Any:
    raise RuntimeError("closed")


def _device(wanted: str) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("models: device: torch finds no CUDA device here")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def _without_pickles(content: bytes, name: str) -> bytes:
    """The archive without its sample inputs, which the library would unpickle: a pickle can hold any program.

    Raises ArtifactError for one that keeps weights or objects as pickles, and for what is no such archive.
    """
    harmless = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(harmless, "w") as copied:
            names = archive.namelist()
            if not any(file.endswith("models/model.json") for file in names):
                raise ArtifactError(f"{name}: not an archive of torch.export (a .pt2 of torch.export.save)")
            for entry in archive.infolist():
                part = archive.read(entry)
                if entry.filename.endswith("_config.json"):
                    _refuse_pickles(part, name)
                elif "/constants/" in entry.filename and "tensor_" not in entry.filename:
                    raise ArtifactError(f"{name}: holds objects that only a pickle can bring back")
                copied.writestr(entry, b"" if "/sample_inputs/" in entry.filename else part)
    except (zipfile.BadZipFile, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{name}: not an archive of torch.export (a .pt2 of torch.export.save)") from error
    return harmless.getvalue()


def _refuse_pickles(config: bytes, name: str) -> None:
    for entry in json.loads(config)["config"].values():
        if entry.get("use_pickle"):
            raise ArtifactError(f"{name}: holds weights as pickles, which are not loaded")


def _signature(name: str, program: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    spec = program.call_spec.out_spec
    named = spec.context if spec.type is dict else None
    inputs = [_tensor(name, each, nodes[each]) for each in signature.user_inputs]
    outputs = []
    for index, each in enumerate(signature.user_outputs):
        outputs.append(_tensor(name, str(named[index]) if named else f"output{index}", nodes[each]))
    return tuple(inputs), tuple(outputs)


def _tensor(file: str, name: str, node: Any) -> Tensor:
    value = node.meta.get("val")
    datatype = _DATATYPES.get(value.dtype) if isinstance(value, torch.Tensor) else None
    if datatype is None:
        raise ArtifactError(f"{file}: {name} is no tensor of a datatype that is served")
    return Tensor(name, datatype, tuple(size if isinstance(size, int) else -1 for size in value.shape))


def _without_asserts(module: Any) -> Any:
    """What the archive remembers of datatypes and devices holds no longer where either is another one."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()
    return module


def _prepared(module: Any, device: torch.device, reduced: torch.dtype | None) -> Any:
    """The module on its device, weights of matrix products and convolutions in the reduced type.

    autocast would otherwise convert them for every batch; norms and biases stay as they are.
    """
    module = module.to(device)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        if reduced is not None and parameter.dtype == torch.float32 and parameter.dim() >= 2:
            parameter.data = parameter.data.to(reduced)
        if parameter.dim() == 4 and device.type == "cuda":
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """torch shares memory with arrays that may be written only; what comes off the wire may not."""
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy()
