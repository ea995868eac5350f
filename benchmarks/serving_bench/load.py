"""One pass of load on one server: h2load where it is installed, our own client (client.py) where it is not."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from serving_bench.client import INFER
from serving_bench.payload import Http

WARM_UP_MS = 500
CLIENT = Path(__file__).parent / "client.py"
GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")


class Pass(NamedTuple):
    """failures: requests that were refused, or not answered."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    failures: int


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in order; nan of none."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def summary(latencies_s: Sequence[float], seconds: float, failures: int) -> Pass:
    """Of one pass."""
    ordered = sorted(latencies_s)
    p50, p99 = (1e3 * quantile(ordered, share) for share in (0.5, 0.99))
    return Pass(len(ordered) / seconds, p50, p99, len(ordered), failures)


def has_h2load() -> bool:
    """Whether h2load (Debian: nghttp2-client) is installed."""
    return shutil.which("h2load") is not None


def closed(address: str, payload: bytes | Http, concurrency: int, seconds: float, streamed: bool = False) -> Pass:
    """``concurrency`` connections with one request in flight each. ``payload``: a gRPC message, or a POST."""
    if has_h2load() and not streamed:
        return _h2load_closed(address, payload, concurrency, seconds)
    mode = "stream" if streamed else ("post" if isinstance(payload, Http) else "unary")
    return own_client(mode, address, payload, concurrency, seconds)


def own_client(mode: str, address: str, payload: bytes | Http, amount: float, seconds: float) -> Pass:
    """By client.py."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(_http_request(address, payload) if isinstance(payload, Http) else payload)
        body.flush()
        command = [sys.executable, str(CLIENT), mode, address, body.name, str(amount), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    told = json.loads(done.stdout)
    return summary(told["latencies_s"], seconds, told["failures"])


def _http_request(address: str, payload: Http) -> bytes:
    lines = [f"POST {payload.path} HTTP/1.1", f"Host: {address}", f"Content-Length: {len(payload.body)}"]
    lines += [f"{name}: {value}" for name, value in payload.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload.body


# --- h2load ---------------------------------------------------------------------------------------------------------
def _command(folder: Path, payload: bytes | Http) -> list[str]:
    """What both kinds of pass have in common; the log and the body lie in ``folder``."""
    body = folder / "body"
    if isinstance(payload, Http):
        body.write_bytes(payload.body)
        headers = [f"{name}: {value}" for name, value in payload.headers.items()]
    else:
        body.write_bytes(b"\x00" + len(payload).to_bytes(4, "big") + payload)
        headers = list(GRPC_HEADERS)
    command = ["h2load", "-d", str(body), f"--log-file={folder / 'log'}"]
    if isinstance(payload, Http):
        command.append("--h1")
    return command + [part for header in headers for part in ("-H", header)]


def _h2load_closed(address: str, payload: bytes | Http, concurrency: int, seconds: float) -> Pass:
    path = payload.path if isinstance(payload, Http) else INFER
    with tempfile.TemporaryDirectory() as temporary:
        command = _command(Path(temporary), payload)
        command += ["-c", str(concurrency), "-m", "1", "-D", str(math.ceil(seconds)), f"--warm-up-time={WARM_UP_MS}ms"]
        said = _run([*command, f"http://{address}{path}"], seconds)
        rows = _log(Path(temporary) / "log")
    return _counted(rows, said, math.ceil(seconds), isinstance(payload, Http))


def _run(command: list[str], seconds: float) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout


def _log(path: Path) -> list[tuple[int, int, int]]:
    """Start in microseconds since the epoch, HTTP status, microseconds taken; of what was answered."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        start, status, taken = line.split("\t")[:3]
        rows.append((int(start), int(status), int(taken)))
    return rows


def _counted(rows: list[tuple[int, int, int]], said: str, seconds: float, http: bool) -> Pass:
    latencies = [taken / 1e6 for _, status, taken in rows if status == 200]
    failures = len(rows) - len(latencies)
    if not http:
        failures += _refused(said, len(rows))
    return summary(latencies, seconds, failures)


def _refused(said: str, requests: int) -> int:
    """gRPC refuses with HTTP's 200 and no data, which h2load counts as success: so the data are counted instead.

    Every answer of a pass is as long as any other, give or take a few digits: the mean, less a fifth, is a full one.
    """
    data = re.search(r"\((\d+)\) data", said)
    if data is None or not requests:
        return requests
    return requests if int(data[1]) / requests < 20 else 0


# --- open loop ------------------------------------------------------------------------------------------------------
def schedule(rate: float, seconds: float, seed: int = 1) -> list[float]:
    """Moments of arrival by chance (Poisson), seconds from the start."""
    chance, moment, moments = random.Random(seed), 0.0, []
    while (moment := moment + chance.expovariate(rate)) < seconds:
        moments.append(moment)
    return moments


def opened(address: str, message: bytes, rate: float, seconds: float) -> Pass:
    """Requests at ``rate`` a second whether or not earlier ones are answered; latencies from when each was due.

    Over one connection, since arrivals by chance on several are h2load's only as copies of one another.
    """
    if not has_h2load():
        return own_client("open", address, message, rate, seconds)
    moments = schedule(rate, seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = folder / "script"
        script.write_text("".join(f"{1e3 * moment:.3f}\thttp://{address}{INFER}\n" for moment in moments))
        command = [*_command(folder, message), "-c", "1", "-m", "1000", "-n", str(len(moments))]
        said = _run([*command, f"--timing-script-file={script}"], seconds)
        rows = sorted(_log(folder / "log"))
    return _counted(_from_due(rows, moments), said, seconds, http=False)


def _from_due(rows: list[tuple[int, int, int]], moments: Sequence[float]) -> list[tuple[int, int, int]]:
    """Times taken counted from when each was due: the k-th that was sent is the k-th that was due.

    The clock of the schedule is the one at which no request was sent before it was due.
    """
    if len(rows) != len(moments):
        return rows
    origin = min(row[0] - round(1e6 * due) for row, due in zip(rows, moments, strict=True))
    return [
        (start, status, taken + start - origin - round(1e6 * due))
        for (start, status, taken), due in zip(rows, moments, strict=True)
    ]
