"""The command line: help, refusals, exit codes, and what is printed for machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemux.cli.extras import extra
from edgemux.cli.main import run
from edgemux.multiplexer.errors import ConfigError

COMMANDS = ("cloud", "edge", "infer", "build", "demo", "bundle inspect", "bundle verify")
MODEL_KEYS = {"level", "files", "bytes", "params", "macs", "accuracy", "median_ms"}

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: Capture) -> None:
    assert run([*command.split(), "--help"]) == 0
    captured = capsys.readouterr()
    assert f"Example: edgemux {command}" in " ".join(captured.out.split())
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "a command is needed"),
        ("frobnicate", "frobnicate"),
        ("cloud --grpc-port many", "--grpc-port"),
        ("cloud --unknown", "--unknown"),
        ("cloud --config no-such-file.toml", "no-such-file.toml"),
        ("cloud --bundle any --grpc-port 99999", "port"),
        ("cloud --bundle any --max-batch 0", "max_batch"),
        ("cloud --bundle any --linger -1", "linger_s"),
        ("cloud --bundle any --max-queue 0", "max_queue"),
        ("edge --bundle any --cloud nowhere", "cloud"),
        ("edge --bundle any --timeout 0", "timeout_s"),
        ("edge --bundle any --offloads-per-second -1", "offloads_per_s"),
        ("edge --bundle any --bytes-per-second -1", "bytes_per_s"),
        ("infer", "FILE"),
        ("infer a.png", "--to"),
        ("infer no-such-file.png --to 127.0.0.1:1", "no-such-file.png"),
        ("infer a.png --to nowhere", "--to"),
        ("infer a.png --to host:port", "--to"),
        ("build no-such-recipe.toml", "no-such-recipe.toml"),
        ("demo --requests 3", "--requests"),
        ("demo --link slow", "--link"),
        ("demo --rate 0", "--rate"),
        ("demo --timeout 0", "--timeout"),
        ("demo --bundle no-such-directory", "no-such-directory"),
        ("bundle", "command"),
        ("bundle inspect", "DIR"),
        ("bundle inspect no-such-directory", "no-such-directory"),
        ("bundle verify no-such-directory", "no-such-directory"),
    ],
)
def test_wrong_use_exits_2_with_one_line_that_says_why(arguments: str, reason: str, capsys: Capture) -> None:
    assert run(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("edgemux")
    assert reason in captured.err


@pytest.mark.parametrize("server", ["cloud", "edge"])
def test_a_server_without_its_bundle_exits_2_with_one_line(server: str) -> None:
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "edgemux.cli.main", server, "--bundle", "no-such-directory", *ports]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "no-such-directory" in ended.stderr


def test_a_server_that_nobody_runs_exits_1_with_one_line(tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"not even a picture")
    assert run(["infer", str(picture), "--to", "127.0.0.1:1", "--timeout", "20"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"edgemux {version('edgemux')}\n"


def test_a_missing_extra_is_named_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"torch is not installed: pip install '\.\[train\]'"), extra("train"):
        raise ModuleNotFoundError("No module named 'torch._C'", name="torch._C")


def test_a_module_of_our_own_that_is_missing_is_not_blamed_on_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError), extra("train"):
        raise ModuleNotFoundError("No module named 'edgemux.gone'", name="edgemux.gone")


def test_help_loads_no_part_and_no_heavy_library() -> None:
    program = (
        "import sys; from edgemux.cli.main import run; run(['--help']); "
        "heavy = {'numpy', 'grpc', 'onnxruntime', 'torch', 'onnx', 'edgemux.edge', 'edgemux.cloud', 'edgemux.wire', "
        "'msgspec', 'edgemux.cli.doctor', 'edgemux.cli.ready'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules)) or ''))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr.strip() == ""


def test_inspect_prints_the_whole_bundle_as_json(tiny_bundle: Path, capsys: Capture) -> None:
    assert run(["bundle", "inspect", str(tiny_bundle), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert {"name", "inputs", "classes", "levels", "cloud", "multiplexer", "certificate", "digest"} <= set(about)
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert [level["level"] for level in about["levels"]] == [1, 2, 3, 4]
    for model in (*about["levels"], about["cloud"]):
        assert set(model) >= MODEL_KEYS
        assert model["bytes"] == sum((tiny_bundle / path).stat().st_size for path in model["files"])
    assert about["multiplexer"]["bytes"] > 0
    assert about["multiplexer"]["median_ms"] >= 0


def test_inspect_prints_a_table_for_readers(tiny_bundle: Path, capsys: Capture) -> None:
    assert run(["bundle", "inspect", str(tiny_bundle)]) == 0
    printed = capsys.readouterr().out
    assert "fashion-mnist" in printed
    assert "multiplexer" in printed


def test_verify_accepts_a_sound_bundle(tiny_bundle: Path, capsys: Capture) -> None:
    assert run(["bundle", "verify", str(tiny_bundle)]) == 0
    assert "fashion-mnist" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["level-2.onnx", "golden.npz", "samples.npz", "manifest.json"])
def test_verify_names_the_file_with_a_changed_bit(
    name: str, tiny_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert run(["bundle", "verify", str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert name in captured.err


def test_verify_names_a_file_that_is_missing(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    (copy / "level-3.onnx").unlink()
    assert run(["bundle", "verify", str(copy)]) == 2
    assert "level-3.onnx" in capsys.readouterr().err
