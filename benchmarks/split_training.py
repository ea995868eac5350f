"""Makes the two bottlenecks of the starter bundle and measures them: bytes on the way against accuracy."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from edgemux.compression import data
from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split.bottleneck import Decoder, Encoder, Pair
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.graph_net import GraphNet
from edgemux.compression.split.teach import Teacher, Weights, teach
from edgemux.multiplexer.gates import Gates, gain_after
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.onnx_model import OnnxModel

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
CUT = 10
CHANNELS = 12
LEVEL = 3
SEED = 20261123
AUGMENT = Augment(flip=True, shift_px=1, erase=0.0)


def main() -> int:
    stage = sys.argv[1]
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    files = Bundle.open(BUNDLE)
    whole = Whole((BUNDLE / "cloud.onnx").read_bytes(), "cloud.onnx")
    halves = whole.halves(whole.at(CUT))
    teacher = Teacher(*(OnnxModel(h.SerializeToString(), "half") for h in (halves.head, halves.tail)))
    sets = data.load("fashion-mnist", 5000, SEED)
    levels = [OnnxModel(files.read(f"level{k}.onnx"), f"level{k}") for k in (1, 2, 3)]

    def activations(pixels):
        pool = {"image": pixels}
        for level in levels:
            names = [n for n in level.outputs if n != "probabilities"]
            pool.update(zip(names, level.run({n: pool[n] for n in level.inputs}, names)))
        return {n: pool[n] for n in ("a3", "b3", "c3")}

    def image(pixels):
        return {"image": pixels[:, None].astype(np.float32) / 255.0}

    shapes = {"a3": (20, 14, 14), "b3": (32, 14, 14), "c3": (56, 7, 7)}
    images, labels = torch.from_numpy(sets.train.images), torch.from_numpy(sets.train.labels)
    began = time.time()
    seen = [0.0]

    def tick(done):
        if done - seen[0] > 0.02 or done == 1.0:
            seen[0] = done
            print(f"{stage} {done:.3f} {time.time() - began:.0f} s", flush=True)

    pair = Pair(Encoder(shapes, CHANNELS, (7, 7)), Decoder(CHANNELS, 96), GraphNet(halves.tail))
    first = out / "a1.pt"
    epochs = int(sys.argv[3])
    if stage == "a1":
        pair.tail.requires_grad_(False)
        teach(
            pair,
            images,
            None,
            teacher,
            activations,
            Weights(target=1.0),
            Schedule(epochs=epochs, batch=128, peak_rate=0.1, weight_decay=1e-4, bf16=False),
            AUGMENT,
            SEED,
            out / "a1.check",
            tick,
        )
        torch.save(pair.state_dict(), first)
    if stage == "a2":
        pair.load_state_dict(torch.load(first, weights_only=True))
        pick = torch.from_numpy(np.load(out / "hard.npy"))
        teach(
            pair,
            images[pick],
            labels[pick],
            teacher,
            activations,
            Weights(0.2, 1.0, 0.2),
            Schedule(epochs=epochs, batch=128, peak_rate=0.01, weight_decay=1e-4, bf16=False),
            AUGMENT,
            SEED,
            out / "a2.check",
            tick,
        )
        torch.save(pair.state_dict(), out / "a2.pt")
    if stage == "b1":
        pair.load_state_dict(torch.load(out / "a2.pt", weights_only=True))
        pair = Pair(Encoder({"image": (1, 28, 28)}, CHANNELS, (7, 7)), pair.decoder, pair.tail)
        pair.tail.requires_grad_(False)
        pair.decoder.requires_grad_(False)
        teach(
            pair,
            images,
            None,
            teacher,
            image,
            Weights(target=1.0),
            Schedule(epochs=epochs, batch=128, peak_rate=0.1, weight_decay=1e-4, bf16=False),
            AUGMENT,
            SEED,
            out / "b1.check",
            tick,
        )
        torch.save(pair.state_dict(), out / "b1.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
