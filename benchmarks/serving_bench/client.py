"""A loading client of our own, as a process: where h2load cannot be had, and for streams, which it does not speak.

client.py MODE ADDRESS BODY CONCURRENCY SECONDS: MODE is unary, stream or post; BODY a file with the message, or with the
whole HTTP/1.1 request. One connection and one request in flight for each of CONCURRENCY; half a second of warm-up.
Prints JSON: latencies in seconds, and how many were not answered well. open: ADDRESS BODY RATE SECONDS, arrivals by
chance at RATE a second, latencies from when each was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

WARM_UP_S = 0.5
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]

Ask = Callable[[], Awaitable[bool]]


async def unary(address: str, body: bytes) -> Ask:
    """One gRPC call a request."""
    call = grpc.aio.insecure_channel(address, _OWN_CONNECTION).unary_unary(INFER)

    async def ask() -> bool:
        return len(await call(body)) > 0

    return ask


async def stream(address: str, body: bytes) -> Ask:
    """All requests over one stream, the next after the answer."""
    call = grpc.aio.insecure_channel(address, _OWN_CONNECTION).stream_stream(STREAM)()

    async def ask() -> bool:
        await call.write(body)
        answer = await call.read()
        return answer[:1] == b"\x12"  # field 2, the response; 1 is an error's text

    return ask


async def post(address: str, body: bytes) -> Ask:
    """HTTP/1.1 over one connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def ask() -> bool:
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        return head[9:12] == b"200"

    return ask


async def closed_loop(ask: Ask, until_s: float, from_s: float, latencies: list[float]) -> int:
    """Ask again and again; the number of failures."""
    failures = 0
    while (began_s := time.perf_counter()) < until_s:
        try:
            good = await ask()
        except grpc.RpcError:
            good = False
        failures += not good
        if began_s >= from_s and good:
            latencies.append(time.perf_counter() - began_s)
    return failures


async def open_loop(address: str, body: bytes, rate: float, seconds: float) -> tuple[list[float], int]:
    """Latencies from the moments at which requests were due, whenever they could be sent."""
    ask = await unary(address, body)
    latencies: list[float] = []
    failures = 0

    async def one(due_s: float) -> None:
        nonlocal failures
        try:
            failures += not await ask()
            latencies.append(time.perf_counter() - due_s)
        except grpc.RpcError:
            failures += 1

    due_s, end_s = time.perf_counter() + 0.1, time.perf_counter() + 0.1 + seconds
    chance, tasks = random.Random(1), []
    while (due_s := due_s + chance.expovariate(rate)) < end_s:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(due_s)))
    await asyncio.gather(*tasks)
    return latencies, failures


async def main(mode: str, address: str, path: str, amount: float, seconds: float) -> dict[str, Any]:
    """What is printed."""
    body = Path(path).read_bytes()
    if mode == "open":
        latencies, failures = await open_loop(address, body, amount, seconds)
        return {"latencies_s": latencies, "failures": failures}
    makers = {"unary": unary, "stream": stream, "post": post}
    asks = [await makers[mode](address, body) for _ in range(int(amount))]
    from_s = time.perf_counter() + WARM_UP_S
    until_s = from_s + seconds
    latencies = []
    failures = sum(await asyncio.gather(*(closed_loop(ask, until_s, from_s, latencies) for ask in asks)))
    return {"latencies_s": latencies, "failures": failures}


if __name__ == "__main__":
    kind, where, what, how_many, how_long = sys.argv[1:]
    coroutine = main(kind, where, what, float(how_many), float(how_long))
    try:
        import uvloop
    except ImportError:
        print(json.dumps(asyncio.run(coroutine)))
    else:
        print(json.dumps(uvloop.run(coroutine)))
