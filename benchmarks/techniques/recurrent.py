"""Row 36: hidden-unit pruning and dynamic int8 of recurrent nets, which read an image as a sequence of its rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import onnx
from torch import Tensor, nn

from edgemux.compression import gauge
from edgemux.compression.passes import Setting, Subject
from edgemux.compression.prune.units import Units
from edgemux.compression.quantize.dynamic import Int8Dynamic
from edgemux.compression.recipe import Schedule
from edgemux.compression.retrain import Finetune
from edgemux.compression.to_onnx import shipped
from techniques import reference
from techniques.row import Figure, Row

SIDE = 28
UNITS = 256
# Figures that were measured elsewhere as "about" so much count as reached within a tenth.
ABOUT = 0.9
EPOCHS, RATE = 3.0, 0.1


class RowsNet(nn.Module):
    """An LSTM or GRU over the 28 rows of an image, 28 features each, and a linear layer on its last answer."""

    def __init__(self, kind: type[nn.Module], units: int = UNITS) -> None:
        super().__init__()
        self.rnn = kind(SIDE, units, batch_first=True)
        self.head = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        """float [n, 1, 28, 28] -> logits [n, 10]."""
        return self.head(self.rnn(x[:, 0])[0][:, -1])


@dataclass(frozen=True)
class _Forms:
    """Figures of a recurrent net and of what was made of it."""

    plain: Figure
    half: Figure
    int8: Figure
    both: Figure


def rows(quick: bool) -> list[Row]:
    """LSTM: half of the units, int8, size. GRU: what the dynamic quantiser gives, what pruning gives."""
    train, test, epochs = (500, 500, 1) if quick else (5000, 5000, 5)
    samples = reference.fashion(train, test)
    found = {}
    for kind in (nn.LSTM, nn.GRU):
        start = time.monotonic()
        name = kind.__name__.lower()
        schedule = Schedule(epochs=epochs, batch=64, peak_rate=0.2, bf16=False)
        net = reference.trained(f"rows-{name}", lambda kind=kind: RowsNet(kind), samples, schedule)
        setting = Setting(samples, net, effort=0.3 if quick else 1.0)
        found[name] = _measured(net, setting, 20 if quick else 200), time.monotonic() - start
    (lstm, lstm_s), (gru, gru_s) = found["lstm"], found["gru"]
    where = f"Fashion-MNIST rows as 28 steps, {train} images; short training, so the nets are not at their best"
    return [
        _pruned("hidden units, LSTM", lstm, 4.0, where, lstm_s),
        _quantised(lstm, where),
        _pruned("hidden units, GRU", gru, 4.0, where, gru_s),
        Row(
            36, "dynamic int8, GRU", gru.plain, gru.int8,
            "ONNX Runtime's dynamic quantiser gives a GRU nothing (under 1.15×), pruning does",
            f"{_faster(gru.plain, gru.int8):.2f}× faster, {gru.plain.bytes / gru.int8.bytes:.2f}× smaller; "
            f"pruned {_faster(gru.plain, gru.half):.2f}×",
            _faster(gru.plain, gru.int8) < 1.15 < _faster(gru.plain, gru.half),
            "only the head is quantised; the verdict rejects gains within its noise of 5 %",
        ),
    ]  # fmt: skip


def _pruned(name: str, forms: _Forms, least: float, where: str, seconds: float) -> Row:
    speed, drop = _faster(forms.plain, forms.half), 100 * (forms.plain.accuracy - forms.half.accuracy)
    return Row(
        36, name, forms.plain, forms.half, f"half of {UNITS} units: about {least}× faster (to 10 %); drop <= 0.5",
        f"{speed:.2f}× faster, {forms.plain.bytes / forms.half.bytes:.2f}× smaller, drop {drop:+.2f} points",
        speed >= ABOUT * least and drop <= 0.5, f"both nets trained on for {EPOCHS:.0f} epochs; {where}", seconds,
    )  # fmt: skip


def _quantised(forms: _Forms, where: str) -> Row:
    speed, size = _faster(forms.plain, forms.int8), forms.plain.bytes / forms.int8.bytes
    drop = 100 * (forms.plain.accuracy - forms.int8.accuracy)
    return Row(
        36, "dynamic int8, LSTM", forms.plain, forms.int8, "about 3.4× faster, 3.9× smaller (to 10 %); drop <= 0.5",
        f"{speed:.2f}× faster, {size:.2f}× smaller, drop {drop:+.2f} points; after pruning "
        f"{_faster(forms.plain, forms.both):.2f}× and {forms.plain.bytes / forms.both.bytes:.1f}×",
        speed >= ABOUT * 3.4 and size >= ABOUT * 3.9 and drop <= 0.5, where,
    )  # fmt: skip


def _faster(before: Figure, after: Figure) -> float:
    assert before.ms is not None and after.ms is not None
    return before.ms / after.ms


def _measured(net: nn.Module, setting: Setting, repeats: int) -> _Forms:
    # The whole net is trained on as long as the pruned one: else the drop would hide what more training gives.
    plain = Finetune(EPOCHS, RATE).apply(Subject(net), setting)
    half = Units(epochs=EPOCHS, rate=RATE).apply(Subject(net), setting)
    graphs = [shipped(subject, setting.samples) for subject in (plain, half)]
    graphs += [_int8(subject, setting) for subject in (plain, half)]
    models = [gauge.loaded(graph) for graph in graphs]
    x, y = setting.samples.test_x.numpy(), setting.samples.test_y.numpy()
    times = gauge.times_ms(models, x[:1], repeats)
    figures = [
        Figure(float((gauge.answers(model, x).argmax(1) == y).mean()), graph.ByteSize(), ms)
        for model, graph, ms in zip(models, graphs, times, strict=True)
    ]
    return _Forms(*figures)


def _int8(subject: Subject, setting: Setting) -> onnx.ModelProto:
    graph: Any = Int8Dynamic().apply(subject, setting).graph
    return graph
