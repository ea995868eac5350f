"""The torch backend on a CUDA device: a ResNet-18 for 224 x 224 pictures (UINT8), by batch and number format.

    python benchmarks/gpu.py [--json FILE] [--device cuda|cpu] [--quick]

Columns: a whole ``run`` of the backend (pinned buffers, own stream, recorded runs), the same kernel by kernel
(``eager``), with ``torch.compile`` (``compiled``), kernel by kernel without buffers and stream (``plain``), the model
alone on the device by CUDA events (``compute``), two backends side by side in two threads (``paired``, pictures a
second), and the engine with 64 requests of one picture under way. The archive is made on the spot, with untrained
weights. ``off`` is the largest difference to fp32 on the CPU, as a share of the largest logit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.backend import measure
from edgemux.cloud.batcher import BatchingSettings
from edgemux.cloud.engine import Engine
from edgemux.cloud.statistics import Tally
from edgemux.cloud.torch_backend import TorchBackend

SIZE = 224
BATCHES = (1, 8, 32, 128)
UNDER_WAY = 64


class Block(nn.Module):
    """Two convolutions and a way around them (He et al. 2015)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = stride == 1 and before == after
        around = [nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)]
        self.around = nn.Identity() if same else nn.Sequential(*around)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.around(x)).relu()


class ResNet18(nn.Module):
    """Pictures UINT8 [N, 3, 224, 224] to logits FP32 [N, 1000]; 11.7 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        before = 64
        for after, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            layers.append(Block(before, after, stride))
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(512, 1000)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(image.to(torch.float32) / 255.0 - 0.5)
        return {"logits": self.head(x.mean((2, 3)))}


def export(path: Path) -> nn.Module:
    torch.manual_seed(0)
    module = ResNet18().eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    picture = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    torch.export.save(torch.export.export(module, (picture,), dynamic_shapes=({0: batch},)), path)
    return module


def median_ms(run: Callable[[], Any], repeats: int) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def plain(module: Any, device: torch.device, dtype: torch.dtype | None) -> Callable[[np.ndarray], np.ndarray]:
    """The same module with pageable memory, on the default stream."""

    def run(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            return module(torch.from_numpy(pictures).to(device))["logits"].float().cpu().numpy()

    return run


def compute_ms(backend: TorchBackend, pictures: np.ndarray, dtype: torch.dtype | None, repeats: int) -> float:
    """The model alone, by the device's own clock."""
    there = torch.from_numpy(pictures).to(backend.device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        for _ in range(repeats + 3):
            begin.record()
            backend._call([there])
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def paired_per_s(backends: list[TorchBackend], pictures: np.ndarray, seconds: float) -> float:
    """Pictures a second of several backends, each in a thread of its own."""
    started_s = time.perf_counter()
    over_s = started_s + seconds
    counts = [0] * len(backends)

    def work(index: int) -> None:
        while time.perf_counter() < over_s:
            backends[index].run({"image": pictures}, ["logits"])
            counts[index] += len(pictures)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(backends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started_s)


async def engine_per_s(backend: TorchBackend, seconds: float) -> tuple[float, float, float]:
    """Requests of one picture a second, median ms and rows a batch, with UNDER_WAY of them at any time."""
    row = np.random.default_rng(0).integers(0, 256, (1, 3, SIZE, SIZE), np.uint8)
    timing = measure(backend, {"image": row}, UNDER_WAY)
    tally = Tally()
    engine = Engine(backend, timing, BatchingSettings(max_batch=UNDER_WAY), AdmissionSettings(), tally)
    loop = asyncio.get_running_loop()
    began_s, times = loop.time(), list[float]()
    over_s = began_s + seconds

    async def ask() -> None:
        while loop.time() < over_s:
            started = loop.time()
            await engine.infer({"image": row}, ["logits"], started + 30.0)
            times.append(loop.time() - started)

    await asyncio.gather(*(ask() for _ in range(UNDER_WAY)))
    elapsed_s = loop.time() - began_s
    await engine.close()
    return len(times) / elapsed_s, statistics.median(times) * 1e3, tally.rows / tally.batches


def measured(
    backends: dict[str, TorchBackend], pair: list[TorchBackend], there: nn.Module, exact: TorchBackend, batch: int,
    dtype: str, quick: bool,
) -> dict[str, Any]:  # fmt: skip
    """One row of the table."""
    pictures = np.random.default_rng(batch).integers(0, 256, (batch, 3, SIZE, SIZE), np.uint8)
    given, repeats = {"image": pictures}, 3 if quick else 30
    device, reduced = pair[0].device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    cuda = device.type == "cuda"
    right = exact.run(given, ["logits"])["logits"]
    answer = backends["run"].run(given, ["logits"])["logits"]
    row: dict[str, Any] = {"format": dtype, "batch": batch}
    for name, backend in backends.items():
        row[f"{name}_ms"] = median_ms(lambda b=backend: b.run(given, ["logits"]), repeats)
    row["plain_ms"] = median_ms(lambda: plain(there, device, reduced)(pictures), repeats)
    row["compute_ms"] = compute_ms(pair[0], pictures, reduced, repeats) if cuda else float("nan")
    row["per_s"] = batch / row["run_ms"] * 1e3
    row["paired_per_s"] = paired_per_s(pair, pictures, 0.2 if quick else 1.0)
    row["off"] = float(np.abs(answer - right).max() / np.abs(right).max())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{options.threads} threads, {platform.machine()}"
    print(f"{name}, torch {torch.__version__}, ResNet-18, UINT8 3 x {SIZE} x {SIZE}\n")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.pt2"
        there = export(path).to(options.device)
        exact = TorchBackend(path, "cpu", threads=options.threads)
        for dtype in ("fp32", "bf16", "fp16") if cuda else ("fp32",):
            pair = [TorchBackend(path, options.device, dtype, threads=options.threads) for _ in range(2)]
            backends = {"run": pair[0]}
            if cuda:
                backends["eager"] = TorchBackend(path, "cuda", dtype, graphs=False)
                backends["compiled"] = TorchBackend(path, "cuda", dtype, compiled=True)
            for batch in BATCHES if cuda else BATCHES[:3]:
                row = measured(backends, pair, there, exact, batch, dtype, options.quick)
                if not rows:
                    print("| " + " | ".join(row) + " |")
                    print("|---" * len(row) + "|")
                rows.append(row)
                print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
            for kind, backend in backends.items():
                per_s, p50, size = asyncio.run(engine_per_s(backend, 0.5 if options.quick else 3.0))
                rows.append({"format": dtype, "engine": kind, "per_s": per_s, "p50_ms": p50, "rows": size})
                print(f"{dtype} engine, {kind}: {per_s:.0f} requests/s, {p50:.2f} ms, batches of {size:.1f}")
            for backend in {*pair, *backends.values()}:
                backend.close()
            if options.json:
                options.json.write_text(
                    json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1)
                )


if __name__ == "__main__":
    main()
