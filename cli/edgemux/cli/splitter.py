"""`edgemux split`: where a model can be cut, what each cut costs, and the two halves of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemux.cli.extras import extra
from edgemux.cli.options import JsonOption
from edgemux.multiplexer.errors import ConfigError

if TYPE_CHECKING:
    from edgemux.compression.split.costs import Price, Whole
    from edgemux.multiplexer.planner import Conditions, Expected

# Ways in the text; in JSON there are all.
_SHOWN = 8


def split(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX graph.")],
    at: Annotated[int | None, typer.Option(metavar="INDEX", help="Cut there; needs --out.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where head.onnx and tail.onnx go.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=1,3,224,224", help="Sizes of an input that the model leaves open; may be repeated."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="40ms,10mbit", help="Price every way to answer over this link, the best first."),
    ] = None,
    slower: Annotated[
        float, typer.Option(min=0.01, metavar="TIMES", help="The device takes so many times as long as this machine.")
    ] = 1.0,
    whole_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="What the whole input takes to send, as a JPEG, say.")
    ] = None,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Whether both halves of every cut are timed.")] = True,
    json: JsonOption = False,
) -> None:
    """List where a model can be cut in two, with bytes, work and time of either side; or cut it."""
    if (at is None) != (out is None):
        raise ConfigError("split: --at and --out go together")
    if link is not None and (at is not None or not time):
        raise ConfigError("split: --link prices a list of cuts that are timed, without --at and --no-time")
    conditions = None if link is None else _conditions(link, slower)
    sizes = dict(_sizes(text) for text in shape or ())
    with extra("train"):
        from edgemux.compression.split.costs import Whole
    from msgspec import json as as_json
    from msgspec import to_builtins

    whole = Whole.read(model, sizes)
    if at is not None and out is not None:
        price = whole.save(whole.at(at), out)
        told: Any = {"out": str(out), **to_builtins(price)}
        typer.echo(as_json.encode(told).decode() if json else f"{out}: head.onnx and tail.onnx, {_sent(price)}")
        return
    prices = _prices(whole, time)
    ways = [] if conditions is None else _expected(whole, prices, whole_bytes or whole.input_bytes, conditions)
    if json:
        told = {"model": whole.name, "sha256": whole.digest, "input_bytes": whole.input_bytes, "cuts": prices}
        typer.echo(as_json.encode(told | ({"ways": ways} if ways else {})).decode())
    else:
        _print(whole, prices)
        _print_ways(ways, link or "")


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


def _conditions(link: str, slower: float) -> Conditions:
    """Raises ConfigError."""
    from edgemux.cli.link import parse_link
    from edgemux.multiplexer.planner import Conditions

    there = parse_link(link)
    return Conditions(there.round_trip_s, there.bits_per_s / 8, slowdown=slower)


def _expected(whole: Whole, prices: list[Price], whole_bytes: int, conditions: Conditions) -> list[Expected]:
    """All that can be best over some link, the best over this one first."""
    from edgemux.multiplexer.domain import Placement
    from edgemux.multiplexer.planner import Table, Way

    alone_s = whole.median_ms() / 1000
    ways = [
        Way("device", Placement.EDGE, alone_s),
        Way("whole input", Placement.CLOUD, 0.0, alone_s, float(whole_bytes)),
        *(
            Way(f"cut {p.index}", Placement.SPLIT, (p.head_ms or 0.0) / 1000, (p.tail_ms or 0.0) / 1000, float(p.bytes))
            for p in prices
        ),
    ]
    return Table(ways).expected(conditions)


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


def _print_ways(ways: list[Expected], link: str) -> None:
    if not ways:
        return
    typer.echo(f"over {link}, expected (ways that another one beats over any link are left out):")
    for each in ways[:_SHOWN]:
        typer.echo(f"  {each.way.name:<12} {1e3 * each.latency_s:9.2f} ms  {each.sent_bytes:>12,.0f} bytes")
    if len(ways) > _SHOWN:
        typer.echo(f"  and {len(ways) - _SHOWN} more")


def _sent(price: Price) -> str:
    parts = zip(price.tensors, price.datatypes, price.shapes, strict=True)
    notes = ("", " (an input itself)")[price.raw] + ("", " (one input at a time)")[not price.rows]
    return ", ".join(f"{name} {kind} {list(shape)}" for name, kind, shape in parts) + notes
