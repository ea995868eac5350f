"""Looking at this machine: every look ends within a time, whatever hangs. Nothing is judged here."""

from __future__ import annotations

import datetime
import errno
import http.client
import math
import os
import queue
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from edgemux.edge.doctor.access import FilesSeen, Port, PortSeen
from edgemux.edge.doctor.resources import DiskSeen, MemorySeen, SensorSeen
from edgemux.edge.sampler import TIMEOUT_S as SENSOR_TIMEOUT_S
from edgemux.edge.sampler import sound
from edgemux.edge.sensors import PROC, SYS, Memory, Sensor, firmware_flags, memory_limit
from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import Pair
from edgemux.wire.channel import client_files
from edgemux.wire.process import Listen
from edgemux.wire.security import ClientTls, Guard, check_exposure
from edgemux.wire.tracing import TracingSettings, need_extra

T = TypeVar("T")

DISK_TIMEOUT_S = 3.0
PORT_TIMEOUT_S = 2.0
# A plug-in is imported, which takes a while on a slow card.
MAKE_TIMEOUT_S = 10.0
# Between the two readings that it takes to know how busy the CPUs are.
PAUSE_S = 0.3


def within(timeout_s: float, look: Callable[[], T]) -> T:
    """What ``look`` gives or raises. Raises TimeoutError after ``timeout_s``; it is then left behind on its thread.

    For what the system may keep from ever returning: a network mount, a sensor, a name server.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, look()))
        except BaseException as error:  # it is raised in the caller
            answers.put((False, error))

    threading.Thread(target=run, name="edgemux-doctor", daemon=True).start()
    try:
        done, given = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if not done:
        raise given
    found: T = given
    return found


def look_at_sensors(names: Sequence[str], make: Callable[[str], Sensor], pause_s: float = PAUSE_S) -> list[SensorSeen]:
    """Each sensor, read twice. ``make`` gives it by its name, or raises ConfigError."""
    sensors: dict[str, Sensor | SensorSeen] = {}
    for name in names:
        try:
            sensors[name] = within(MAKE_TIMEOUT_S, lambda name=name: make(name))  # type: ignore[misc]
        except TimeoutError:
            sensors[name] = SensorSeen(name, trouble=f"cannot be made within {MAKE_TIMEOUT_S:g} s")
        except ConfigError as error:
            sensors[name] = SensorSeen(name, trouble=str(error), unknown=True)
        except Exception as error:  # it may be anybody's
            sensors[name] = SensorSeen(name, trouble=f"cannot be made ({type(error).__name__})")
        else:
            first = _read(name, sensors[name])
            if first.trouble:
                sensors[name] = first
    time.sleep(pause_s)
    return [_read(name, sensor) for name, sensor in sensors.items()]


def _read(name: str, sensor: Sensor | SensorSeen) -> SensorSeen:
    if isinstance(sensor, SensorSeen):
        return sensor
    try:
        values, wrong = within(SENSOR_TIMEOUT_S, lambda: sound(sensor.read()))
    except TimeoutError:
        return SensorSeen(name, trouble=f"does not answer within {SENSOR_TIMEOUT_S:g} s")
    except Exception as error:  # it may be anybody's
        return SensorSeen(name, trouble=f"cannot be read ({type(error).__name__})")
    return SensorSeen(name, values, tuple(wrong))


def look_at_memory(levels: float, running: bool, proc: Path = PROC, sys_root: Path = SYS) -> MemorySeen:
    """Memory of the machine and of our control group. ``levels``: bytes of the files of all levels."""
    available = Memory(proc, sys_root).read()["memory_available"]
    return MemorySeen(
        float(psutil.virtual_memory().total), available, memory_limit(proc, sys_root), levels, running=running
    )


def look_at_firmware(sys_root: Path = SYS) -> int | None:
    """A Raspberry Pi's flags, from the kernel or from its own command; None on other machines."""
    flags = firmware_flags(sys_root)
    command = shutil.which("vcgencmd")
    if flags is not None or command is None:
        return flags
    try:
        done = subprocess.run([command, "get_throttled"], capture_output=True, text=True, timeout=2.0, check=True)
        return int(done.stdout.strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def look_at_descriptors() -> float:
    """Files that this process may open; infinite where there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else float(limit)


def look_at_disk(setting: str, folder: Path) -> DiskSeen:
    """A folder that is to be written to; where it is not there yet, the one that it would be made in."""

    def look() -> DiskSeen:
        there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        return DiskSeen(setting, writable, float(shutil.disk_usage(there).free))

    try:
        return within(DISK_TIMEOUT_S, look)
    except TimeoutError:
        return DiskSeen(setting, writable=False, hangs=True)
    except OSError:
        return DiskSeen(setting, writable=False)


def look_at_ports(listen: Listen) -> list[PortSeen]:
    """Who is at the three ports of an agent."""
    numbers = {name: int(getattr(listen, name)) for name in ("grpc_port", "http_port", "metrics_port")}
    seen = []
    for name, number in numbers.items():
        state = Port.FREE if number == 0 else _bound(listen.host, number)
        if state is Port.TAKEN and name == "http_port":
            state = _who(listen, number)
        seen.append(PortSeen(f"listen.{name}", number, state))
    return seen


def _bound(host: str, port: int) -> Port:
    """Whether a server could listen there, by trying."""
    try:
        family, kind, _, _, address = within(PORT_TIMEOUT_S, lambda: _resolved(host, port))
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            return Port.FREE
    except (TimeoutError, socket.gaierror):
        return Port.NO_ADDRESS
    except OSError as error:
        kinds = {errno.EADDRINUSE: Port.TAKEN, errno.EACCES: Port.DENIED, errno.EPERM: Port.DENIED}
        return kinds.get(error.errno or 0, Port.NO_ADDRESS)


def _resolved(host: str, port: int) -> Any:
    flags = socket.AI_PASSIVE
    return socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=flags)[0]


def _who(listen: Listen, port: int) -> Port:
    """Whether an agent answers at the HTTP port; health needs no token."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    connection: http.client.HTTPConnection
    if listen.tls.cert is None:
        connection = http.client.HTTPConnection(host, port, timeout=PORT_TIMEOUT_S)
    else:
        # Only whether something answers at this machine's own port is asked; nothing is told to it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=PORT_TIMEOUT_S, context=context)

    def ask() -> int:
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        status = within(2 * PORT_TIMEOUT_S, ask)
    except ssl.SSLError:
        return Port.GUARDED if listen.tls.client_ca is not None else Port.TAKEN
    except (OSError, http.client.HTTPException):
        return Port.TAKEN
    return {200: Port.READY, 503: Port.NOT_READY}.get(status, Port.TAKEN)


def look_at_own_files(listen: Listen) -> FilesSeen:
    """The server's certificates and tokens, read as a server reads them."""

    def look() -> FilesSeen:
        guard = Guard(listen.tls, listen.token_file)
        pair = None if guard.certificates is None else guard.certificates.current()
        known = guard.tokens is not None or listen.tls.client_ca is not None
        check_exposure(listen.host, pair is not None, known, listen.insecure)
        secrets = {"listen.tls.key": listen.tls.key, "listen.token_file": listen.token_file}
        return _files("listen", pair, guard.tokens is not None, secrets)

    return _within_disk("listen", look)


def look_at_cloud_files(address: str, tls: ClientTls, token_file: Path | None) -> FilesSeen:
    """The certificates and the token for the cloud, read as an agent reads them."""

    def look() -> FilesSeen:
        certificates, tokens = client_files(address, tls, token_file, "cloud")
        pair = None if certificates is None else certificates.current()
        secrets = {"cloud.tls.key": tls.key, "cloud.token_file": token_file}
        return _files("cloud", pair, tokens is not None, secrets)

    return _within_disk("cloud", look)


def look_at_tracing(settings: TracingSettings) -> str:
    """What keeps traces from being told, empty for nothing."""
    try:
        need_extra(settings)
    except ConfigError as error:
        return str(error)
    return ""


def _within_disk(section: str, look: Callable[[], FilesSeen]) -> FilesSeen:
    try:
        return within(DISK_TIMEOUT_S, look)
    except ConfigError as error:
        return FilesSeen(section, error=str(error))
    except TimeoutError:
        return FilesSeen(section, error=f"{section}: its files cannot be read in time")


def _files(section: str, pair: Pair | None, token: bool, secrets: dict[str, Path | None]) -> FilesSeen:
    trouble = None if pair is None else pair.trouble(datetime.datetime.now(datetime.UTC))
    shown = tuple(name for name, path in secrets.items() if path is not None and path.stat().st_mode & 0o007)
    return FilesSeen(
        section, tls=pair is not None, token=token, until=pair.until if pair else None, trouble=trouble, open_keys=shown
    )
