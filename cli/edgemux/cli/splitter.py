"""`edgemux split`: where a model can be cut, what each cut costs, and the two halves of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgemux.cli.extras import extra
from edgemux.cli.options import JsonOption
from edgemux.multiplexer.errors import ConfigError

if TYPE_CHECKING:
    from edgemux.compression.split.costs import Price, Whole


def split(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX graph.")],
    at: Annotated[int | None, typer.Option(metavar="INDEX", help="Cut there; needs --out.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where head.onnx and tail.onnx go.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=1,3,224,224", help="Sizes of an input that the model leaves open; may be repeated."),
    ] = None,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Whether both halves of every cut are timed.")] = True,
    json: JsonOption = False,
) -> None:
    """List where a model can be cut in two, with bytes, work and time of either side; or cut it."""
    if (at is None) != (out is None):
        raise ConfigError("split: --at and --out go together")
    sizes = dict(_sizes(text) for text in shape or ())
    with extra("train"):
        from edgemux.compression.split.costs import Whole
    whole = Whole.read(model, sizes)
    if at is not None and out is not None:
        price = whole.save(whole.at(at), out)
        told: Any = {"out": str(out), **msgspec.to_builtins(price)}
        typer.echo(msgspec.json.encode(told).decode() if json else f"{out}: head.onnx and tail.onnx, {_sent(price)}")
        return
    prices = _prices(whole, time)
    if json:
        told = {"model": whole.name, "sha256": whole.digest, "input_bytes": whole.input_bytes, "cuts": prices}
        typer.echo(msgspec.json.encode(told).decode())
    else:
        _print(whole, prices)


def _sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """``NAME=1,3,224,224``. Raises ConfigError."""
    name, _, sizes = text.partition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise ConfigError(f"--shape: {text!r} is not like NAME=1,3,224,224")
    return name, shape


def _prices(whole: Whole, timed: bool) -> list[Price]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    cuts = track(whole.cuts, "measuring cuts", console=console, transient=True, disable=not console.is_terminal)
    return [whole.price(cut, timed) for cut in cuts]


def _print(whole: Whole, prices: list[Price]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{whole.name}: {len(prices)} cuts; its inputs are {whole.input_bytes:,} bytes as they are"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("cut", "bytes", "head\nM MACs", "tail\nM MACs", "head\nms", "tail\nms"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what is sent", overflow="fold")
    for price in prices:
        work = (f"{count / 1e6:.2f}" for count in (price.head_macs, price.tail_macs))
        times = ("" if ms is None else f"{ms:.2f}" for ms in (price.head_ms, price.tail_ms))
        table.add_row(str(price.index), f"{price.bytes:,}", *work, *times, _sent(price))
    (console if console.is_terminal else Console(width=max(console.width, 120))).print(table)


def _sent(price: Price) -> str:
    parts = zip(price.tensors, price.datatypes, price.shapes, strict=True)
    notes = ("", " (an input itself)")[price.raw] + ("", " (one input at a time)")[not price.rows]
    return ", ".join(f"{name} {kind} {list(shape)}" for name, kind, shape in parts) + notes
