"""The tiny bundle with two splits, and a simulated cloud that serves their tails.

Both heads send log-odds from all pixels of each block, in 8 bits: one from the picture alone, one from what levels
1 and 2 leave and the pixels that these did not look at. So their answers are the cloud model's, up to rounding.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import MANIFEST, Bundle, File, Manifest, Split, Tensor, seal, splits_of, tail_model
from edgemux.multiplexer.chain import Activations, Golden
from edgemux.multiplexer.codes import GoldenCodes
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import add_checksum, check_inputs, decode_inputs, make_response
from tests.conftest import CLASSES, LEVEL_PIXELS, SIDE, _block_pixels, _sum_of_pixels, _value, _write_graph
from tests.simulated_cloud import SimulatedCloud

# Log-odds are from -40 to 80: in steps of a half they fit 8 bits.
LEAST, STEP = -40.0, 0.5
SENT = Tensor("sent", "UINT8", (-1, CLASSES))
PLAIN, GOING_ON = "plain", "going-on"
LEVEL_OF = {PLAIN: 0, GOING_ON: 2}
PASSING = "passing.onnx"


def _quantised(nodes: list[Any], weights: dict[str, Any], logits: str) -> None:
    from onnx import helper

    nodes += [
        helper.make_node("Sub", [logits, "least"], ["above"]),
        helper.make_node("Div", ["above", "step"], ["steps"]),
        helper.make_node("Round", ["steps"], ["whole"]),
        helper.make_node("Clip", ["whole", "zero", "most"], ["within"]),
        helper.make_node("Cast", ["within"], ["sent"], to=2),
    ]
    weights |= {
        "least": np.array(LEAST, np.float32),
        "step": np.array(STEP, np.float32),
        "zero": np.array(0, np.float32),
        "most": np.array(255, np.float32),
    }


def _write_head(path: Path, level: int) -> None:
    from onnx import helper

    pixels = _block_pixels()[:, sum(LEVEL_PIXELS[:level]) :]
    nodes, weights = _sum_of_pixels("rest", pixels)
    states = [f"state_{number}" for number in range(1, level + 1)]
    nodes.append(helper.make_node("Sum", ["rest", *states], ["logits"]))
    _quantised(nodes, weights, "logits")
    inputs = [_value("image", "UINT8", SIDE, SIDE), *(_value(state, "FLOAT", CLASSES) for state in states)]
    _write_graph(path, nodes, inputs, [_value("sent", "UINT8", CLASSES)], weights)


def _write_tail(path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Cast", ["sent"], ["steps"], to=1),
        helper.make_node("Mul", ["steps", "step"], ["above"]),
        helper.make_node("Softmax", ["above"], ["probabilities"], axis=1),
    ]
    weights = {"step": np.array(STEP, np.float32)}
    _write_graph(path, nodes, [_value("sent", "UINT8", CLASSES)], [_value("probabilities", "FLOAT", CLASSES)], weights)


def write_halves(folder: Path) -> Path:
    """Heads and tails, and a head that passes the picture on, in ``folder``. Takes the onnx package."""
    from onnx import helper

    folder.mkdir(parents=True, exist_ok=True)
    for name, level in LEVEL_OF.items():
        _write_head(folder / f"{name}-head.onnx", level)
        _write_tail(folder / f"{name}-tail.onnx")
    passed = helper.make_node("Identity", ["image"], ["sent"])
    inputs, outputs = [_value("image", "UINT8", SIDE, SIDE)], [_value("sent", "UINT8", SIDE, SIDE)]
    _write_graph(folder / PASSING, [passed], inputs, outputs, {})
    return folder


def split_of(name: str, level: int, accuracy: float) -> Split:
    """As good as the cloud model, and measured on very many inputs."""
    times = {"head_ms": 0.05, "tail_ms": 0.06, "tail_macs": CLASSES}  # the cloud model takes 0.06 ms
    files = {"head": f"{name}-head.onnx", "tail": f"{name}-tail.onnx"}
    measured = {"n": 10**6, "accuracy": accuracy, "changed": 0.0}
    return Split(name=name, level=level, sent=SENT, bits=8, bytes=20.0, **files, **times, **measured)


def golden_of(folder: Path, split: Split) -> str:
    """Write what both halves make of the golden inputs, and return the file's name."""
    bundle = Bundle.open(folder)
    golden = Golden(bundle)
    chain, activations = Family(bundle).chain, Activations(golden.inputs)
    if split.level:
        chain.reach(split.level, activations)
    head, tail = (OnnxModel((folder / name).read_bytes(), name) for name in (split.head, split.tail))
    (sent,) = head.run({name: activations.pool[name] for name in head.inputs})
    (answers,) = tail.run({"sent": sent}, ["probabilities"])
    np.savez(folder / f"{split.name}-golden.npz", **GoldenCodes(sent, answers).arrays())
    return f"{split.name}-golden.npz"


def with_splits(
    tiny: Path, folder: Path, names: tuple[str, ...] = (PLAIN, GOING_ON), golden: bool = False, **changes: Any
) -> Path:
    """A copy of the tiny bundle with splits; ``changes`` to each of them. golden: with their golden codes."""
    shutil.copytree(tiny, folder)
    made = os.environ.get("EDGEMUX_TINY_BUNDLE")
    if made is None:
        write_halves(folder)
    else:  # where the onnx package must be absent
        shutil.copytree(Path(made).with_name("halves"), folder, dirs_exist_ok=True)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    splits = []
    for name in names:
        split = split_of(name, LEVEL_OF[name], manifest.cloud.accuracy)
        if golden:
            split = msgspec.structs.replace(split, golden=golden_of(folder, split))
        splits.append(msgspec.structs.replace(split, **changes))
    added = [path for split in splits for path in (split.head, split.tail, split.golden) if path]
    files = (*manifest.files, *(File(str(path), 0, "") for path in added))
    seal(folder, msgspec.structs.replace(manifest, files=files, splits=tuple(splits)))
    return folder


class SplitCloud(SimulatedCloud):
    """Serves the tails, too. ``received``: model and bytes of every input that came, in order.

    rtt_s, bytes_per_s: of the link that is emulated.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.splits = {tail_model(self.manifest.name, split.name): split for split in splits_of(self.manifest)}
        self.tails = {name: OnnxModel(bundle.read(split.tail), name) for name, split in self.splits.items()}
        self.digests = {name: bundle.sha256(split.tail) for name, split in self.splits.items()}
        self.received: list[tuple[str, int]] = []
        self.tail: Callable[[Any, Any], Awaitable[Any]] = self.continued
        self.rtt_s, self.bytes_per_s = 0.0, float("inf")

    @property
    def models(self) -> set[str]:
        return {name for name, _ in self.received}

    async def continued(self, request: Any, context: Any) -> Any:
        """What the real server says of a tail."""
        split = self.splits[request.model_name]
        inputs = decode_inputs(check_inputs(request, (split.sent,), None), None)
        (probabilities,) = self.tails[request.model_name].run(inputs, ["probabilities"])
        said = {"edgemux_queue_ms": 0.1, "edgemux_compute_ms": 0.1}
        said |= {"edgemux_model_digest": self.digests[request.model_name]}
        return make_response(request.model_name, "1", request.id, {"probabilities": probabilities}, said, True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen += 1
        self.received.append((request.model_name, request.ByteSize()))
        self.reached.set()
        await asyncio.sleep(self.rtt_s + request.ByteSize() / self.bytes_per_s)
        answer = self.tail if request.model_name in self.splits else self.answer
        return await answer(request, context)

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.sleep(self.rtt_s)
        return oip.ServerLiveResponse(live=True)


def of_another_tail(response: Any) -> None:
    response.parameters["edgemux_model_digest"].string_param = "f" * 64
    add_checksum(response)
