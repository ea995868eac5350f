"""The only place on the request path that knows ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

# Linux wheels from 1.29 on report to their vendor unless this is set *before* the library initialises.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_scan import refuse_external_data

Array = NDArray[Any]


def runtime() -> tuple[str, tuple[str, ...], bool]:
    """The library's version, its execution providers, and whether its reports to its vendor were off when it began."""
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    return str(ort.__version__), tuple(ort.get_available_providers()), off


class Stop:
    """Ends a run that goes on in another thread, within one node of the graph; the run then raises."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()

    def now(self) -> None:
        """End it; before the run has begun, it ends as it begins."""
        self.options.terminate = True


class OnnxModel:
    """One ONNX graph on one CPU thread, loaded from verified bytes.

    ``inputs`` and ``outputs`` are the graph's tensor names in graph order; their types as the library writes them,
    ``tensor(float)``, and their shapes with a name or None where a size is open.
    """

    def __init__(self, content: bytes, name: str, threads: int = 1, quiet: bool = False) -> None:
        """Load a graph from ``content``; ``name`` is used in messages only. quiet: for runs that are expected to fail.

        Raises ArtifactError when ONNX Runtime refuses it or its weights are not all in ``content``.
        """
        refuse_external_data(content, name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4 if quiet else 3
        # Weights that are only stored as integers are folded to fp32 at load: a smaller file at the same speed. A graph
        # that also quantises its activations is left as it is: there the integers are for computing with.
        computes_in_integers = b"QuantizeLinear" in content
        options.add_session_config_entry("session.disable_quant_qdq", "0" if computes_in_integers else "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises a dozen unrelated types here
            raise ArtifactError(f"{name}: ONNX Runtime cannot load it ({type(error).__name__})") from error
        self.name = name
        given = self._session.get_inputs()
        self.inputs: tuple[str, ...] = tuple(tensor.name for tensor in given)
        self.input_types: tuple[str, ...] = tuple(tensor.type for tensor in given)
        self.input_shapes: tuple[tuple[int | str | None, ...], ...] = tuple(tuple(tensor.shape) for tensor in given)
        made = self._session.get_outputs()
        self.outputs: tuple[str, ...] = tuple(tensor.name for tensor in made)
        self.output_types: tuple[str, ...] = tuple(tensor.type for tensor in made)
        self.output_shapes: tuple[tuple[int | str | None, ...], ...] = tuple(tuple(tensor.shape) for tensor in made)

    @classmethod
    def read(cls, path: Path, threads: int = 1, quiet: bool = False) -> OnnxModel:
        """Load from a file whose digest nobody checks: for the toolchain, never for serving."""
        return cls(path.read_bytes(), path.name, threads, quiet)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None, stop: Stop | None = None
    ) -> list[Array]:
        """Run the graph; blocks the caller, until ``stop`` if that comes first.

        Returns the named outputs (default: all), in order.
        """
        result: list[Array] = self._session.run(outputs, feeds, None if stop is None else stop.options)
        return result
