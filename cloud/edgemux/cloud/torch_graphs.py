"""Runs of a module that a CUDA device has recorded, and that are started as one instead of kernel by kernel.

Measured on an H100 with a ResNet-18: docs/gpu.md.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from edgemux.cloud.events import ModelNotRecorded
from edgemux.wire.events import kind, places, tell

# Batches of up to so many rows are filled up to the next power of two; larger ones keep the device busy as they are.
MOST_FILLED_UP = 64
# Shapes that are recorded; each holds on to its inputs and outputs, what is in between is shared.
MOST_SHAPES = 24
# For what libraries keep on the device beside the module's own.
SPARE_BYTES = 64 * 2**20

_log = logging.getLogger("edgemux.cloud")

Call = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class _Recorded(msgspec.Struct, frozen=True):
    """A recorded run, and where it reads and writes on the device."""

    graph: Any
    inputs: list[Any]
    outputs: list[Any]


class Graphs:
    """Recorded runs by shape. Used from one thread at a time, within ``stream``."""

    def __init__(self, call: Call, stream: torch.cuda.Stream, together: bool) -> None:
        """``together``: the first dimension of everything is the batch, and rows do not depend on one another."""
        self._call = call
        self._stream = stream
        self._together = together
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[tuple[tuple[int, ...], ...], _Recorded | None] = {}
        self._broken = False

    def run(self, staged: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Outputs on the device, which the next run overwrites, for inputs in pinned memory.

        None where this shape is not recorded. Raises what the module raises.
        """
        rows = len(staged[0]) if self._together else 0
        sizes = tuple(filled_up(tensor.shape, rows) for tensor in staged)
        recorded = self._recorded.get(sizes)
        if recorded is None:
            if sizes in self._recorded or len(self._recorded) >= MOST_SHAPES or self._broken:
                return None
            recorded = self._recorded[sizes] = self._try(staged, sizes)
            if recorded is None:
                return None
        for there, here in zip(recorded.inputs, staged, strict=True):
            (there[:rows] if rows else there).copy_(here, non_blocking=True)
        recorded.graph.replay()
        return [output[:rows] for output in recorded.outputs] if rows else recorded.outputs

    def clear(self) -> None:
        """Give everything back."""
        self._recorded.clear()

    def _try(self, staged: Sequence[torch.Tensor], sizes: Sequence[tuple[int, ...]]) -> _Recorded | None:
        # The quickest kernels for these very shapes, which is found out before anything is recorded.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            try:
                inputs = self._warmed_up(staged, sizes)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                return None
            except Exception:  # of the library's; without the rows that fill it up the batch may be well
                return None
            if inputs is None:
                return None
            try:
                return self._record(inputs)
            except Exception as error:  # with any of the library's types
                # Never again: after a record that failed, which ``recordable`` should have foreseen, the library gives
                # cached memory back no more (seen with 2.11, whatever is called then).
                self._broken = True
                tell(_log, ModelNotRecorded(error=kind(error), at=places(error)))
        return None

    def _warmed_up(self, staged: Sequence[torch.Tensor], sizes: Sequence[tuple[int, ...]]) -> list[torch.Tensor] | None:
        """Inputs on the device with which the module has run; None when memory is too scarce to record that."""
        device = self._stream.device
        inputs = [torch.zeros(size, dtype=each.dtype, device=device) for size, each in zip(sizes, staged, strict=True)]
        for there, here in zip(inputs, staged, strict=True):
            (there[: len(here)] if self._together else there).copy_(here, non_blocking=True)
        self._call(inputs)  # what is compiled, chosen or set up by a first run
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self._call(inputs)
        self._stream.synchronize()
        needed = torch.cuda.max_memory_allocated(device) - before
        # A record has memory of its own: what is cached for other runs is of no use to it.
        torch.cuda.empty_cache()
        return inputs if torch.cuda.mem_get_info(device)[0] >= 2 * needed + SPARE_BYTES else None

    def _record(self, inputs: list[torch.Tensor]) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        # Other threads, with other models, may ask the device for memory meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            outputs = self._call(inputs)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return _Recorded(graph, inputs, outputs)


def recordable(program: Any) -> bool:
    """Whether what an exported program does depends on shapes alone, and it keeps nothing from one run to the next."""
    if program.graph_signature.buffers_to_mutate:
        return False
    nodes = list(program.graph.nodes)
    values = [value for node in nodes if (value := node.meta.get("val")) is not None]
    if any(free_unbacked_symbols(value) for value in values):
        return False
    if len({value.device for value in values if isinstance(value, torch.Tensor)}) > 1:
        return False
    return not any(_root(written).op == "placeholder" for node in nodes for written in _written(node))


def _written(node: Any) -> list[Any]:
    """What an operation writes to."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return []
    pairs = zip(node.args, schema.arguments, strict=False)
    return [given for given, each in pairs if each.alias_info is not None and each.alias_info.is_write]


def _root(node: Any) -> Any:
    """What a node is a view of, or itself."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        aliased = schema is not None and any(each.alias_info is not None for each in schema.returns)
        if not aliased or not isinstance(node.args[0], torch.fx.Node):
            break
        node = node.args[0]
    return node


def filled_up(shape: Sequence[int], rows: int) -> tuple[int, ...]:
    """The shape that is run for one of ``rows`` rows; 0 for one without a batch, which stays as it is."""
    if not rows or rows > MOST_FILLED_UP:
        return tuple(shape)
    return (1 << (rows - 1).bit_length(), *shape[1:])
