"""The house stays in order: the traps that packaging and imports set are checked, not remembered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("proto", "multiplexer", "edge", "cloud", "compression", "cli")
BANNED = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "managers", "handler", "handlers"}


def sources() -> list[Path]:
    return [path for part in PARTS for path in (ROOT / part).rglob("*.py") if not path.name.endswith("_pb2.py")]


@pytest.mark.parametrize("part", PARTS)
def test_no_init_file_hides_the_other_parts(part: str) -> None:
    assert not (ROOT / part / "__init__.py").exists()
    assert not (ROOT / part / "edgemux" / "__init__.py").exists()


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_files_and_classes_are_named_by_what_they_are() -> None:
    for path in sources():
        assert path.stem not in BANNED, path
        for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE):
            assert not name.endswith(("Manager", "Helper", "Utils")), f"{path}: {name}"


def test_no_source_or_test_file_is_longer_than_450_lines() -> None:
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    long = [str(path.relative_to(ROOT)) for path in files if len(path.read_text().splitlines()) > 450]
    assert not long


def test_the_house_listing_of_the_architecture_is_the_tree() -> None:
    house = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    listed = set(re.findall(r"(\w+\.py)\b", house))
    # Folders below the parts are described as a whole.
    there = {path.name for part in PARTS if part != "cli" for path in (ROOT / part / "edgemux").glob("*/*.py")}
    assert listed <= there
    assert there - listed <= {"__init__.py", "oip_pb2.py"}


def test_mypy_checks_folders_and_never_a_package_by_name() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert "packages" not in settings
    assert {entry.split("/")[0] for entry in settings["files"]} == set(PARTS)


def test_the_edge_extra_holds_nothing_heavy() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for heavy in ("torch", "onnx>", "pandas", "scipy", "tritonclient", "grpcio-tools"):
        assert not any(requirement.startswith(heavy) for requirement in extras["edge"]), heavy


@pytest.mark.parametrize("group", ["edgemux.policies", "edgemux.sensors", "edgemux.passes"])
def test_our_own_plug_ins_are_found_the_way_everybody_s_are(group: str) -> None:
    found = {entry.name: entry.load() for entry in entry_points(group=group)}
    assert found
    assert all(callable(plugin) for plugin in found.values())


def test_a_fresh_interpreter_that_imports_the_agent_holds_no_torch_no_onnx_and_no_cloud() -> None:
    program = "import edgemux.edge, edgemux.edge.server, sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    modules = set(done.stdout.split())
    absent = {
        "torch",
        "onnx",
        "pandas",
        "edgemux.cloud",
        "edgemux.compression",
        "edgemux.multiplexer.training",
        "typer",
    }
    assert not absent & modules


def test_the_standard_library_still_works_for_somebody_who_stands_in_the_repository() -> None:
    subprocess.run([sys.executable, "-c", "import gzip, bz2, lzma, zipfile"], cwd=ROOT, timeout=100, check=True)


# Who gets there first decides; nobody imports gRPC before one of these packages.
@pytest.mark.parametrize("module", ["edgemux.wire", "edgemux.edge", "edgemux.cloud.ray_replica", "edgemux.cli.traffic"])
def test_the_library_under_grpc_writes_no_lines_of_its_own(module: str) -> None:
    program = (
        "import os, sys\n"
        "class Look:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'grpc':\n"
        "            print(os.environ.get('GRPC_VERBOSITY'))\n"
        "sys.meta_path.insert(0, Look())\n"
        f"import {module}\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, env=clean, check=False
    )
    assert done.stdout == "NONE\n", done.stderr
