"""deploy/raspberry-pi/install.sh, for real: in a fresh Debian of this machine's kind, from a folder of wheels."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = "/opt/checkout/deploy/raspberry-pi/install.sh"
CONSTRAINTS = REPOSITORY / "deploy" / "raspberry-pi" / "constraints.txt"
# What every Debian has, by name: that takes seconds, and a whole one half a minute.
PACKAGES = (
    "base-passwd,bash,coreutils,dash,diffutils,dpkg,findutils,grep,libc-bin,libgomp1,libstdc++6,mawk,passwd,procps,"
    "python3-venv,sed,util-linux"
)
ENTER = """
root=$1 checkout=$2 wheels=$3; shift 3
mount --bind -o ro "$checkout" "$root/opt/checkout"
mount --bind -o ro "$wheels" "$root/opt/wheels"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
exec chroot "$root" "$@"
"""
VARIABLES = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# What stands in for systemd's program: notes what it is asked, and fails to restart as often as a file says.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/tmp/asked
case $1 in
  is-active) exec test -e /tmp/active ;;
  is-enabled) exec test -e /tmp/enabled ;;
  enable) touch /tmp/enabled ;;
  restart)
    if [ -s /tmp/failing ]; then : >/tmp/failing; exit 1; fi
    touch /tmp/active ;;
esac
"""

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]


class Debian:
    """A root folder, and programs run in it."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root = root
        self.wheels = wheels

    def entering(self, *command: str) -> list[str]:
        """The words that run a program in it, in mounts that are gone with it; it ends with the test."""
        enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER]
        return [*enter, "enter", *(str(folder) for folder in (self.root, REPOSITORY, self.wheels)), *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program in it."""
        words = self.entering(*command)
        return subprocess.run(words, capture_output=True, text=True, timeout=500, env=VARIABLES, check=False)

    def install(self, *options: str) -> str:
        """Run the script; what it prints."""
        done = self.run(SCRIPT, "--wheels", "/opt/wheels", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *options: str) -> str:
        """Run the script, which has to fail with one line."""
        done = self.run(SCRIPT, "--wheels", "/opt/wheels", *options)
        assert done.returncode != 0, done.stdout
        (line,) = done.stderr.splitlines()
        return line

    def tree(self) -> dict[str, str]:
        """All files and links of it that somebody may have changed, by path: digest, mode, target."""
        found = {}
        for top in ("opt/edgemux", "etc", "usr", "var", "root"):
            for folder, folders, files in os.walk(self.root / top):
                for path in (Path(folder, name) for name in (*folders, *files)):
                    status = path.lstat()
                    held = os.readlink(path) if path.is_symlink() else _digest(path) if path.is_file() else ""
                    found[str(path.relative_to(self.root))] = f"{status.st_mode:o} {status.st_gid} {held}"
        return found

    def text(self, path: str) -> str:
        """What a file of it holds."""
        return (self.root / path).read_text()

    def release(self, name: str) -> str:
        """Where one of the links to a release points to."""
        return os.readlink(self.root / "opt/edgemux" / name)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _made(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the agent requires, and what builds a wheel of it, for the Python of Debian 12."""
    folder = tmp_path_factory.mktemp("wheels")
    machine = os.uname().machine
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _made(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY))
    (ours,) = folder.glob("edgemux-*.whl")
    how = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms]
    what = [f"edgemux[edge] @ {ours.as_uri()}", "hatchling>=1.27,<2"]
    _made(*pip, "download", "--quiet", "--dest", str(folder), *how, "--constraint", str(CONSTRAINTS), *what)
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Debian:
    """A Debian 12 in which nothing was installed yet."""
    root = tmp_path_factory.mktemp("debian") / "root"
    _made("mmdebstrap", "--quiet", "--variant=extract", f"--include={PACKAGES}", "bookworm", str(root))
    for folder in ("opt/checkout", "opt/wheels", "proc", "dev", "tmp", "run"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "usr/bin/awk").symlink_to("mawk")
    return Debian(root, wheels)


@pytest.fixture(scope="module")
def debian(fresh: Debian) -> Iterator[Debian]:
    """The same one after an installation; tests go on from each other, in the order of this file."""
    said = fresh.install("--cloud", "cloud.example:8001")
    assert "make a Python environment" in said
    assert "as no systemd runs here" in said
    yield fresh


def test_what_is_installed_answers(debian: Debian) -> None:
    done = debian.run("edgemux", "bundle", "verify", f"/opt/edgemux/bundles/{_bundle(debian)}")
    assert done.returncode == 0, done.stderr
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    command = debian.entering("edgemux", "edge", "--config", "/etc/edgemux/edge.toml", *ports)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=VARIABLES
    ) as agent:
        assert agent.stdout is not None
        line = agent.stdout.readline()
        agent.terminate()
    assert re.match(r"edgemux edge ready model=fashion-mnist grpc=127\.0\.0\.1:\d+", line)


def test_only_the_bytecode_of_what_the_agent_imports_is_there(debian: Debian) -> None:
    site = debian.root / "opt/edgemux" / debian.release("current") / "lib/python3.11/site-packages"
    tools = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}
    compiled = [path for path in site.rglob("*.pyc") if path.relative_to(site).parts[0] not in tools]
    names = {path.name.partition(".")[0] for path in compiled if "edgemux" in path.parts}
    assert {"server", "agent", "main"} <= names
    assert sum(path.stat().st_size for path in compiled) < 10e6


def test_a_second_run_changes_nothing(debian: Debian) -> None:
    before = debian.tree()
    for options in ((), ("--cloud", "cloud.example:8001")):
        said = debian.install(*options)
        assert "Nothing to change" in said
        assert not [line for line in said.splitlines() if line.startswith("- ")]
    assert debian.tree() == before


def test_a_dry_run_says_what_it_would_do_and_does_nothing(debian: Debian) -> None:
    before = debian.tree()
    said = debian.install("--dry-run", "--cloud", "other.example:8001", "--constraints", "none")
    assert "would: make a Python environment" in said
    assert "would: write /etc/edgemux/edge.toml" in said
    assert debian.tree() == before


def test_another_cloud_is_written_where_nobody_has_edited(debian: Debian) -> None:
    debian.install("--cloud", "other.example:8001")
    assert 'address = "other.example:8001"' in debian.text("etc/edgemux/edge.toml")


def test_an_edited_configuration_is_left_as_it_is(debian: Debian) -> None:
    config = debian.root / "etc/edgemux/edge.toml"
    with config.open("a") as file:
        file.write("[limits]\noffloads_per_s = 2.0\n")
    edited = config.read_text()
    assert "Nothing to change" in debian.install()
    said = debian.install("--cloud", "third.example:8001")
    assert "somebody has edited it" in said
    assert config.read_text() == edited
    assert 'address = "third.example:8001"' in debian.text("etc/edgemux/edge.toml.new")
    assert "Nothing to change" in debian.install("--cloud", "third.example:8001")


def test_the_unit_finds_its_program(debian: Debian) -> None:
    unit = "/etc/systemd/system/edgemux-edge.service"
    assert debian.text(unit.lstrip("/")) == (REPOSITORY / "deploy/systemd/edgemux-edge.service").read_text()
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={debian.root}", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not re.search(r"edgemux-edge\.service.*(not executable|not-found|No such file)", done.stderr), done.stderr
    assert "edgemux" not in debian.run("sh", "-c", "test -x /opt/edgemux/bin/edgemux || echo no edgemux").stdout


def test_an_upgrade_that_does_not_start_is_taken_back(debian: Debian) -> None:
    stand_in = debian.root / "usr/local/bin/systemctl"
    stand_in.write_text(SYSTEMCTL)
    stand_in.chmod(0o755)
    (debian.root / "run/systemd/system").mkdir(parents=True)
    assert "start edgemux-edge, and wait until it answers" in debian.install()
    assert "Nothing to change" in debian.install()
    first = debian.release("current")
    (debian.root / "tmp/constraints.txt").write_text(CONSTRAINTS.read_text() + "# another\n")
    (debian.root / "tmp/failing").write_text("once")
    assert "the one before is in use again" in debian.refused("--constraints", "/tmp/constraints.txt")
    assert debian.release("current") == first
    assert "use release" in debian.install("--constraints", "/tmp/constraints.txt")
    assert debian.release("previous") == first
    assert debian.release("current") != first


def test_a_rollback_goes_back_to_the_release_before(debian: Debian) -> None:
    first, second = debian.release("previous"), debian.release("current")
    debian.install("--rollback")
    assert (debian.release("current"), debian.release("previous")) == (first, second)
    assert debian.text("tmp/asked").splitlines()[-1] == "restart edgemux-edge"


def test_uninstalling_leaves_the_configuration_unless_told_otherwise(debian: Debian) -> None:
    debian.install("--uninstall")
    left = debian.tree()
    assert not [path for path in left if "edgemux" in path and not path.startswith("etc/edgemux")]
    assert "etc/edgemux/edge.toml" in left
    debian.install("--uninstall", "--purge")
    assert not [path for path in debian.tree() if "edgemux" in path]
    assert "edgemux" not in debian.text("etc/group")
    assert "Nothing to remove" in debian.install("--uninstall", "--purge")


def _bundle(debian: Debian) -> str:
    (name,) = os.listdir(debian.root / "opt/edgemux/bundles")
    return name


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted(str(path) for path in (REPOSITORY / "deploy").rglob("*.sh") if "node_modules" not in path.parts)
    assert scripts
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
