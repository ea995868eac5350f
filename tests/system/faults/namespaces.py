"""Two network namespaces with a cable between them, for faults that only a kernel can make. Takes root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator

import msgspec

_TOOLS = ("ip", "iptables", "tc")
_CLONE_NEWNET = 0x40000000
_TIMEOUT_S = 20.0
EDGE_ADDRESS, CLOUD_ADDRESS = "10.77.0.1", "10.77.0.2"


def missing() -> str | None:
    """Why there can be no namespaces here, None where there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(absent)}"
    probe = subprocess.run(["ip", "netns", "add", _name("probe")], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"no network namespaces here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", _name("probe")], check=True)
    return None


def _name(part: str) -> str:
    return f"edgemux-{os.getpid()}-{part}"


class Namespace(msgspec.Struct, frozen=True):
    """One end of the cable."""

    name: str

    @property
    def within(self) -> tuple[str, ...]:
        """What to put before a command so that it runs here."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *command: str) -> None:
        """Run a command here. Raises CalledProcessError."""
        subprocess.run([*self.within, *command], check=True, capture_output=True, timeout=_TIMEOUT_S)

    def tables(self, *rule: str) -> None:
        """Change the packet filter."""
        self.run("iptables", *rule)

    def open_socket(self, host: str, port: int) -> socket.socket:
        """A connection from in here: a socket stays in the namespace of the thread that made it. Raises OSError."""
        made: list[socket.socket | OSError] = []

        def connect() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            try:
                with open(f"/var/run/netns/{self.name}") as namespace:
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.create_connection((host, port), _TIMEOUT_S))
            except OSError as error:
                made.append(error)

        # A thread of its own, which ends here: no other work ever runs in the namespace.
        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        made[0].setblocking(False)
        return made[0]


class Cable(msgspec.Struct, frozen=True):
    """The agent's end and the cloud's."""

    edge: Namespace
    cloud: Namespace

    def lose(self, share: float) -> None:
        """Lose this share of the packets that arrive at either end."""
        for end in (self.edge, self.cloud):
            how = ("-m", "statistic", "--mode", "random", "--probability", str(share))
            end.tables("-A", "INPUT", "-i", "cable", *how, "-j", "DROP")

    def lose_answers(self) -> None:
        """Lose what the cloud sends."""
        self.cloud.tables("-A", "OUTPUT", "-o", "cable", "-j", "DROP")

    def lose_everything(self) -> None:
        """Lose what either end sends."""
        self.edge.tables("-A", "OUTPUT", "-o", "cable", "-j", "DROP")
        self.lose_answers()

    def lose_resets(self) -> None:
        """Lose the cloud's RSTs: nobody learns that it does not know a connection."""
        self.cloud.tables("-A", "OUTPUT", "-o", "cable", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")

    def lose_attempts(self) -> None:
        """Lose the packets that would open a connection."""
        self.cloud.tables("-A", "INPUT", "-i", "cable", "-p", "tcp", "--syn", "-j", "DROP")

    def lose_large(self, most: int) -> None:
        """Lose packets of more bytes, and never say so: an MTU that the ends do not know."""
        for end in (self.edge, self.cloud):
            end.tables("-A", "OUTPUT", "-o", "cable", "-m", "length", "--length", f"{most + 1}:65535", "-j", "DROP")

    def limit(self, bits_per_s: int) -> None:
        """Let no more than this through in each direction; what waits for more than 0.4 s is lost."""
        for end in (self.edge, self.cloud):
            rate = ("rate", f"{bits_per_s}bit", "burst", "1600", "latency", "400ms")
            end.run("tc", "qdisc", "replace", "dev", "cable", "root", "tbf", *rate)

    def mend(self) -> None:
        """As on the first day."""
        for end in (self.edge, self.cloud):
            end.tables("-F")
            # Fails where there is no limit.
            with contextlib.suppress(subprocess.CalledProcessError):
                end.run("tc", "qdisc", "del", "dev", "cable", "root")


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """Two namespaces joined by a veth pair, gone with the block together with all that runs in them."""
    ends = Cable(Namespace(_name("edge")), Namespace(_name("cloud")))
    with contextlib.ExitStack() as stack:
        for end in (ends.edge, ends.cloud):
            _ip("netns", "add", end.name)
            stack.callback(_ip, "netns", "del", end.name)
        peer = ("peer", "name", "cable", "netns", ends.edge.name)
        _ip("link", "add", "cable", "netns", ends.cloud.name, "type", "veth", *peer)
        for end, address in ((ends.edge, EDGE_ADDRESS), (ends.cloud, CLOUD_ADDRESS)):
            end.run("ip", "addr", "add", f"{address}/24", "dev", "cable")
            end.run("ip", "link", "set", "cable", "up")
            end.run("ip", "link", "set", "lo", "up")
        yield ends


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=_TIMEOUT_S)
