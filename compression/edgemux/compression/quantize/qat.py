"""``qat(epochs)``: training with rounded weights and activations, so that ``int8`` after it costs less accuracy.

Jacob et al. 2018, section 3: batch norms folded while training, activations rounded with ranges that follow a moving
average. torchao's pt2e does it on a captured copy; the weights come back into the net, and the integer graph is made by
``int8`` as for any other net: what torchao itself exports ran no faster than float32 in ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from edgemux.compression.distill.lesson import Lesson, distilling
from edgemux.compression.distill.logits import SHARE, TEMPERATURE
from edgemux.compression.passes import Pass, Setting, Subject, net_of
from edgemux.compression.quantize.targets import arithmetic_of
from edgemux.compression.retrain import Epochs, Rate, label_loss, retrain
from edgemux.multiplexer.errors import PassError

TRACED_BATCH = 8


class Qat(Pass, frozen=True):
    """``qat(epochs, rate)``: train on with int8 rounding; the file stays float32 until ``int8``.

    It learns from the labels and from the original's outputs: the aim is to answer as before the rounding.
    """

    label: ClassVar[str] = "qat"

    epochs: Epochs = 2.0
    rate: Rate = 0.01

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with convolutions or linear layers."""
        net = net_of(subject, self.label)
        if not any(isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)) for part in net.modules()):
            raise PassError("qat: the net has no convolution and no linear layer")

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a captured copy and take its weights and batch statistics."""
        net = copy.deepcopy(net_of(subject, self.label)).requires_grad_(True)
        samples = setting.samples
        prepared = _prepared(net, samples.train_x[:TRACED_BATCH], setting.target)
        epochs = setting.epochs(self.epochs)
        loss = label_loss(samples)
        if setting.original is not None:
            loss = distilling(setting.original, samples, Lesson(TEMPERATURE, SHARE, epochs, self.rate))
        with _quiet():
            retrain(prepared, samples, loss, epochs, self.rate, setting.seed)
        trained = prepared.state_dict()
        net.load_state_dict({name: trained[name] for name in net.state_dict()})
        return subject.with_net(net.eval())


def _prepared(net: nn.Module, x: torch.Tensor, target: str) -> nn.Module:
    """The net as a graph that rounds as ``int8`` will. Raises PassError when it cannot be captured."""
    with _quiet():
        # Imported here: it takes seconds, and looks for GPU kernels.
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        try:
            shapes = ({0: torch.export.Dim("n", min=2)},)
            captured: Any = torch.export.export(net.train(), (x,), dynamic_shapes=shapes).module()
            quantizer = x86.X86InductorQuantizer()
            reduce_range = arithmetic_of(target).reduce_range
            quantizer.set_global(
                x86.get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=reduce_range)
            )
            prepared = prepare_qat_pt2e(captured, quantizer)
        except Exception as error:  # capture and annotation raise whatever they meet
            raise PassError(f"qat: the net cannot be captured ({type(error).__name__})") from error
        missing = set(net.state_dict()) - set(prepared.state_dict())
        if missing:
            raise PassError(f"qat: capturing the net lost {sorted(missing)[0]!r}")
        result: nn.Module = allow_exported_model_train_eval(prepared)
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library warns about kernels it has no use for here, and prints on import."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
