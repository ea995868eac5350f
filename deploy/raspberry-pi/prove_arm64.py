"""Proves that the agent installs, starts and answers on 64-bit Arm, on an x86 machine, as root.

    python deploy/raspberry-pi/prove_arm64.py [--python 3.11] [--cpu cortex-a53] [--samples 32] [--json FILE]

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulation
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import EdgemuxError, Unreachable
from edgemux.wire import Client

MODEL = "fashion-mnist"
BUNDLE = emulation.REPOSITORY / "deploy" / "bundles" / "fashion-mnist"
NEEDS = {"mmdebstrap": "mmdebstrap", "qemu-aarch64-static": "qemu-user-static", "unshare": "util-linux"}
MOST_INSTALLED_BYTES = 160_000_000
MOST_RESIDENT_BYTES = 110_000_000
# Of memory on a Raspberry Pi 5, as its system comes.
PAGE_BYTES = 16_384
# Of a probability, between two machines that add FP32 numbers in another order.
TOLERANCE = 1e-4
# Raspberry Pi 4 serves, 5 runs each level on its own; 3 serves too, where there is time.
SERVES_ON, LEVELS_ON, OTHERS = "cortex-a72", "cortex-a76", ("cortex-a53",)
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
START_S = 900.0
ASK_S = 300.0
READY = re.compile(r"^edgemux \w+ ready model=\S+ grpc=(\S+) http=(\S+) metrics=(\S+)")
# The agent as it comes, but for its patience.
CONFIG = """
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
# Imports what the agent does, which writes the bytecode that install.sh has written, and runs each level.
LEVELS = """
import json, sys
from pathlib import Path
import edgemux.cli.main, edgemux.edge.server
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import Bundle

bundle = Bundle.open(Path(sys.argv[1]))
images = bundle.arrays("samples.npz")["images"][: int(sys.argv[2])]
family = Family(bundle)
answers = {route.variant: family.chain.answer({"image": images}, route.level).tolist() for route in family.routes}
print(json.dumps(answers))
"""


Table = dict[tuple[str, int], NDArray[Any]]


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


def patiently(call: Callable[[], Any], failure: type[Exception]) -> Any:
    """Call again while it fails like that: where much else runs, an emulated server may shake hands too slowly."""
    until = time.monotonic() + ASK_S
    while True:
        try:
            return call()
        except failure:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def givers(parameters: Mapping[str, Any], inputs: int) -> tuple[str, ...]:
    """Who answered each input, as an agent says; the cloud itself says nothing of the kind."""
    said = parameters.get("edgemux_variant")
    return ("cloud",) * inputs if said is None else tuple(str(said).split(","))


def ask(server: Served, model: str, images: NDArray[np.uint8]) -> Answer:
    """Over gRPC, with the client of this project."""
    with Client(server.grpc) as client:
        reply = patiently(lambda: client.infer(model, {"image": images}, timeout_s=ASK_S), Unreachable)
    return Answer(reply.outputs["probabilities"], givers(reply.parameters, len(images)))


def ask_rest(server: Served, model: str, images: NDArray[np.uint8]) -> Answer:
    """Over REST, as JSON."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": images.shape, "data": images.reshape(-1).tolist()}
    body = {"inputs": [tensor], "parameters": {"timeout_ms": int(ASK_S * 1000)}}
    url = f"http://{server.http}/v2/models/{model}/infer"
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with patiently(lambda: urllib.request.urlopen(asked, timeout=ASK_S), OSError) as reply:
        answer = json.load(reply)
    (output,) = (each for each in answer["outputs"] if each["name"] == "probabilities")
    probabilities = np.array(output["data"], np.float32).reshape(output["shape"])
    return Answer(probabilities, givers(answer["parameters"], len(images)))


def levels(printed: str) -> list[Answer]:
    """What LEVELS has printed."""
    answers = ((name, np.array(rows, np.float32)) for name, rows in json.loads(printed).items())
    return [Answer(rows, (name,) * len(rows)) for name, rows in answers]


def table_of(answers: Sequence[Answer]) -> Table:
    """Probabilities by who gave them and the input's number."""
    return {(by, row): each.probabilities[row] for each in answers for row, by in enumerate(each.by)}


def agreement(answer: Answer, expected: Table) -> dict[str, Any]:
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
    emulation.check_guest_addresses(machine, SERVES_ON)
    images = Bundle.open(BUNDLE).arrays("samples.npz")["images"][:samples]
    with Servers(folder) as servers:
        servers.start("cloud", ["cloud", "--bundle", str(BUNDLE), *PORTS])
        cloud = servers.ready("cloud")
        native = emulation.run([sys.executable, "-c", LEVELS, str(BUNDLE), str(samples)], "running the levels here")
        expected = table_of([*levels(native), ask(cloud, MODEL, images)])
        tell(f"each level on {LEVELS_ON}")
        emulated = machine.output(LEVELS_ON, START_S, "-c", LEVELS, "/opt/bundle", str(samples))
        answers = {f"{LEVELS_ON} {each.by[0]}": agreement(each, expected) for each in levels(emulated)}
        tell(f"the agent on {SERVES_ON}")
        (conf / "edge.toml").write_text(CONFIG.format(bundle="/opt/bundle", cloud=cloud.grpc))
        (folder / "edge.toml").write_text(CONFIG.format(bundle=BUNDLE, cloud=cloud.grpc))
        servers.start("x86", ["edge", "--config", str(folder / "edge.toml")])
        for cpu in (SERVES_ON, *cpus):
            servers.start(cpu, ["edge", "--config", "/opt/conf/edge.toml"], machine, cpu)
        agent, here = servers.ready(SERVES_ON), servers.ready("x86")
        answers[f"{SERVES_ON} gRPC"] = agreement(ask(agent, MODEL, images), expected)
        answers[f"{SERVES_ON} REST"] = agreement(ask_rest(agent, MODEL, images), expected)
        agreement(ask(here, MODEL, images), expected)
        memory = emulation.guest_resident(agent.pid) | {"x86": emulation.resident(here.pid)}
        for cpu in cpus:
            answers[f"{cpu} gRPC"] = agreement(ask(servers.ready(cpu), MODEL, images[:4]), expected)
    found = {"python": version, "installed": emulation.sizes(site), "alignment": emulation.least_alignment(site)}
    return found | {"resident": memory, "answers": answers, "ready_s": agent.ready_s}


def install(version: str, cache: Path, wheel: Path) -> dict[str, Any]:
    """The packages for one Python, without the bytecode of an earlier run."""
    tell(f"Python {version}: packages for arm64")
    installed = emulation.sizes(emulation.make_site(version, wheel, cache))
    print(f"Python {version}\n  installed {installed['without_bytecode'] / 1e6:.1f} MB without bytecode", flush=True)
    return {"python": version, "installed": installed}


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
    if report["alignment"] < PAGE_BYTES:
        found.append("a library cannot be loaded where pages are of 16 KiB")
    if report["resident"]["guest"] > MOST_RESIDENT_BYTES:
        found.append("resident: more than it may be")
    if len(report["answers"][f"{SERVES_ON} gRPC"]["by"]) < 2:
        found.append("the policy: either the device or the cloud answered nothing")
    return found


def told(report: dict[str, Any]) -> str:
    """The report as lines."""
    installed, resident = report["installed"], report["resident"]
    megabytes = {key: f"{value / 1e6:.1f} MB" for key, value in (installed | resident).items()}
    lines = [
        f"Python {report['python']}, ready after {report['ready_s']:.0f} s of emulation",
        f"  installed {megabytes['with_bytecode']} (at most {MOST_INSTALLED_BYTES / 1e6:.0f}),"
        f" {megabytes['without_bytecode']} without bytecode",
        f"  libraries aligned to {report['alignment'] // 1024} KiB (at least {PAGE_BYTES // 1024})",
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
    parser.add_argument("--samples", type=int, default=32, choices=range(1, 33), metavar="1..32", help="inputs")
    parser.add_argument("--install-only", action="store_true", help="only find and install the packages; start nothing")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemux" / "arm64"
    parser.add_argument("--cache", type=Path, default=cache, help="where roots and packages are kept")
    parser.add_argument("--json", type=Path, help="where the report goes too")
    given = parser.parse_args(arguments)
    lacking = emulation.missing_programs(NEEDS)
    if lacking or os.geteuid() != 0:
        print(f"error: needs {'root' if not lacking else ', '.join(lacking)}", file=sys.stderr)
        return 2
    cpus = [cpu for cpu in given.cpu or OTHERS if cpu != "none"]
    reports, failed = [], False
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = emulation.make_wheel(Path(folder))
            for version in given.python or emulation.SUITES:
                if given.install_only:
                    reports.append(install(version, given.cache.resolve(), wheel))
                    continue
                report = prove(version, cpus, given.samples, given.cache.resolve(), wheel, Path(folder))
                report["misses"] = misses(report)
                print(told(report), *(f"  MISSED: {miss}" for miss in report["misses"]), sep="\n", flush=True)
                reports.append(report)
                failed = failed or bool(report["misses"])
    except (emulation.Failed, EdgemuxError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    if given.json:
        given.json.write_text(json.dumps(reports, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
