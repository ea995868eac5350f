"""What the machine can do without any server: ONNX Runtime in one process, one thread, the same file.

    python -m serving_bench.limit ONNX SECONDS BATCH...

Prints JSON: for each batch size the rows a second and the median time of a run in ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from serving_bench.running import HERE

BATCHES = (1, 2, 4, 8, 16, 32)


def measure(path: str, seconds: float, batches: list[int]) -> dict[int, tuple[float, float]]:
    """(rows a second, median ms of a run) by batch size, ``seconds`` each."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    kind = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[tensor.type]
    found = {}
    for batch in batches:
        rows = np.ones((batch, *tensor.shape[1:]), kind)
        session.run(None, {tensor.name: rows})
        taken: list[float] = []
        begin_s = last_s = time.perf_counter()
        while last_s - begin_s < seconds:
            session.run(None, {tensor.name: rows})
            now_s = time.perf_counter()
            taken.append(now_s - last_s)
            last_s = now_s
        found[batch] = (batch * len(taken) / (last_s - begin_s), 1e3 * sorted(taken)[len(taken) // 2])
    return found


def in_process(onnx: Path, seconds: float, *batches: int) -> dict[int, tuple[float, float]]:
    """``measure`` in a process of its own, ``seconds`` a batch size."""
    command = [sys.executable, "-m", "serving_bench.limit", str(onnx), str(seconds), *map(str, batches or BATCHES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=HERE.parent, check=True)
    return {int(batch): (rate, ms) for batch, (rate, ms) in json.loads(done.stdout).items()}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]), [int(each) for each in sys.argv[3:]])))
