"""A bundle, and perhaps a folder of heads and tails -> every way to answer its inputs, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression.chain import answers_of, answers_of_levels
from edgemux.compression.profile import macs
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.curve import LENGTH_BYTES
from edgemux.compression.split.shapes import example
from edgemux.edge.split_planning import AROUND_BYTES
from edgemux.multiplexer.bundle import Bundle, Preprocessing, Split, Tensor, splits_of
from edgemux.multiplexer.chain import Activations, Chain
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.bits import packed
from edgemux.wire.codec import DTYPES
from edgemux.wire.payload import LOSSLESS as LOSING_NOTHING
from edgemux.wire.payload import RAW as PLAIN
from edgemux.wire.payload import decoder, encode, encodings, size_of

from .grid import BOTTLENECK, CONTINUATION, CUT, JPEG, LEVEL, LOSSLESS, RAW, WEBP, WHOLE_HERE, Option, Setting
from .halves import gains_after_last, level_of, sent_of, through

Say = Callable[[str], None]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
# Of one thing: so long, or so often.
TIMED_S, LEAST_RUNS, MOST_RUNS = 0.15, 5, 60


class Stopwatch:
    """CPU times of this thread as shares of what the whole model takes, which is run in turns with everything else:
    what the machine does besides slows both alike. A study of some minutes has no moment that is like all others.
    """

    def __init__(self, whole: Callable[[], object]) -> None:
        self._whole = whole
        self._seen: list[float] = []

    def shares(self, *runs: Callable[[], object]) -> list[float]:
        """Of each, the median over the whole's median."""
        every = (self._whole, *runs)
        taken: list[list[float]] = [[] for _ in every]
        while len(taken[0]) < LEAST_RUNS or (len(taken[0]) < MOST_RUNS and sum(map(sum, taken)) < TIMED_S):
            for times, run in zip(taken, every, strict=True):
                run()  # so that the caches hold this one's weights
                began = time.thread_time()
                run()
                times.append(time.thread_time() - began)
        whole, *others = (float(np.median(times)) for times in taken)
        self._seen.append(whole)
        return [other / whole for other in others]

    @property
    def whole_ms(self) -> float:
        """The median of all of the whole's medians."""
        return 1e3 * float(np.median(self._seen))


def in_ms(options: Sequence[Option], whole_ms: float) -> tuple[Option, ...]:
    """Options whose times are shares of the whole's, in ms."""
    return tuple(
        msgspec.structs.replace(
            option,
            device_ms=option.device_ms * whole_ms,
            cloud_ms=option.cloud_ms * whole_ms,
            after_ms=None if option.after_ms is None else option.after_ms * whole_ms,
        )
        for option in options
    )


def cut_options(content: bytes, name: str, watch: Stopwatch, say: Say) -> tuple[list[Option], dict[str, float]]:
    """Every cut of a model, its float tensors sent as they are; and how many there are, how many in rows.

    Times here and below are shares of the whole's, see ``in_ms``.

    Raises what ``Whole`` raises.
    """
    whole = Whole(content, name)
    options, rows = [], 0
    for cut in whole.cuts:
        say(f"{name}: cut {cut.index} of {whole.cuts[-1].index}")
        halves = whole.halves(cut)
        head = OnnxModel(halves.head.SerializeToString(), "head")
        tail = OnnxModel(halves.tail.SerializeToString(), "tail")
        given = example(halves.head)
        sent = dict(zip(head.outputs, head.run(given), strict=True))
        head_ms, tail_ms = watch.shares(lambda h=head, g=given: h.run(g), lambda t=tail, s=sent: t.run(s))  # type: ignore[misc]
        size = float(sum(whole.measured[tensor].bytes for tensor in cut.tensors))
        rows += all(whole.measured[tensor].rows for tensor in cut.tensors)
        options.append(Option(CUT, f"cut {cut.index}", head_ms, tail_ms, size + AROUND_BYTES))
    return options, {"cuts": float(len(options)), "in rows": float(rows)}


def kind_of(form: str) -> str:
    """Of a form of a picture."""
    return RAW if form == PLAIN else LOSSLESS if form in LOSING_NOTHING else JPEG if form.startswith("jpeg") else WEBP


class Form:
    """One form of inputs: what it takes, and what arrives."""

    def __init__(self, form: str, tensor: Tensor, preprocessing: Preprocessing) -> None:
        self.form, self._preprocessing = form, preprocessing
        self._decode = decoder(form, tensor, preprocessing)

    def send(self, images: Images) -> tuple[float, Images]:
        """Mean bytes of an input in a message, and what a server makes of them."""
        sizes, arrived = [], []
        for at in range(len(images)):
            element = encode(self.form, images[at : at + 1], self._preprocessing)
            sizes.append(size_of(element))
            arrived.append(self._decode(element))
        return float(np.mean(sizes)), np.concatenate(arrived)

    def times(self, image: Images, watch: Stopwatch) -> list[float]:
        """To encode and to decode."""
        if self.form == PLAIN:
            return [0.0, 0.0]
        element = encode(self.form, image, self._preprocessing)
        return watch.shares(lambda: encode(self.form, image, self._preprocessing), lambda: self._decode(element))


class Half(msgspec.Struct, frozen=True):
    """A head and a tail, and from which level on the head goes."""

    name: str
    level: int
    bits: int
    head: bytes
    tail: bytes


class Seen:
    """Inputs with their labels, and what the bundle's own models say of them."""

    def __init__(self, bundle: Bundle, images: Images, labels: Labels) -> None:
        manifest = bundle.manifest
        (self.tensor,) = manifest.inputs
        self.images, self.labels = images.astype(DTYPES[self.tensor.datatype]), labels
        self.levels = [OnnxModel(bundle.read(level.files[-1]), level.name) for level in manifest.levels]
        self.cloud = OnnxModel(bundle.read(manifest.cloud.files[-1]), "cloud")
        self.whole = answers_of(self.cloud, self.images).argmax(axis=1)
        answers = answers_of_levels(self.levels, self.images, self.tensor.name)[-1]
        self.level = answers.argmax(axis=1)
        names = manifest.multiplexer
        pre, post = (OnnxModel(bundle.read(file), file) for file in (names.pre_gate, names.post_gate))
        gains = gains_after_last(pre, post, answers, len(self.levels), self.images)
        self.deferred: NDArray[np.bool_] = gains > names.defer[-1]

    @property
    def chain(self) -> Chain:
        """The levels."""
        return Chain(self.levels, [self.tensor.name])

    def right(self, labels: Labels) -> float:
        """Share, over all inputs."""
        return float((labels == self.labels).mean())

    def together(self, labels: Labels) -> float:
        """Share of right answers where only what the last level defers gets these labels."""
        return self.right(np.where(self.deferred, labels, self.level))

    def after_level(self, level: int, images: Images) -> dict[str, NDArray[Any]]:
        """The inputs, and what the levels up to this one leave of them."""
        return self.chain.known_at(level, {self.tensor.name: images})


def halves_of(bundle: Bundle, pairs: Path | None, seen: Seen) -> list[Half]:
    """The bundle's own splits, or in their place NAME-BITS-head.onnx and NAME-BITS-tail.onnx of a folder."""
    if pairs is None:
        own = splits_of(bundle.manifest)
        return [Half(s.name, s.level, s.bits, bundle.read(s.head), bundle.read(s.tail)) for s in own]
    found = []
    for path in sorted(pairs.glob("*-head.onnx"), reverse=True):
        name = path.name.removesuffix("-head.onnx")
        content = path.read_bytes()
        level = level_of(OnnxModel(content, name).inputs, seen.levels, [seen.tensor.name])
        tail = path.with_name(f"{name}-tail.onnx").read_bytes()
        found.append(Half(name, level, int(name.rpartition("-")[2]), content, tail))
    return found


class Sender:
    """A head and a tail, run as device and cloud would."""

    def __init__(self, half: Half, seen: Seen) -> None:
        self.half, self._seen = half, seen
        self.head, self.tail = OnnxModel(half.head, f"{half.name} head"), OnnxModel(half.tail, f"{half.name} tail")

    def head_of(self, images: Images) -> NDArray[np.uint8]:
        """What is sent, before it is packed."""
        return sent_of(self.head, self._given(images))

    def _given(self, images: Images) -> dict[str, NDArray[Any]]:
        return self._seen.after_level(self.half.level, images)

    def send(self) -> tuple[float, Labels]:
        """Mean bytes of an input in a message, and the labels that come back."""
        labels, sizes = through(self.head, self.tail, self.half.bits, self._given, self._seen.images)
        return LENGTH_BYTES + float(np.mean(sizes)), labels

    def times(self, watch: Stopwatch) -> list[float]:
        """Of the level below, of head and packing, of the tail."""
        image, name = self._seen.images[:1], self._seen.tensor.name
        pool = self._given(image)
        given = {each: pool[each] for each in self.head.inputs}
        sent = {self.tail.inputs[0]: self.head_of(image)}
        chain, level = self._seen.chain, self.half.level
        found = watch.shares(
            lambda: chain.run(level, Activations({name: image})) if level else None,
            lambda: packed(self.head.run(given)[0], self.half.bits),
            lambda: self.tail.run(sent),
        )
        return found if level else [0.0, *found[1:]]


def split_option(sender: Sender, seen: Seen, watch: Stopwatch, say: Say) -> Option:
    """A bottleneck reads the input alone, a continuation what levels have left."""
    say(f"{sender.half.name}, {sender.half.bits} bits")
    size, labels = sender.send()
    below_ms, head_ms, tail_ms = sender.times(watch)
    return Option(
        kind=CONTINUATION if sender.half.level else BOTTLENECK,
        name=sender.half.name,
        device_ms=below_ms + head_ms,
        cloud_ms=tail_ms,
        sent_bytes=size + AROUND_BYTES,
        accuracy=seen.right(labels),
        after_ms=head_ms,
        deferred_accuracy=seen.together(labels),
    )


def form_options(bundle: Bundle, seen: Seen, watch: Stopwatch, say: Say) -> list[Option]:
    """The whole input in every form that the agent knows."""
    preprocessing, options = bundle.manifest.preprocessing, []
    if preprocessing is None:
        return [Option(RAW, PLAIN, 0.0, 1.0, seen.images[0].nbytes + AROUND_BYTES, after_ms=0.0)]
    for form in (Form(each, seen.tensor, preprocessing) for each in encodings(seen.tensor, preprocessing)):
        say(form.form)
        size, arrived = form.send(seen.images)
        labels = seen.whole if form.form in LOSING_NOTHING else answers_of(seen.cloud, arrived).argmax(axis=1)
        encode_ms, decode_ms = form.times(seen.images[:1], watch)
        options.append(
            Option(
                kind=kind_of(form.form),
                name=form.form,
                device_ms=encode_ms,
                cloud_ms=1.0 + decode_ms,
                sent_bytes=size + AROUND_BYTES,
                accuracy=seen.right(labels),
                after_ms=encode_ms,
                deferred_accuracy=seen.together(labels),
            )
        )
    return options


def bundle_setting(bundle: Bundle, seen: Seen, halves: Sequence[Half], say: Say) -> Setting:
    """Everything of a bundle with a nested family on the device."""
    image, name = seen.images[:1], seen.tensor.name
    chain, watch = seen.chain, Stopwatch(lambda: seen.cloud.run({name: image}))
    (level_ms,) = watch.shares(lambda: chain.answer({name: image}))
    cloud, level = seen.right(seen.whole), seen.right(seen.level)
    cuts, counts = cut_options(bundle.read(bundle.manifest.cloud.files[-1]), "cloud.onnx", watch, say)
    options = [
        Option(LEVEL, bundle.manifest.levels[-1].name, level_ms, accuracy=level),
        Option(WHOLE_HERE, "whole", 1.0, accuracy=cloud),
        *form_options(bundle, seen, watch, say),
        *(msgspec.structs.replace(option, accuracy=cloud) for option in cuts),
        *(split_option(Sender(half, seen), seen, watch, say) for half in halves),
    ]
    return Setting(
        name=bundle.manifest.name,
        cloud="its cloud model",
        options=in_ms(options, watch.whole_ms),
        level_ms=level_ms * watch.whole_ms,
        cloud_ms=watch.whole_ms,
        cloud_accuracy=cloud,
        level_accuracy=level,
        n=len(seen.images),
        share=float(seen.deferred.mean()),
        notes=(f"{counts['cuts']:.0f} cuts, at {counts['in rows']:.0f} of which several inputs can be joined",),
    )


def manifest_split(half: Half, option: Option, tail: Mapping[str, Any], n: int) -> Split:
    """For a bundle that is to have this split, as it was measured. tail: "shape" of what is sent, "name" of it."""
    import onnx

    size = option.sent_bytes - AROUND_BYTES
    work = macs(onnx.load_model_from_string(half.tail))
    assert option.accuracy is not None and option.after_ms is not None
    sent = Tensor(str(tail["name"]), "UINT8", (-1, *tail["shape"]))
    files = f"{half.name}-head.onnx", half.level, f"{half.name}-tail.onnx"
    times = option.after_ms, option.cloud_ms, work
    return Split(half.name, *files, sent, half.bits, size, *times, n, option.accuracy, 0.0)
