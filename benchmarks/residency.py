"""Levels in memory: what holding all of them costs beside the widest alone, and what changing the level costs.

    python benchmarks/residency.py [--scale N] [--repeats N]

Measured for the starter bundle and for a family of N times its widths with random weights, where memory is not just
the runtime's fixed cost. Every figure is the median over fresh processes that know ONNX Runtime and nothing of
torch. Private memory is Private_Dirty of /proc/self/smaps_rollup after one answer of each level, less that of a
process that only ran a trivial graph. Raising is reading the files that the next level needs and making its session;
lowering is dropping it. "mapped" is a graph that was optimised once on this machine, its weights mapped from a file
beside it. Wall times move with what else the machine does, so CPU times stand beside them and a missed target is
printed, not an exit status.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemux.compression.hardware import hardware
from edgemux.multiplexer.chain import Chain
from edgemux.multiplexer.onnx_model import OnnxModel, ort

DEPLOY = Path(__file__).parents[1] / "deploy"
RECIPE = DEPLOY / "recipes" / "fashion-mnist.toml"
BUNDLE = DEPLOY / "bundles" / "fashion-mnist"
LEVELS = (1, 2, 3, 4)
RAISE_MS, RESIDENT_RATIO = 5.0, 1.3
TRIVIAL, WHOLE, SLICED = "trivial.onnx", "whole.onnx", "sliced.onnx"
IMAGE = np.full((1, 28, 28), 60, np.uint8)
# Layout -> its files by rising level, and what it is called in the table.
LAYOUTS = {
    "nothing": ((), ""),
    "whole": ((WHOLE,), "widest level alone, one graph"),
    "deltas": (tuple(f"level{k}.onnx" for k in LEVELS), "all levels: deltas"),
    "separate": (tuple(f"dense{k}.onnx" for k in LEVELS), "all levels: dense nets, same sizes"),
    "sliced": ((SLICED,), "all levels: one dense net, sliced"),
    "mapped-whole": ((WHOLE,), "widest level alone, mapped"),
    "mapped": (tuple(f"level{k}.onnx" for k in LEVELS), "all levels: deltas, mapped"),
}


class Mapped(OnnxModel):
    """A graph that was optimised on this machine, its weights mapped from a file beside it.

    Not for serving as it stands: the agent loads nothing whose every byte it has not digested.
    """

    def __init__(self, path: Path) -> None:
        options = _options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.name = path.name
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor.name for tensor in self._session.get_outputs())


def _options() -> Any:
    """The options of ``OnnxModel``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def optimise(path: Path) -> None:
    """What a device would do once, at installation: keep the optimised graph, its weights in a file beside it."""
    options = _options()
    options.log_severity_level = 4  # the library warns that the file suits this hardware only, which is the point
    options.optimized_model_filepath = str(mapped_file(path))
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", mapped_file(path).with_suffix(".bin").name
    )
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # Until a file is on the disk, the pages that map it count as dirty, and as whose they are.
    for written in (mapped_file(path), mapped_file(path).with_suffix(".bin")):
        with written.open("rb") as file:
            os.fsync(file.fileno())


def mapped_file(path: Path) -> Path:
    """Where the optimised form of a graph is kept."""
    return path.with_name(f"{path.stem}-optimised.onnx")


# --- in a fresh process -------------------------------------------------------------------------------------------
def private_bytes() -> int:
    """Private_Dirty of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return 1024 * int(line.split()[1])
    raise OSError("no Private_Dirty in /proc/self/smaps_rollup")


def read_bytes() -> int:
    """Bytes that this process has read from files, this call's own included."""
    return int(Path("/proc/self/io").read_text().split()[1])


def work(layout: str, folder: Path) -> dict[str, Any]:
    """Load a layout, run each level, then change the level back and forth."""
    OnnxModel.read(folder / TRIVIAL).run({"image": IMAGE})
    read_bytes(), private_bytes(), gc.collect()
    before = private_bytes()
    names, _ = LAYOUTS[layout]
    models = [opened(layout, folder / name) for name in names]
    answers = answering(layout, models)
    for answer in answers:
        for _ in range(3):
            answer()
    found: dict[str, Any] = {"private": private_bytes() - before}
    found["ms"] = [statistics.median(timed(answer)[0] for _ in range(30)) for answer in answers]
    del answers
    if len(names) > 1:
        found["raise"] = [raised(layout, folder / name, models, at) for at, name in enumerate(names)]
    return found


def opened(layout: str, path: Path) -> OnnxModel:
    """A graph as the layout loads it."""
    return Mapped(mapped_file(path)) if layout.startswith("mapped") else OnnxModel.read(path)


def answering(layout: str, models: list[OnnxModel]) -> list[Callable[[], object]]:
    """One call a level, each from nothing but the image."""
    if layout in ("deltas", "mapped"):
        chain = Chain(models, ["image"])
        return [lambda k=k: chain.answer({"image": IMAGE}, k) for k in LEVELS]  # type: ignore[misc]
    if layout == "sliced":
        feeds = [{"image": IMAGE, "level": np.array([k - 1], np.int64)} for k in LEVELS]
        return [lambda f=f: models[0].run(f) for f in feeds]  # type: ignore[misc]
    return [lambda m=m: m.run({"image": IMAGE}) for m in models]  # type: ignore[misc]


def raised(layout: str, path: Path, models: list[OnnxModel], at: int) -> dict[str, float]:
    """Lower to below a level and raise to it again, a few times: medians in ms, bytes read or mapped."""
    up, down, own = [], [], -read_bytes() + read_bytes()
    for _ in range(5):
        began = read_bytes()
        down.append(timed(lambda: models.__setitem__(at, None))[0])  # type: ignore[call-overload]
        lowered = read_bytes()
        up.append(timed(lambda: models.__setitem__(at, opened(layout, path))))
        read = read_bytes() - lowered - own
    mapped = mapped_file(path).with_suffix(".bin").stat().st_size if layout == "mapped" else 0
    return {
        "ms": statistics.median(ms for ms, _ in up),
        "cpu_ms": statistics.median(cpu for _, cpu in up),
        "bytes": read + mapped,
        "down_ms": statistics.median(down),
        "down_bytes": lowered - began - own,
    }


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of a call, in ms."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


# --- making the files ---------------------------------------------------------------------------------------------
def write_graphs(folder: Path, scale: int, bundle: Path | None) -> None:
    """All graphs of a family of ``scale`` times the recipe's widths; the deltas are the bundle's where there is one."""
    import msgspec
    import onnx
    import torch

    from edgemux.compression import export, recipe, widths
    from edgemux.compression.nested import NestedNet

    torch.set_num_threads(1)
    torch.manual_seed(1)
    family = recipe.load(RECIPE).family
    scaled = {name: tuple(scale * width for width in getattr(family, name)) for name in widths.LAYERS}
    family = msgspec.structs.replace(family, **scaled)
    net = NestedNet(family).eval()
    for k in LEVELS:
        name = f"level{k}.onnx"
        content = (bundle / name).read_bytes() if bundle else export.level_graph(net, k, 1.0, True).SerializeToString()
        (folder / name).write_bytes(content)
        dense = NestedNet(widths.alone(family, widths.same_size(family, k))).eval()
        (folder / f"dense{k}.onnx").write_bytes(export.level_graph(dense, 1, 1.0, True).SerializeToString())
    whole = joined([onnx.load(folder / f"level{k}.onnx") for k in LEVELS])
    (folder / WHOLE).write_bytes(whole.SerializeToString())
    layers = [getattr(family, name) for name in widths.LAYERS]
    (folder / SLICED).write_bytes(sliced_graph(layers).SerializeToString())
    (folder / TRIVIAL).write_bytes(trivial_graph().SerializeToString())
    for name in (*LAYOUTS["mapped"][0], WHOLE):
        optimise(folder / name)


def joined(deltas: Sequence[Any]) -> Any:
    """The widest level as one graph: all deltas, of which only the last answers."""
    import onnx

    nodes, constants = [], []
    for number, delta in enumerate(deltas):
        last = delta is deltas[-1]
        shared = {value.name for value in (*delta.graph.input, *delta.graph.output)}
        shared -= set() if last else {"probabilities"}
        # Heads of lower levels have no reader now; the runtime drops them.
        renamed = {"": ""} | {name: name for name in shared}
        for tensor in delta.graph.initializer:
            constants.append(onnx.TensorProto())
            constants[-1].CopyFrom(tensor)
            constants[-1].name = f"{tensor.name}_{number}"
        for node in delta.graph.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, f"{name}_{number}") for name in names]
            nodes.append(node)
    graph = onnx.helper.make_graph(nodes, "g", [deltas[0].graph.input[0]], deltas[-1].graph.output, constants)
    model = onnx.helper.make_model(graph, opset_imports=deltas[0].opset_import, ir_version=deltas[0].ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def sliced_graph(layers: Sequence[tuple[int, ...]]) -> Any:
    """A dense net with random weights; ``level`` (0 = smallest) says how many channels of each layer are used."""
    from onnx import TensorProto

    from edgemux.compression.graph import Graph

    rng = np.random.default_rng(1)
    graph = Graph(int8=True)
    x = graph.image()
    level = graph.input("level", TensorProto.INT64, ())
    zero, zeros, axes = (graph.constant(np.array(v, np.int64)) for v in ([0], [0, 0], [0, 1]))
    below, c_in = graph.constant(np.array([1], np.int64)), 1
    for at, (used, size) in enumerate(zip(layers, (5, 3, 3, 3), strict=True)):
        weight = graph.weight(rng.normal(0, (2 / (c_in * size * size)) ** 0.5, (used[-1], c_in, size, size)))
        width = graph.add("Gather", graph.constant(np.array(used, np.int64)), level)
        part = graph.add("Slice", weight, zeros, graph.add("Concat", width, below, axis=0), axes)
        bias = graph.add("Slice", graph.constant(np.zeros(used[-1], np.float32)), zero, width, zero)
        x = graph.add("Conv", x, part, bias, kernel_shape=[size] * 2, pads=[size // 2] * 4, strides=[2 - (at > 0)] * 2)
        x = graph.add("Relu", x)
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if at == 2 else x
        below, c_in = width, used[-1]
    head = graph.add("Slice", graph.weight(rng.normal(0, 0.1, (10, c_in))), zero, below, graph.constant(np.array([1])))
    logits = graph.add("Gemm", graph.pooled(x), head, transB=1)
    graph.output(graph.add("Softmax", logits, to="probabilities", axis=1), (10,))
    return graph.finish()


def trivial_graph() -> Any:
    """The mean of an image."""
    from edgemux.compression.graph import Graph

    graph = Graph(int8=False)
    graph.output(graph.add("Flatten", graph.add("GlobalAveragePool", graph.image()), to="mean"), (1,))
    return graph.finish()


# --- the table ----------------------------------------------------------------------------------------------------
def measured(folder: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Every layout in ``repeats`` fresh processes, in turns; medians. Private memory is less the empty process's."""
    runs: dict[str, list[dict[str, Any]]] = {layout: [] for layout in LAYOUTS}
    for _ in range(repeats):
        for layout, results in runs.items():
            command = [sys.executable, __file__, "--worker", layout, str(folder)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            results.append(json.loads(done.stdout))
    found = {layout: median_of(results) for layout, results in runs.items()}
    empty = found.pop("nothing")["private"]
    for figures in found.values():
        figures["private"] -= empty
    return found


def median_of(results: Sequence[Any]) -> Any:
    """Medians, number by number, of equal structures of lists and dictionaries."""
    first = results[0]
    if isinstance(first, dict):
        return {key: median_of([result[key] for result in results]) for key in first}
    if isinstance(first, list):
        return [median_of(parts) for parts in zip(*results, strict=True)]
    return statistics.median(results)


def show(title: str, found: dict[str, dict[str, Any]], folder: Path) -> None:
    """Print one family's table and whether the targets are met."""
    from rich.console import Console
    from rich.table import Table

    head = ("", "files KB", "private MB", "to widest", "raise to L2/L3/L4: ms (CPU ms)", "KB read", "ms of L1/L4")
    table = Table(*head, title=title)
    for layout, figures in found.items():
        files, name = LAYOUTS[layout]
        ups = figures.get("raise", [])[1:]
        mapped = layout.startswith("mapped")
        alone = found["mapped-whole" if mapped else "whole"]["private"]
        free = layout == "sliced"
        table.add_row(
            name,
            f"{sum(stored(folder / file, mapped) for file in files) / 1e3:.0f}",
            f"{figures['private'] / 1e6:.2f}",
            f"{figures['private'] / alone:.2f}x",
            "0" if free else " / ".join(f"{up['ms']:.1f} ({up['cpu_ms']:.1f})" for up in ups),
            "0" if free else " / ".join(f"{up['bytes'] / 1e3:.0f}" for up in ups),
            " / ".join(f"{figures['ms'][at]:.2f}" for at in ((0, -1) if len(figures["ms"]) > 1 else (-1,))),
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    for layout in ("deltas", "mapped"):
        print(verdict(LAYOUTS[layout][1], found, layout, folder))


def stored(path: Path, mapped: bool) -> int:
    """Bytes on disk of one graph, in the form that the layout loads."""
    if not mapped:
        return path.stat().st_size
    return mapped_file(path).stat().st_size + mapped_file(path).with_suffix(".bin").stat().st_size


def verdict(name: str, found: dict[str, dict[str, Any]], layout: str, folder: Path) -> str:
    """One line: each target and whether it is met."""
    figures, mapped = found[layout], layout == "mapped"
    ups = figures["raise"]
    slowest, cpu = max(up["ms"] for up in ups[1:]), max(up["cpu_ms"] for up in ups[1:])
    files = LAYOUTS[layout][0]
    only = all(up["bytes"] <= stored(folder / file, mapped) for up, file in zip(ups, files, strict=True))
    down_ms, down = max(up["down_ms"] for up in ups), max(up["down_bytes"] for up in ups)
    ratio = figures["private"] / found["mapped-whole" if mapped else "whole"]["private"]
    stock = figures["private"] / found["whole"]["private"]
    beside = f" of it mapped alike, {stock:.2f}x of it as the runtime loads it" if mapped else ""

    def word(met: bool) -> str:
        return "met" if met else "MISSED"

    return (
        f"{name}:\n"
        f"  raise <= {RAISE_MS:g} ms: {word(slowest <= RAISE_MS)} ({slowest:.1f} ms, of CPU {cpu:.1f} ms); "
        f"reads only the delta: {word(only)}; lowering reads nothing: {word(down == 0)} (0 by running fewer deltas, "
        f"{down_ms:.2f} ms to drop one)\n"
        f"  all levels in <= {RESIDENT_RATIO}x of the widest: {word(ratio <= RESIDENT_RATIO)} ({ratio:.2f}x{beside})"
    )


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What it costs to hold all levels and to change the level.")
    parser.add_argument("--scale", type=int, default=8, help="widths of the larger family, times the starter's")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each figure")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker[0], Path(options.worker[1]))))
        return 0
    families = (("the starter bundle", 1, BUNDLE), (f"{options.scale} times its widths", options.scale, None))
    for title, scale, bundle in families:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_graphs(folder, scale, bundle)
            show(title, measured(folder, options.repeats), folder)
    print(f"measured on: {hardware()}; onnxruntime {ort.__version__}, 1 thread")
    return 0


if __name__ == "__main__":
    sys.exit(main())
