"""onnxruntime reports nothing to its vendor when edgemux loads it: no device-id file appears."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OURS = """
import sys
from pathlib import Path
from edgemux.multiplexer.onnx_model import OnnxModel
OnnxModel.read(Path(sys.argv[1]))
"""
THEIRS = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"


def files_after(program: str, model: Path, home: Path) -> list[Path]:
    """Run a program in a fresh process with a fresh HOME, and without the variables that hide the telemetry."""
    hiding = {"CI", "ORT_DISABLE_TELEMETRY", "GITHUB_ACTIONS", "TF_BUILD"}
    environment = {k: v for k, v in os.environ.items() if k not in hiding and not k.startswith("XDG_")}
    environment["HOME"] = str(home)
    subprocess.run([sys.executable, "-c", program, str(model)], env=environment, timeout=100, check=True)
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform != "linux", reason="the file is written by Linux wheels")
def test_loading_a_model_leaves_no_file_in_a_fresh_home(tiny_bundle: Path, tmp_path: Path) -> None:
    assert files_after(OURS, tiny_bundle / "level-1.onnx", tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the file is written by Linux wheels")
def test_the_check_above_would_notice(tiny_bundle: Path, tmp_path: Path) -> None:
    if not files_after(THEIRS, tiny_bundle / "level-1.onnx", tmp_path):
        pytest.skip("this onnxruntime does not report")
