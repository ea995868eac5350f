"""A load as a process of its own, quick for Python: ``soaking.py ADDRESS PICTURES COUNT CLIENTS TIMEOUT OUT``.

PICTURES is a .npz of ``images`` UINT8 [n, 28, 28] and ``order``. Closed loop, CLIENTS at once on 4 connections, until
COUNT requests have an outcome; prints a line for every thousand. OUT gets every request as a ledger's Entry, msgpack.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import client_options
from edgemux.wire.codec import CHECKSUM, get_parameters, make_request
from edgemux.wire.service import SERVICE
from tests.system.faults.ledgers import ANSWERED, BUSY_S, GRACE_S, Entry

CONNECTIONS = 4
TOLD_EVERY = 1000


def requests(images: Any, timeout_s: float) -> list[bytes]:
    """A request for each picture, but for its id, which is added as bytes: the last of a field counts."""
    made = []
    for image in images:
        request = make_request("fashion-mnist", {"image": image[None]}, parameters={"timeout": round(timeout_s * 1e6)})
        del request.parameters[CHECKSUM]  # it covers the id
        request.outputs.add(name="label")
        made.append(request.SerializeToString())
    return made


def named(request: bytes, name: str) -> bytes:
    """The request with an id."""
    text = name.encode()
    return request + b"\x1a" + bytes([len(text)]) + text


async def soak(address: str, pictures: Path, count: int, clients: int, timeout_s: float) -> list[Entry]:
    """Every request; ``lost`` ones have no outcome."""
    with np.load(pictures) as arrays:
        images, order = arrays["images"], arrays["order"].tolist()
    made = requests(images, timeout_s)
    prefix = secrets.token_hex(4)
    numbers = iter(range(count))
    entries: list[Entry] = []
    answers: list[tuple[Entry, bytes]] = []
    done = itertools.count(1)
    channels = [grpc.aio.insecure_channel(address, options=client_options()) for _ in range(CONNECTIONS)]

    async def ask(infer: Any) -> None:
        for number in numbers:
            picture = order[number % len(order)]
            entry = Entry(f"{prefix}-{number}", picture, timeout_s, time.monotonic())
            entries.append(entry)
            try:
                response = await infer(named(made[picture], entry.id), timeout=timeout_s + GRACE_S + 2 * BUSY_S)
                entry.elapsed_s = time.monotonic() - entry.sent_s
                answers.append((entry, response))
                entry.outcome = ANSWERED
            except grpc.aio.AioRpcError as error:
                entry.elapsed_s = time.monotonic() - entry.sent_s
                entry.outcome = error.code().name
            if (so_far := next(done)) % TOLD_EVERY == 0:
                print(so_far, flush=True)

    asks = [channel.unary_unary(f"/{SERVICE}/ModelInfer") for channel in channels]
    await asyncio.gather(*(ask(asks[number % CONNECTIONS]) for number in range(clients)))
    for channel in channels:
        await channel.close()
    for entry, answer in answers:
        read(entry, answer)
    return entries


def read(entry: Entry, answer: bytes | None) -> None:
    """Put what an answer says into its entry."""
    response = oip.ModelInferResponse.FromString(answer or b"")
    if response.id != entry.id:
        entry.outcome = "answer to another request"
        return
    said = get_parameters(response)
    entry.label = int(np.frombuffer(response.raw_output_contents[0], np.int64)[0])
    entry.route, entry.variant = str(said.get("edgemux_route")), str(said.get("edgemux_variant"))
    entry.reason, entry.degraded = str(said.get("edgemux_reason")), bool(said.get("edgemux_degraded"))


def main(address: str, pictures: str, count: str, clients: str, timeout_s: str, out: str) -> None:
    """The command line."""
    entries = asyncio.run(soak(address, Path(pictures), int(count), int(clients), float(timeout_s)))
    Path(out).write_bytes(msgspec.msgpack.encode(entries))


if __name__ == "__main__":
    main(*sys.argv[1:])
