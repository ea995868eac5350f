"""A Debian for arm64 in a folder, the agent's packages for it, and its programs run on this machine by qemu-user.

The emulator is started by name, as the program inside the chroot: no binfmt_misc is needed, and nothing is registered.
What is mounted is mounted in a namespace of that one process, so it is gone when the process is, however it ends.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
# The Debian that brings a Python; Raspberry Pi OS is of the same releases.
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
# base-files: from Debian 13 on it brings the link /lib that loaders are found by.
PACKAGES = "base-files,python3-minimal,libpython3-stdlib,libgomp1,libstdc++6"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
EMULATOR = "/usr/bin/qemu-aarch64-static"
# /sys stays out: onnxruntime ends with a segmentation fault under qemu when it finds the host's.
ENTER = """
root=$1 site=$2 bundle=$3 conf=$4; shift 4
mount --bind "$site" "$root/opt/site"
mount --bind -o ro "$bundle" "$root/opt/bundle"
mount --bind -o ro "$conf" "$root/opt/conf"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
exec chroot "$root" "$@"
"""
# Guests live below this address, the emulator far above it. A control checks it in every run.
GUEST_END = 1 << 40
LOADED = 1  # PT_LOAD, of a segment in an ELF file
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) [-rwxps]{4} ")


class Failed(Exception):
    """A step that did not work, in one line."""


def run(command: Sequence[str], what: str) -> str:
    """What a command prints. Raises Failed with the last of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{what}: {' '.join((done.stderr or done.stdout).strip().splitlines()[-3:])}")
    return done.stdout


@dataclass(frozen=True)
class Machine:
    """An arm64 root and the folder with the packages that is mounted into it."""

    version: str
    root: Path
    site: Path
    bundle: Path
    conf: Path

    def start(self, cpu: str, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        """Start its Python as a process that ends with this one; ``how`` as for Popen. ``cpu`` as qemu names it."""
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": "/opt/site",
            "PYTHONUNBUFFERED": "1",
            "QEMU_CPU": cpu,
        }
        folders = [str(folder) for folder in (self.root, self.site, self.bundle, self.conf)]
        command = ["setpriv", "--pdeathsig", "KILL", "env", "-i", *(f"{key}={it}" for key, it in variables.items())]
        command += ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "enter", *folders]
        command += [EMULATOR, f"/usr/bin/python{self.version}", *arguments]
        return subprocess.Popen(command, text=True, **how)

    def output(self, cpu: str, timeout_s: float, *arguments: str) -> str:
        """What its Python prints. Raises Failed with the last of what it said where it fails."""
        with self.start(cpu, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
            try:
                out, err = popen.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                popen.kill()
                raise Failed(f"Python {self.version} for arm64 does not end") from None
        if popen.returncode != 0:
            raise Failed(f"Python {self.version} for arm64 fails: {' '.join(err.strip().splitlines()[-2:])}")
        return out


def make_root(version: str, cache: Path) -> Path:
    """The folder with the Debian that has this Python, made once."""
    suite = SUITES[version]
    root = cache / f"root-{suite}-{_digest(PACKAGES)}"
    if not root.is_dir():
        new = _emptied(root.with_suffix(".new"))
        made = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}", suite]
        run([*made, str(new)], f"making a root of Debian {suite} for arm64")
        for folder in ("opt/site", "opt/bundle", "opt/conf", "proc", "dev", "tmp"):
            (new / folder).mkdir(parents=True, exist_ok=True)
        new.rename(root)
    shutil.copy2(EMULATOR, root / EMULATOR.lstrip("/"))
    return root


def make_wheel(folder: Path) -> Path:
    """A wheel of this checkout."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    run([*pip, str(folder), str(REPOSITORY)], "building the wheel")
    (wheel,) = folder.glob("edgemux-*.whl")
    return wheel


def make_site(version: str, wheel: Path, cache: Path) -> Path:
    """A folder with `edgemux[edge]` of that wheel for arm64: resolved once for what it requires, ours always new."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-")]
    site = cache / f"site-{version}-{_digest(*required, CONSTRAINTS.read_text())}"
    if not site.is_dir():
        new = _emptied(site.with_suffix(".new"))
        run(_install(version, wheel, new), f"installing edgemux[edge] for arm64 and Python {version}")
        new.rename(site)
    for folder in (*site.glob("edgemux"), *site.glob("edgemux-*.dist-info")):
        shutil.rmtree(folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def _install(version: str, wheel: Path, target: Path) -> list[str]:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
    pip += ["--python-version", version, "--implementation", "cp", "--only-binary=:all:"]
    pip += [word for platform in PLATFORMS for word in ("--platform", platform)]
    return [*pip, "--constraint", str(CONSTRAINTS), f"edgemux[edge] @ {wheel.as_uri()}"]


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def sizes(site: Path) -> dict[str, int]:
    """Bytes of all files, and of them without bytecode."""
    files = [Path(folder) / name for folder, _, names in os.walk(site) for name in names]
    every = {path: path.lstat().st_size for path in files}
    return {
        "with_bytecode": sum(every.values()),
        "without_bytecode": sum(size for path, size in every.items() if path.suffix != ".pyc"),
    }


def least_alignment(site: Path) -> int:
    """To how many bytes the segments of all libraries are aligned at least: they load where pages are no larger."""
    found = []
    for path in site.rglob("*.so*"):
        content = path.read_bytes()
        if content[:5] != b"\x7fELF\x02":  # not a library, or a 32-bit one
            continue
        (table,), (size, count) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<HH", content, 54)
        headers = [struct.unpack_from("<I44xQ", content, table + size * number) for number in range(count)]
        found += [alignment for kind, alignment in headers if kind == LOADED]
    return min(found, default=0)


def guest_resident(pid: int) -> dict[str, int]:
    """Resident bytes of a process under qemu: all, and of them those that are the guest's own pages.

    The rest is the emulator: its translations of the guest's code, and what it knows about them.
    """
    found = {"with_emulator": 0, "guest": 0}
    start = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            start = int(mapping[1], 16)
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
            found["with_emulator"] += resident
            found["guest"] += resident if start < GUEST_END else 0
    return found


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    (pages,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(pages) * 1024


def check_guest_addresses(machine: Machine, cpu: str) -> None:
    """The control of ``guest_resident``: a guest's own list of its memory is what lies below GUEST_END, and no more."""
    program = "print(open('/proc/self/maps').read(), flush=True); print('end', flush=True); input()"
    with machine.start(cpu, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        its_own = _ranges(itertools.takewhile(lambda line: line != "end\n", guest.stdout))
        outside = _ranges(Path(f"/proc/{guest.pid}/maps").read_text().splitlines())
        guest.communicate("\n")
    if not its_own or any(end > GUEST_END for _, end in its_own):
        raise Failed("memory: this qemu puts guests elsewhere; resident memory cannot be told from the emulator's")
    below = sum(end - start for start, end in outside if start < GUEST_END)
    listed = sum(end - start for start, end in its_own)
    if abs(below - listed) > 0.05 * listed or len(outside) == len(its_own):
        raise Failed("memory: what lies below the guest's end is not the guest's memory")


def _ranges(lines: Any) -> list[tuple[int, int]]:
    found = (_MAPPING.match(line) for line in lines)
    return [(int(each[1], 16), int(each[2], 16)) for each in found if each]


def missing_programs(needed: Mapping[str, str]) -> list[str]:
    """The Debian packages of those programs that are not there."""
    return sorted({package for program, package in needed.items() if shutil.which(program) is None})
