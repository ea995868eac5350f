"""Rows 54 to 58: ports, settings, and model files that are not what they were, or never were what they should be."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.gates import Gates
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.system.faults.http2 import varint
from tests.system.faults.table import Found

Report = Callable[[Found], None]
MANIFEST = "manifest.json"


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def resealed(folder: Path) -> None:
    """Vouch for the files as they are now: what a maker does who has made a mistake, or means ill."""
    seal(folder, Bundle.open(folder).manifest)


def load(folder: Path) -> None:
    """What an agent does with a bundle before it serves. Raises ArtifactError."""
    from edgemux.edge.variants import Family

    bundle = Bundle.open(folder)
    family, gates, golden = Family(bundle), Gates(bundle), Golden(bundle)
    family.check(golden, bundle.manifest)
    gates.check(golden, bundle.manifest)


def flipping(path: Path) -> Iterator[None]:
    """Each bit of the file in turn is flipped while the caller looks; in place, which is quick."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(content):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
                yield
            os.pwrite(file.fileno(), bytes([byte]), at)


@pytest.mark.parametrize("kind", ["grpc", "http", "metrics"])
def test_a_port_in_use_ends_it_with_status_2_naming_the_port(
    ended: Callable[..., Any], agent: Any, tiny_bundle: Path, report: Report, kind: str
) -> None:
    port = getattr(agent, kind).rsplit(":", 1)[1]
    done = ended("edge", "--bundle", str(tiny_bundle), f"--{kind}-port", port)
    assert done.returncode == 2
    assert port in done.stderr
    assert done.stderr.count("\n") == 1
    assert agent.get("/v2/health/ready")[0] == 200
    report(Found(54, f"{kind} port in use", 1, note="exit 2"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[request]\ndefault_timeout = 1\n", "request.default_timeout: no such setting"),
        ("[request\n", "line 1"),
        ("[request]\nmax_batch = 'many'\n", "request.max_batch"),
        ("[breaker]\nopen_s = -1\n", "open_s"),
        ("[limits]\noffloads_per_s = nan\n", "offloads_per_s"),
        ("audit_share = 2\n", "audit_share"),
    ],
)
def test_a_wrong_setting_ends_it_with_status_2_naming_it(
    ended: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, report: Report, text: str, says: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(text)
    done = ended("edge", "--bundle", str(tiny_bundle), "--config", str(config))
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    report(Found(55, f"setting: {says}", 1, note="exit 2"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "zeroed", "flipped", "swapped", "junk behind"])
def test_a_model_that_is_not_what_was_sealed_is_not_loaded(
    ended: Callable[..., Any], folder: Path, report: Report, damage: str
) -> None:
    target = folder / "level-3.onnx"
    content = target.read_bytes()
    match damage:
        case "missing":
            target.unlink()
        case "truncated":
            target.write_bytes(content[:-7])
        case "zeroed":
            target.write_bytes(bytes(len(content)))
        case "flipped":
            target.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "swapped":
            target.write_bytes((folder / "level-2.onnx").read_bytes())
        case "junk behind":
            target.write_bytes(content + b"\0")
    done = ended("edge", "--bundle", str(folder))
    assert done.returncode == 2
    assert "level-3.onnx" in done.stderr
    assert done.stderr.count("\n") == 1
    report(Found(56, f"model {damage}", 1, note="exit 2, the file is named"))


def test_every_single_bit_that_is_flipped_in_the_manifest_is_noticed(folder: Path, report: Report) -> None:
    sealed = Bundle.open(folder).manifest
    tried = same = 0
    for _ in flipping(folder / MANIFEST):
        tried += 1
        try:
            # The other way to write the same number, 1E-05 for 1e-05, is no change.
            assert Bundle.open(folder).manifest == sealed
            same += 1
        except ArtifactError:
            pass
    assert tried > 10_000
    assert same < tried // 1000
    report(Found(56, "every single bit of the manifest", tried, note=f"{tried - same:,} refused, {same} say the same"))


@pytest.mark.parametrize("name", ["level-1.onnx", "pre_gate.onnx", "post_gate.onnx"])
def test_every_single_bit_that_is_flipped_in_a_model_or_a_gate_is_noticed(
    folder: Path, report: Report, name: str
) -> None:
    bundle = Bundle.open(folder)
    tried = 0
    for _ in flipping(folder / name):
        tried += 1
        with pytest.raises(ArtifactError, match=name):
            bundle.read(name)
    report(Found(56, f"every single bit of {name}", tried, note=f"{tried:,} refused"))


def test_without_the_digests_many_of_those_bits_would_go_unnoticed(folder: Path) -> None:
    """The control: what the library makes of the same files."""
    content = (folder / "pre_gate.onnx").read_bytes()
    rng = np.random.default_rng(9)
    loaded = 0
    for at in rng.integers(0, len(content), 100):
        spoilt = content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
        try:
            OnnxModel(spoilt, "spoilt")
            loaded += 1
        except ArtifactError:
            pass
    assert loaded > 20


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change a graph in its file."""
    model = onnx.load(str(path))
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def permute(graph: Any) -> None:
    """A level's classes, or a gate's routes, in another order: it loads, and is sure of the wrong ones."""
    name = "offsets" if any(tensor.name == "offsets" for tensor in graph.initializer) else "pixels"
    weights = next(tensor for tensor in graph.initializer if tensor.name == name)
    turned = np.flip(numpy_helper.to_array(weights), axis=1 if name == "offsets" else 0)
    weights.CopyFrom(numpy_helper.from_array(turned.copy(), name))


@pytest.mark.parametrize("name", ["level-1.onnx", "level-4.onnx", "pre_gate.onnx"])
def test_a_well_sealed_model_with_permuted_weights_fails_its_golden_inputs(
    folder: Path, report: Report, name: str
) -> None:
    load(folder)
    rewrite(folder / name, permute)
    resealed(folder)
    with pytest.raises(ArtifactError, match="golden"):
        load(folder)
    report(Found(57, f"permuted weights in {name}, sealed", 1, note="refused by its golden answers"))


def external(graph: Any) -> None:
    """A weight in another file."""
    tensor = graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="golden.npz")
    tensor.ClearField("raw_data")


def custom(graph: Any) -> None:
    """An operator of somebody's own."""
    graph.node[-1].op_type, graph.node[-1].domain = "Reboot", "evil.example"


@pytest.mark.parametrize("change", [external, custom], ids=lambda change: change.__name__)
def test_a_well_sealed_graph_that_asks_for_too_much_is_refused(
    folder: Path, report: Report, change: Callable[[Any], None]
) -> None:
    rewrite(folder / "level-1.onnx", change)
    resealed(folder)
    with pytest.raises(ArtifactError, match=r"level-1\.onnx"):
        load(folder)
    report(Found(58, f"graph: {change.__name__}", 1, note="refused"))


def test_a_well_sealed_graph_of_half_a_million_nodes_is_refused_within_seconds(folder: Path, report: Report) -> None:
    path = folder / "level-1.onnx"
    node = helper.make_node("Identity", ["image"], ["x"], "y").SerializeToString()
    # A message that is there twice is one message with the fields of both: the graph gets more nodes.
    nodes = (b"\x0a" + varint(len(node)) + node) * 500_000
    path.write_bytes(path.read_bytes() + b"\x3a" + varint(len(nodes)) + nodes)
    resealed(folder)
    began = time.process_time()
    with pytest.raises(ArtifactError, match=r"level-1\.onnx"):
        load(folder)
    assert time.process_time() - began < 20.0
    report(Found(58, "graph: 500,000 nodes", 1, note="refused"))
