"""Fuzzing as a process of its own, so that its memory says something. Prints one JSON object.

``fuzz.py wire BUNDLE SEED COUNT [LEAK_BYTES]``: through everything that a server does before inference.
``fuzz.py endpoint BUNDLE SEED COUNT ADDRESS``: through a running agent.
``fuzz.py tail BUNDLE SEED COUNT ADDRESS``: through a running cloud, as what the head of the bundle's first split sends.
"""

from __future__ import annotations

import asyncio
import collections
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
from mutations import Mutator

from edgemux.multiplexer.bundle import Bundle, Manifest, Tensor, splits_of, tail_model
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import client_options
from edgemux.wire.codec import DTYPES, requested_outputs
from edgemux.wire.model_service import ModelService, Served, timeout_s
from edgemux.wire.service import SERVICE, register

INFER = f"/{SERVICE}/ModelInfer"
MAX_BATCH = 256
# Codes by which a server says that a request is wrong, or that a picture took too long.
TYPED = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
WARM_UP = 20_000
HANG_S = 1.0


def resident_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def variants(manifest: Manifest) -> list[Manifest]:
    """The bundle's own model, which takes pictures, one of tensors that hold what the first does not, and two tails:
    of so few values that they are inflated at once, and of so many that they are not.
    """
    tensors = (Tensor("x", "FP32", (-1, 3, -1)), Tensor("ids", "INT64", (-1, 2)), Tensor("half", "FP16", (-1, 4)))
    tails = [tail_of(manifest, manifest.name, Tensor("sent", "UINT8", shape)) for shape in ((-1, 3, 5), (-1, 64, 800))]
    return [manifest, msgspec.structs.replace(manifest, inputs=tensors, preprocessing=None), *tails]


def tail_of(manifest: Manifest, name: str, sent: Tensor) -> Manifest:
    """What is known of a tail, as of a model."""
    return msgspec.structs.replace(manifest, name=name, inputs=(sent,), preprocessing=None)


class Validating(ModelService):
    """Reads requests as the servers do, and checks that what passes is what the model takes."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__("fuzzed", [Served.of(manifest, "none", MAX_BATCH)], MAX_BATCH)
        self._manifest = manifest

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.check_model(request.model_name, request.model_version)
        timeout_s(request)
        requested_outputs(request, self._manifest.outputs)
        arrays = await self.tensors(request, self._loop.time() + 10.0)
        rows = {len(array) for array in arrays.values()}
        assert set(arrays) == {tensor.name for tensor in self._manifest.inputs}
        assert len(rows) == 1
        assert 1 <= rows.pop() <= MAX_BATCH
        for tensor in self._manifest.inputs:
            array = arrays[tensor.name]
            assert array.dtype == DTYPES[tensor.datatype]
            assert all(want in (-1, size) for want, size in zip(tensor.shape, array.shape, strict=True))
            assert all(array.shape)
            assert array.dtype.kind != "f" or np.isfinite(array).all()
        return oip.ModelInferResponse()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Refused(Exception):
    """What ``context.abort`` raises."""


class Context:
    """A call's context that remembers how it was answered."""

    code, details = "OK", ""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code.name, details
        raise Refused

    def set_trailing_metadata(self, _: Any) -> None:
        return

    def time_remaining(self) -> float:
        return math.inf


class Registry:
    """Takes the handlers that a server would."""

    handler: Any = None

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.handler = handlers[0]

    def infer(self) -> Any:
        """The function that a server calls with the bytes of a ModelInfer."""
        return self.handler.service(msgspec.convert({"method": INFER, "invocation_metadata": ()}, Details)).unary_unary


class Details(msgspec.Struct):
    """What a handler is looked up by."""

    method: str
    invocation_metadata: tuple[str, ...]


async def through_the_wire(bundle: Path, seed: int, count: int, leak_bytes: int) -> dict[str, Any]:
    """Bytes in, a status or tensors out; the worst time is CPU time, which a busy machine does not stretch."""
    pairs, services = [], []
    for manifest in variants(Bundle.open(bundle).manifest):
        registry, service = Registry(), Validating(manifest)
        register(registry, service)  # type: ignore[arg-type]
        services.append(service)
        pairs.append((Mutator(manifest, seed), registry.infer()))
    codes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    kept: list[bytes] = []
    slowest_s = 0.0
    before = 0
    began = time.monotonic()
    for number in range(count):
        if number == min(WARM_UP, count // 4):
            before = resident_bytes()
        mutator, infer = pairs[number % len(pairs)]
        content = mutator.next()
        context = Context()
        started = time.process_time()
        try:
            await infer(content, context)
        except Refused:
            pass
        except Exception as error:
            wrong.append(f"{type(error).__name__} {content[:200].hex()}")
        slowest_s = max(slowest_s, time.process_time() - started)
        codes[context.code] += 1
        if context.code not in TYPED or "\n" in context.details or len(context.details) > 500:
            wrong.append(f"{context.code} {context.details[:200]!r} {content[:200].hex()}")
        if leak_bytes:
            kept.append(content[:1] * leak_bytes)
    grown = resident_bytes() - before
    for service in services:
        service.close()
    return {
        "requests": count,
        "seconds": time.monotonic() - began,
        "codes": dict(codes),
        "slowest_s": slowest_s,
        "grown_bytes": grown,
        "wrong": wrong[:20],
    }


async def through_the_endpoint(manifest: Manifest, seed: int, count: int, address: str) -> dict[str, Any]:
    """Bytes to a running server. Those that take long are asked again, alone: only what does it again is a hang."""
    mutator = Mutator(manifest, seed)
    codes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    slow: list[bytes] = []
    contents = iter(mutator.next() for _ in range(count))
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        infer = channel.unary_unary(INFER)

        async def ask(content: bytes, compression: Any = None) -> float:
            started = time.monotonic()
            try:
                await infer(content, timeout=10.0, compression=compression)
                code, details = "OK", ""
            except grpc.aio.AioRpcError as error:
                code, details = error.code().name, error.details() or ""
            codes[code] += 1
            if code not in TYPED or "\n" in details or len(details) > 500:
                wrong.append(f"{code} {details[:200]!r} {content[:200].hex()}")
            return time.monotonic() - started

        async def ask_some() -> None:
            for number, content in enumerate(contents):
                compression = grpc.Compression.Gzip if number % 10 == 0 else None
                if await ask(content, compression) > HANG_S:
                    slow.append(content)

        began = time.monotonic()
        await asyncio.gather(*(ask_some() for _ in range(16)))
        seconds = time.monotonic() - began
        hung = []
        for content in slow:
            again = [await ask(content) for _ in range(3)]
            if min(again) > HANG_S:
                hung.append(content[:200].hex())
    return {"requests": count, "seconds": seconds, "codes": dict(codes), "hung": hung, "wrong": wrong[:20]}


def main(how: str, bundle: str, seed: str, count: str, last: str = "0") -> None:
    """The command line."""
    if how == "wire":
        print(json.dumps(asyncio.run(through_the_wire(Path(bundle), int(seed), int(count), int(last)))))
        return
    manifest = Bundle.open(Path(bundle)).manifest
    if how == "tail":
        split = splits_of(manifest)[0]
        manifest = tail_of(manifest, tail_model(manifest.name, split.name), split.sent)
    print(json.dumps(asyncio.run(through_the_endpoint(manifest, int(seed), int(count), last))))


if __name__ == "__main__":
    main(*sys.argv[1:])
