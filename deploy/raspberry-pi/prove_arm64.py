"""Proves that the agent installs, starts and answers on 64-bit Arm, on an x86 machine, as root.

    python deploy/raspberry-pi/prove_arm64.py [--python 3.11] [--cpu cortex-a53] [--samples 40] [--json FILE]

For each Python: a Debian for arm64 in a folder, `edgemux[edge]` from wheels in it, and `edgemux edge` there under
qemu-user, in front of a real `edgemux cloud` on this machine. Requests over gRPC and REST go to it and to an agent on
this machine; the answers are compared. Exit status 1 when one of the limits is missed. It says nothing about speed:
emulation is some hundred times slower than any Pi.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulation
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle
from edgemux.wire import Client

MODEL = "fashion-mnist"
BUNDLE = emulation.REPOSITORY / "deploy" / "bundles" / "fashion-mnist"
NEEDS = {"mmdebstrap": "mmdebstrap", "qemu-aarch64-static": "qemu-user-static", "unshare": "util-linux"}
MOST_INSTALLED_BYTES = 160_000_000
MOST_RESIDENT_BYTES = 110_000_000
# Of a probability, between two machines that add FP32 numbers in another order.
TOLERANCE = 1e-4
# Raspberry Pi 4 as it comes; 5 for each level on its own; 3 is asked once, where there is time.
PLAIN_ON, EACH_ON, OTHER_CPUS = "cortex-a72", "cortex-a76", ("cortex-a53",)
# What the agent imports; install.sh writes the bytecode of no more than that.
IMPORTS = "import edgemux.cli.main, edgemux.edge.server"
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
START_S = 400.0
ASK_S = 300.0
READY = re.compile(r"^edgemux \w+ ready model=\S+ grpc=(\S+) http=(\S+) metrics=(\S+)")
ALONE = {f"level-{n}": f"fixed-level(level={n})" for n in (1, 2, 3, 4)} | {"cloud": "cloud-only"}
# As it comes: one application, the policy decides.
PLAIN = """
bundle = "{bundle}"
audit_share = 0.0
[cloud]
address = "{cloud}"
[listen]
grpc_port = 0
http_port = 0
metrics_port = 0
[request]
default_timeout_s = 300.0
max_timeout_s = 300.0
[breaker]
slow_s = 300.0
"""
# Each level on its own, and the cloud: what each of them answers to every input. Without sensors nothing limits the
# levels, which under emulation are too slow for what the policy would allow them.
EACH = (
    PLAIN.replace('bundle = "{bundle}"', "sensors = []")
    + '[scheduler]\nscheme = "off"\n[limits]\ncompute_share = 1.0\n'
    + "".join(
        f'[[applications]]\nbundle = "{{bundle}}"\nname = "{name}"\ncloud_model = "{MODEL}"\npolicy = "{policy}"\n'
        for name, policy in ALONE.items()
    )
)


@dataclass(frozen=True)
class Served:
    """A server that is ready: its process and where it listens."""

    pid: int
    grpc: str
    http: str
    ready_s: float


@dataclass(frozen=True)
class Answer:
    """To some inputs: probabilities FP32 [n, classes], and who gave each."""

    probabilities: NDArray[Any]
    by: tuple[str, ...]


class Servers:
    """Servers that end with the block; they start side by side, and each is waited for when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = contextlib.ExitStack()
        self._started: dict[str, tuple[subprocess.Popen[str], float]] = {}
        self._ready: dict[str, Served] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *raised: object) -> None:
        self._ends.close()

    def start(self, name: str, command: Sequence[str], machine: emulation.Machine | None = None, cpu: str = "") -> None:
        """Start a server: ``edgemux`` with these words, on this machine or on an emulated one."""
        log = self._ends.enter_context((self._folder / f"{name}.log").open("w"))
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log}
        words = ["-m", "edgemux.cli.main", *command]
        if machine is not None:
            popen = machine.start(cpu, *words, **how)
        else:
            native = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
            popen = subprocess.Popen([sys.executable, *words], text=True, env=native, **how)
        self._ends.callback(_end, popen)
        self._started[name] = popen, time.monotonic()

    def ready(self, name: str) -> Served:
        """Wait until it has said where it listens. Raises Failed with its last line when it does not."""
        if name not in self._ready:
            self._ready[name] = self._await(name)
        return self._ready[name]

    def _await(self, name: str) -> Served:
        popen, began_s = self._started[name]
        assert popen.stdout is not None
        there, _, _ = select.select([popen.stdout], [], [], max(0.0, began_s + START_S - time.monotonic()))
        ready = READY.match(popen.stdout.readline()) if there else None
        if ready is None:
            said = (self._folder / f"{name}.log").read_text().strip().splitlines()
            raise emulation.Failed(f"{name} does not start: {said[-1] if said else 'it says nothing'}")
        return Served(popen.pid, ready[1], ready[2], time.monotonic() - began_s)


def _end(popen: subprocess.Popen[str]) -> None:
    popen.terminate()
    try:
        popen.wait(30)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    if popen.stdout is not None:
        popen.stdout.close()


def ask(server: Served, model: str, images: NDArray[np.uint8]) -> Answer:
    """Over gRPC, with the client of this project."""
    with Client(server.grpc) as client:
        reply = client.infer(model, {"image": images}, timeout_s=ASK_S)
    return Answer(reply.outputs["probabilities"], tuple(str(reply.parameters["edgemux_variant"]).split(",")))


def ask_rest(server: Served, model: str, images: NDArray[np.uint8]) -> Answer:
    """Over REST, as JSON."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": images.shape, "data": images.reshape(-1).tolist()}
    body = {"inputs": [tensor], "parameters": {"timeout_ms": int(ASK_S * 1000)}}
    url = f"http://{server.http}/v2/models/{model}/infer"
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=ASK_S) as reply:
        answer = json.load(reply)
    (output,) = (each for each in answer["outputs"] if each["name"] == "probabilities")
    probabilities = np.array(output["data"], np.float32).reshape(output["shape"])
    return Answer(probabilities, tuple(str(answer["parameters"]["edgemux_variant"]).split(",")))


def table_of(answers: Sequence[Answer]) -> dict[tuple[str, int], NDArray[Any]]:
    """Probabilities by who gave them and the input's number."""
    return {(by, row): each.probabilities[row] for each in answers for row, by in enumerate(each.by)}


def agreement(answer: Answer, expected: dict[tuple[str, int], NDArray[Any]]) -> dict[str, Any]:
    """How far the answers are from what the same models gave on this machine, input by input."""
    pairs = [(answer.probabilities[row], expected[by, row]) for row, by in enumerate(answer.by)]
    return {
        "inputs": len(pairs),
        "by": {name: answer.by.count(name) for name in sorted(set(answer.by))},
        "largest_difference": max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs),
        "other_labels": sum(int(ours.argmax() != theirs.argmax()) for ours, theirs in pairs),
    }


def prove(version: str, cpus: Sequence[str], samples: int, cache: Path, wheel: Path, folder: Path) -> dict[str, Any]:
    """Everything about one Python, as plain values. Raises Failed."""
    tell(f"Python {version}: a root and packages for arm64")
    (conf := folder / f"conf-{version}").mkdir()
    root, site = emulation.make_root(version, cache), emulation.make_site(version, wheel, cache)
    machine = emulation.Machine(version, root, site, BUNDLE, conf)
    emulation.check_guest_addresses(machine, PLAIN_ON)
    tell("importing it")
    with (folder / "imports.log").open("w") as log:
        if machine.start(PLAIN_ON, "-c", IMPORTS, stderr=log).wait(START_S) != 0:
            raise emulation.Failed(f"Python {version} for arm64 cannot import the agent")
    images = Bundle.open(BUNDLE).arrays("samples.npz")["images"][:samples]
    with Servers(folder) as servers:
        servers.start("cloud", ["cloud", "--bundle", str(BUNDLE), *PORTS])
        cloud = servers.ready("cloud").grpc
        for name, text, cpu in (("plain", PLAIN, PLAIN_ON), ("each", EACH, EACH_ON)):
            (conf / f"{name}.toml").write_text(text.format(bundle="/opt/bundle", cloud=cloud))
            (folder / f"{name}.toml").write_text(text.format(bundle=BUNDLE, cloud=cloud))
            servers.start(f"arm64-{name}", ["edge", "--config", f"/opt/conf/{name}.toml"], machine, cpu)
            servers.start(f"x86-{name}", ["edge", "--config", str(folder / f"{name}.toml")])
        answers = compare(servers, images)
        plain = servers.ready("arm64-plain")
        memory = emulation.guest_resident(plain.pid) | {"x86": emulation.resident(servers.ready("x86-plain").pid)}
        expected = expected_answers(servers, images)
        for cpu in cpus:
            servers.start(cpu, ["edge", "--config", "/opt/conf/plain.toml"], machine, cpu)
        for cpu in cpus:
            answers[f"{cpu} gRPC"] = agreement(ask(servers.ready(cpu), MODEL, images[:4]), expected)
    installed = emulation.sizes(site)
    return {"python": version, "installed": installed, "resident": memory, "answers": answers, "ready_s": plain.ready_s}


def expected_answers(servers: Servers, images: NDArray[np.uint8]) -> dict[tuple[str, int], NDArray[Any]]:
    """What each level and the cloud answer on this machine."""
    return table_of([ask(servers.ready("x86-each"), name, images) for name in ALONE])


def compare(servers: Servers, images: NDArray[np.uint8]) -> dict[str, dict[str, Any]]:
    """How far the emulated agents' answers are from this machine's: by the policy, and by each level and the cloud."""
    tell("starting the agent for arm64")
    expected = expected_answers(servers, images)
    plain, each = servers.ready("arm64-plain"), servers.ready("arm64-each")
    tell("asking it")
    found = {
        f"{PLAIN_ON} gRPC": agreement(ask(plain, MODEL, images), expected),
        f"{PLAIN_ON} REST": agreement(ask_rest(plain, MODEL, images), expected),
    }
    for name in ALONE:
        found[f"{EACH_ON} gRPC {name}"] = agreement(ask(each, name, images), expected)
    return found


def misses(report: dict[str, Any]) -> list[str]:
    """What of the limits is missed, a line each."""
    found = [
        f"{name}: {what}"
        for name, answer in report["answers"].items()
        for what, bad in (
            (f"differs by {answer['largest_difference']:.1e}", not answer["largest_difference"] <= TOLERANCE),
            (f"{answer['other_labels']} other labels", answer["other_labels"] > 0),
        )
        if bad
    ]
    if report["installed"]["with_bytecode"] > MOST_INSTALLED_BYTES:
        found.append("installed: more than it may be")
    if report["resident"]["guest"] > MOST_RESIDENT_BYTES:
        found.append("resident: more than it may be")
    if len(report["answers"][f"{PLAIN_ON} gRPC"]["by"]) < 2:
        found.append("the policy: either the device or the cloud answered nothing")
    for name in ALONE:
        by = report["answers"][f"{EACH_ON} gRPC {name}"]["by"]
        if list(by) != [name.replace("level-", "level")]:
            found.append(f"{name}: answered by {', '.join(by)}")
    return found


def told(report: dict[str, Any]) -> str:
    """The report as lines."""
    installed, resident = report["installed"], report["resident"]
    megabytes = {key: f"{value / 1e6:.1f} MB" for key, value in (installed | resident).items()}
    lines = [
        f"Python {report['python']}, ready after {report['ready_s']:.0f} s of emulation",
        f"  installed {megabytes['with_bytecode']} (at most {MOST_INSTALLED_BYTES / 1e6:.0f}),"
        f" {megabytes['without_bytecode']} without bytecode",
        f"  resident {megabytes['guest']} in the guest's own pages (at most {MOST_RESIDENT_BYTES / 1e6:.0f}),"
        f" {megabytes['with_emulator']} with the emulator; {megabytes['x86']} on this machine",
    ]
    for name, answer in report["answers"].items():
        by = ", ".join(f"{count} by {who}" for who, count in answer["by"].items())
        lines.append(
            f"  {name:25} {answer['inputs']} inputs ({by}): at most {answer['largest_difference']:.1e} apart, "
            f"{answer['other_labels']} other labels"
        )
    return "\n".join(lines)


def tell(line: str) -> None:
    """Say how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Prove it, print what was found; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", choices=sorted(emulation.SUITES), help="default: all")
    parser.add_argument("--cpu", action="append", help="more CPUs, asked once each; default: cortex-a53; none: none")
    parser.add_argument("--samples", type=int, default=40, help="inputs to compare")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemux" / "arm64"
    parser.add_argument("--cache", type=Path, default=cache, help="where roots and packages are kept")
    parser.add_argument("--json", type=Path, help="where the report goes too")
    given = parser.parse_args(arguments)
    lacking = emulation.missing_programs(NEEDS)
    if lacking or os.geteuid() != 0:
        print(f"error: needs {'root' if not lacking else ', '.join(lacking)}", file=sys.stderr)
        return 2
    cpus = [cpu for cpu in given.cpu or OTHER_CPUS if cpu != "none"]
    reports, failed = [], False
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = emulation.make_wheel(Path(folder))
            for version in given.python or emulation.SUITES:
                report = prove(version, cpus, given.samples, given.cache.resolve(), wheel, Path(folder))
                report["misses"] = misses(report)
                print(told(report), *(f"  MISSED: {miss}" for miss in report["misses"]), sep="\n", flush=True)
                reports.append(report)
                failed = failed or bool(report["misses"])
    except emulation.Failed as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    if given.json:
        given.json.write_text(json.dumps(reports, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
