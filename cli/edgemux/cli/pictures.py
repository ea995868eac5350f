"""`edgemux infer`: picture files to a server, and what it says about each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from edgemux.multiplexer.errors import BadAnswer, ConfigError, InputError
from edgemux.wire import Client, Reply
from edgemux.wire.security import ClientTls


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for one file; ``error`` is set when the server refused it, and then nothing else is.

    ``classname`` is the label's number where the server does not name its classes. ``ms``: seen from here.
    """

    file: str
    label: int | None = None
    classname: str | None = None
    probability: float | None = None
    route: str | None = None
    variant: str | None = None
    reason: str | None = None
    score: float | None = None
    ms: float | None = None
    error: str | None = None


class Server(msgspec.Struct, frozen=True):
    """Whom to ask: HOST:PORT, how it is encrypted, and the file of the token for it."""

    address: str
    tls: ClientTls = ClientTls()
    token_file: Path | None = None


def ask_about(files: Sequence[Path], server: Server, model: str | None, timeout_s: float) -> list[Answer]:
    """Ask the server about each file, in turn.

    Raises ConfigError when a file cannot be read, one of the server's is no use, or there are several models to choose
    from, ExecutionError when the server gives no answer.
    """
    contents = [(str(path), _read(path)) for path in files]
    with Client(server.address, server.tls, server.token_file) as client:
        name = model if model is not None else _only_model(client, timeout_s)
        about = client.metadata(name, timeout_s)
        if not about.inputs:
            raise BadAnswer("the server does not say which input its model takes")
        check_takes_pictures(about.inputs[0])
        classes = class_names(about)
        return [_ask(client, name, about.inputs[0].name, classes, *file, timeout_s) for file in contents]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _only_model(client: Client, timeout_s: float) -> str:
    names = client.models(timeout_s)
    models = whole_models(names)
    if len(models) != 1:
        raise ConfigError(f"the server has {len(models)} models, choose with --model: {', '.join(models)}")
    return models[0]


def whole_models(names: Sequence[str]) -> list[str]:
    """Without the tails of splits, which are called after the model that they are part of."""
    return [name for name in names if not any(name.startswith(f"{whole}.") for whole in names)]


def check_takes_pictures(tensor: Any) -> None:
    """Raises ConfigError for a model whose input cannot be an encoded picture."""
    if tensor.datatype not in ("UINT8", "BYTES"):
        raise ConfigError(
            f"infer sends pictures, and this model takes {tensor.name} {tensor.datatype} {list(tensor.shape)}: "
            "send it tensors with edgemux.wire.Client or any other client of the protocol"
        )


def class_names(about: Any) -> list[str]:
    """Names of the classes from a model's metadata, empty when it has none."""
    text = about.properties.get("classes", "")
    return text.split(",") if text else []


def _ask(
    client: Client, model: str, tensor: str, classes: list[str], file: str, content: bytes, timeout_s: float
) -> Answer:
    started_s = perf_counter()
    try:
        reply = client.infer(model, {tensor: [content]}, timeout_s)
    except InputError as error:
        return Answer(file=file, error=str(error))
    ms = round((perf_counter() - started_s) * 1000, 3)
    return _answer(file, reply, classes, ms)


def _answer(file: str, reply: Reply, classes: list[str], ms: float) -> Answer:
    if "label" not in reply.outputs:
        raise BadAnswer("label: missing from the answer")
    label = int(reply.outputs["label"][0])
    probabilities = reply.outputs.get("probabilities")
    said = reply.parameters
    score = said.get("edgemux_score")
    return Answer(
        file=file,
        label=label,
        classname=classes[label] if 0 <= label < len(classes) else str(label),
        probability=None if probabilities is None else float(probabilities[0][label]),
        route=_text(said.get("edgemux_route")),
        variant=_text(said.get("edgemux_variant")),
        reason=_text(said.get("edgemux_reason")),
        score=None if score is None else float(score),
        ms=ms,
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def print_answers(answers: Sequence[Answer], console: Console) -> None:
    """A table, one row a file."""
    table = Table("file", "class", "probability", "route", "variant", "reason", "score", "ms")
    for answer in answers:
        table.add_row(*(_cell(value) for value in _values(answer)))
    console.print(table)


def _values(answer: Answer) -> tuple[object, ...]:
    if answer.error is not None:
        return (answer.file, answer.error, None, None, None, None, None, None)
    shown = (answer.file, answer.classname, answer.probability, answer.route, answer.variant, answer.reason)
    return (*shown, answer.score, answer.ms)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
