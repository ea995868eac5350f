"""`edgemux infer` against servers that run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgemux.cli.children import parse_ready
from edgemux.cli.main import run
from edgemux.cli.pictures import check_takes_pictures, whole_models
from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.errors import ConfigError

Capture = pytest.CaptureFixture[str]
Pictures = Callable[[int, int], tuple[Any, Any]]
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module", params=["cloud", "edge"])
def server(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[tuple[str, str]]:
    """Name and gRPC address of a running server; the agent has no cloud, so it answers itself."""
    command = [sys.executable, "-m", "edgemux.cli.main", request.param, "--bundle", str(tiny_bundle), *PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        ready = parse_ready(running.stdout.readline())
        assert ready is not None
        yield request.param, ready.grpc
        running.terminate()
        running.wait(30)
    assert running.returncode == 0


@pytest.fixture(scope="module")
def files(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[int]]:
    """Three pictures of the tiny bundle's task as PNG files, and their classes."""
    images, labels = pictures(3, 17)
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths], labels.tolist()


def test_each_file_gets_a_class_name_and_what_happened(
    server: tuple[str, str], files: tuple[list[str], list[int]], capsys: Capture
) -> None:
    name, address = server
    paths, labels = files
    assert run(["infer", *paths, "--to", address, "--timeout", "30", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == paths
    for answer in answers:
        assert answer["error"] is None
        # A server that does not name its classes leaves the number.
        assert answer["classname"] in (f"block {answer['label']}", str(answer["label"]))
        assert 0 < answer["probability"] <= 1
        assert answer["ms"] > 0
    if name == "cloud":
        assert [answer["label"] for answer in answers] == labels
    else:
        assert all(answer["classname"].startswith("block") for answer in answers)
        assert {answer["route"] for answer in answers} == {"edge"}
        assert all(answer["variant"] and answer["reason"] and 0 <= answer["score"] <= 1 for answer in answers)


def test_readers_get_a_table(
    server: tuple[str, str], files: tuple[list[str], list[int]], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Path(files[0][0])
    monkeypatch.chdir(picture.parent)  # a long path would be cut by the table
    assert run(["infer", picture.name, "--to", server[1], "--timeout", "30"]) == 0
    printed = capsys.readouterr().out
    assert "0.png" in printed
    assert "probability" in printed


def test_a_file_that_is_no_picture_is_refused_by_name_and_the_others_are_answered(
    server: tuple[str, str], files: tuple[list[str], list[int]], tmp_path: Path, capsys: Capture
) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Dear server")
    assert run(["infer", str(text), files[0][0], "--to", server[1], "--timeout", "30", "--json"]) == 2
    captured = capsys.readouterr()
    refused, answered = json.loads(captured.out)
    assert refused["error"]
    assert refused["label"] is None
    assert answered["label"] is not None
    assert captured.err.count("\n") == 1
    assert "letter.txt" in captured.err


def test_an_unknown_model_is_refused_by_name(
    server: tuple[str, str], files: tuple[list[str], list[int]], capsys: Capture
) -> None:
    assert run(["infer", files[0][0], "--to", server[1], "--model", "no-such-model"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no-such-model" in captured.err or "model" in captured.err


def test_the_tails_of_a_model_s_splits_are_not_to_choose_from() -> None:
    assert whole_models(["fashion-mnist", "fashion-mnist.continuation", "fashion"]) == ["fashion-mnist", "fashion"]
    assert whole_models(["a.b", "c"]) == ["a.b", "c"]


def test_a_model_that_takes_no_pictures_is_not_sent_any() -> None:

    check_takes_pictures(Tensor("image", "UINT8", (-1, 28, 28)))
    with pytest.raises(ConfigError, match=r"takes x FP32 \[-1, 20\]"):
        check_takes_pictures(Tensor("x", "FP32", (-1, 20)))
