"""The cloud as the agent expects it, and what of its answers is believed."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.edge.packing import OneForm, Packing, usable
from edgemux.multiplexer.bundle import Manifest, Payload, Preprocessing, Split, Tensor, tail_model
from edgemux.multiplexer.chain import PROBABILITIES
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.errors import BadAnswer
from edgemux.wire.codec import MODEL_DIGEST, read_outputs, row_bytes

# HTTP/2 and gRPC framing around a message, both ways, once headers are compressed; measured 90-130 on loopback.
CALL_OVERHEAD_BYTES = 120
# Names, shapes and ids of a request beside its pixels; only until the first real request tells.
MESSAGE_BYTES = 80

OutputKind = Literal["probabilities", "logits"]


class Peer(msgspec.Struct, frozen=True):
    """The cloud as the agent expects it: model name, output, digest of the model (None: any), bytes a call.

    accept_others: whether answers of a model with another digest count. kind: what its output is; of logits the agent
    makes probabilities. payloads: forms in which an input may be sent to one of our own servers, raw first, none for
    the tensor alone; preprocessing: what those servers make of a picture. form: the only one, where the peer serves the
    tail of a split.
    """

    model: str
    output: Tensor
    digest: str | None
    call_bytes: int
    accept_others: bool = False
    kind: OutputKind = "probabilities"
    payloads: tuple[Payload, ...] = ()
    preprocessing: Preprocessing | None = None
    form: str | None = None

    @property
    def place(self) -> Placement:
        """Where an input is answered that is sent there."""
        return Placement.CLOUD if self.form is None else Placement.SPLIT

    def packing(self) -> Packing | OneForm:
        """The choice of the form in which inputs are sent."""
        return Packing(self.payloads) if self.form is None else OneForm(self.form)

    @classmethod
    def of_tail(cls, manifest: Manifest, split: Split, digest: str, model: str) -> Peer:
        """The peer that serves the tail of a split, in a cloud that calls the bundle's model ``model``."""
        own = next(tensor for tensor in manifest.outputs if tensor.name == PROBABILITIES)
        size = math.ceil(split.bytes) + MESSAGE_BYTES + CALL_OVERHEAD_BYTES
        return cls(tail_model(model, split.name), own, digest, size, form=f"bits{split.bits}")

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        digest: str | None,
        model: str | None = None,
        accept_others: bool = False,
        output: str | None = None,
        kind: OutputKind = "probabilities",
        max_loss: float = 0.0,
    ) -> Peer:
        """The peer that serves a bundle's cloud model, whose output it calls ``output``, None for the bundle's name.

        max_loss: of accuracy, by the form in which an input is sent.
        """
        own = next(tensor for tensor in manifest.outputs if tensor.name == PROBABILITIES)
        named = own if output is None else msgspec.structs.replace(own, name=output)
        payload = row_bytes(manifest.inputs)
        size = payload + MESSAGE_BYTES + CALL_OVERHEAD_BYTES
        payloads = usable(manifest, max_loss)
        name = model or manifest.name
        return cls(name, named, digest, size, accept_others, kind, payloads, manifest.preprocessing)

    def is_other(self, response: Any) -> bool:
        """Whether an answer says that it is another model's than the bundle's; one that says nothing does not."""
        return self.digest is not None and digest_in(response) not in ("", self.digest)

    def rows(self, response: Any, request_id: str, count: int) -> NDArray[Any]:
        """The probabilities of an answer to ``count`` inputs, FP32 [count, classes]. Nothing in it is trusted.

        Raises BadAnswer: identity, datatype, shape, finite values, distributions.
        """
        if response is None:  # a corrupted stream can end like this, with status OK
            raise BadAnswer("no answer")
        if response.id != request_id:
            raise BadAnswer("the answer is to another request")
        rows = read_outputs(response, (self.output,), rows=count)[self.output.name]
        if self.kind == "logits":
            return softmax(rows)
        if rows.min() < -1e-4 or np.abs(rows.sum(axis=1) - 1.0).max() > 1e-2:
            raise BadAnswer("the answer is not a distribution")
        return rows


def digest_in(response: Any) -> str:
    """The digest of the model that gave an answer, empty where it does not say: servers other than ours do not."""
    return str(response.parameters[MODEL_DIGEST].string_param) if MODEL_DIGEST in response.parameters else ""


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities FP32 [N, classes] of finite logits [N, classes]."""
    spread = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float32)
    return np.asarray(spread / spread.sum(axis=1, keepdims=True), dtype=np.float32)
