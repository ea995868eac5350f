"""Two models that somebody brings along, built by the command line, served by both servers, asked by a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.cli.main import run
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import InputError
from edgemux.wire import Client

FEATURES, CLASSES, ROWS = 12, 3, 1200


def save_linear(path: Path, weight: Any) -> None:
    """``readings`` FP32 [n, features] -> logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["readings", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("readings", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A bundle from 1,200 unlabelled vectors; other vectors, and what the cloud's model says to them."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(4)
    weight = 2 * rng.normal(size=(FEATURES, CLASSES))
    rough = weight + rng.normal(size=weight.shape)
    save_linear(folder / "big.onnx", weight)
    save_linear(folder / "small.onnx", rough)
    np.save(folder / "x.npy", rng.normal(size=(ROWS, FEATURES)).astype(np.float32))
    names = {"--edge": "small.onnx", "--cloud": "big.onnx", "--inputs": "x.npy", "--out": "bundle", "--work": "work"}
    options = [word for option, name in names.items() for word in (option, str(folder / name))]
    assert run(["build", *options, "--quick"]) == 0
    fresh = rng.normal(size=(120, FEATURES)).astype(np.float32)
    return folder / "bundle", fresh, (fresh @ weight.astype(np.float32)).argmax(axis=1)


@pytest.fixture(scope="module")
def cloud(bundle: tuple[Path, Any, Any], serving: Callable[..., Any]) -> Iterator[str]:
    with serving("cloud", "--bundle", str(bundle[0])) as server:
        yield server.grpc


@pytest.fixture(scope="module")
def agent(bundle: tuple[Path, Any, Any], cloud: str, serving: Callable[..., Any]) -> Iterator[str]:
    with serving("edge", "--bundle", str(bundle[0]), "--cloud", cloud) as server:
        yield server.grpc


def test_the_agent_answers_nearly_as_the_cloud_and_keeps_a_part_on_the_device(
    bundle: tuple[Path, Any, Any], agent: str
) -> None:
    _, fresh, expected = bundle
    routes, same = set(), 0
    with Client(agent) as client:
        for row, label in zip(fresh, expected, strict=True):
            reply = client.infer("big", {"readings": row[None]}, timeout_s=30)
            routes.add(reply.parameters["edgemux_route"])
            same += int(reply.outputs["label"][0] == label)
            assert reply.outputs["probabilities"].shape == (1, CLASSES)
    assert routes == {"edge", "cloud"}
    # Certified: at most 5 % differ, with confidence 90 %; these 120 are another draw.
    assert same >= 0.85 * len(fresh)


def test_the_cloud_answers_as_the_model_that_was_brought_along(bundle: tuple[Path, Any, Any], cloud: str) -> None:
    _, fresh, expected = bundle
    with Client(cloud) as client:
        reply = client.infer("big", {"readings": fresh[:20]}, timeout_s=30)
    assert (reply.outputs["label"] == expected[:20]).all()


def test_both_refuse_an_encoded_picture_and_say_why(cloud: str, agent: str) -> None:
    for address in (cloud, agent):
        with Client(address) as client, pytest.raises(InputError, match="encoded pictures are not taken here"):
            client.infer("big", {"readings": [b"picture"]}, timeout_s=30)


def test_infer_and_inspect_say_what_kind_of_bundle_it_is(
    bundle: tuple[Path, Any, Any], agent: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "picture.png").write_bytes(b"any")
    assert run(["infer", str(tmp_path / "picture.png"), "--to", agent]) == 2
    assert "this model takes readings FP32 [-1, 12]" in capsys.readouterr().err
    assert run(["bundle", "inspect", str(bundle[0])]) == 0
    assert "agreement" in capsys.readouterr().out


def test_a_bundle_of_ones_own_says_what_is_usual_for_the_agent_to_watch(bundle: tuple[Path, Any, Any]) -> None:
    references = Bundle.open(bundle[0]).manifest.references
    assert references is not msgspec.UNSET
    assert sum(references.brightness.counts) == int(0.3 * ROWS)


def test_a_cut_of_the_cloud_s_model_becomes_a_way_to_answer_without_a_line_of_python(
    bundle: tuple[Path, Any, Any], serving: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, fresh, expected = bundle
    assert run(["split", str(folder / "cloud.onnx"), "--no-time", "--json"]) == 0
    cuts = msgspec.json.decode(capsys.readouterr().out)["cuts"]
    (at,) = (cut["index"] for cut in cuts if cut["tensors"] == ["m/logits"])
    with_split = tmp_path / "with-split"
    words = ("--at", str(at), "--inputs", str(folder.parent / "x.npy"), "--out", str(with_split), "--name", "thin")
    assert run(["bundle", "split", str(folder), *words]) == 0
    said = capsys.readouterr().out
    assert "thin: sends 3 values of 8 bits" in said and "the agent may use it with its defaults" in said
    with serving("cloud", "--bundle", str(with_split)) as cloud:
        config = tmp_path / "edge.toml"
        settings = f'bundle = "{with_split}"\n[cloud]\naddress = "{cloud.grpc}"\n[split]\nuse = "always"\n'
        config.write_text(f"{settings}never_send_raw = true\n")
        replies = []
        with serving("edge", "--config", str(config)) as agent, Client(agent.grpc) as client:
            for row in fresh:
                replies.append(client.infer("big", {"readings": row[None]}, timeout_s=30))
    routes = [reply.parameters["edgemux_route"] for reply in replies]
    variants = {
        reply.parameters["edgemux_variant"] for reply in replies if reply.parameters["edgemux_route"] == "split"
    }
    assert set(routes) == {"edge", "split"} and variants == {"thin"}
    by_split = [number for number, route in enumerate(routes) if route == "split"]
    same = [replies[number].outputs["label"][0] == expected[number] for number in by_split]
    assert np.mean(same) > 0.9
