"""Row 17: pairs of convolutions in a residual net's stages use one tensor."""

from __future__ import annotations

import time

from edgemux.compression import gauge
from edgemux.compression.passes import Setting, Subject
from edgemux.compression.share.layers import Share, automatic, stored_weights
from edgemux.compression.to_onnx import exported
from techniques import reference
from techniques.row import Figure, Row

EPOCHS = 4.0


def rows(quick: bool) -> list[Row]:
    """Every second convolution of both stages uses the tensor of the one before it."""
    start = time.monotonic()
    samples = reference.fashion() if not quick else reference.fashion(600, 500)
    schedule = reference.SCHEDULE if not quick else reference.Schedule(epochs=1, batch=64, peak_rate=0.1, bf16=False)
    net = reference.trained("resnet", reference.ResNet, samples, schedule)
    setting = Setting(samples, net, effort=0.25 if quick else 1.0)
    what, before = Share(epochs=EPOCHS), Subject(net)
    after = what.apply(before, setting)
    what.ensures(before, after, setting)
    assert after.net is not None
    graphs = [exported(net, samples.test_x), exported(after.net, samples.test_x)]
    models = [gauge.loaded(graph) for graph in graphs]
    times = gauge.times_ms(models, samples.test_x[:1].numpy(), 20 if quick else 100)
    x, y = samples.test_x.numpy(), samples.test_y.numpy()
    plain, shared = (
        Figure(float((gauge.answers(model, x).argmax(1) == y).mean()), graph.ByteSize(), ms)
        for model, graph, ms in zip(models, graphs, times, strict=True)
    )
    groups = automatic(net, samples.train_x[:1], what.uses)
    stages = sum(net.get_submodule(name).weight.numel() for group in groups for name in group)
    saved = (stored_weights(graphs[0]) - stored_weights(graphs[1])) / stages
    drop = 100 * (plain.accuracy - shared.accuracy)
    return [
        Row(
            17, "layers share weights", plain, shared,
            "one initializer a pair, 50 % of the stages' weights saved, drop at most 1.5 points",
            f"{100 * saved:.0f} % of the stages' weights saved in ONNX, drop {drop:+.2f} points",
            saved == 0.5 and drop <= 1.5,
            f"ResNet(24, 3), {len(groups)} pairs, {EPOCHS:.0f} epochs on {len(samples.train_x)} images; storage only",
            time.monotonic() - start,
        )
    ]  # fmt: skip
