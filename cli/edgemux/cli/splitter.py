"""`edgemux split`: where a model can be cut, what each cut costs, and the two halves of one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemux.cli.extras import extra
from edgemux.cli.options import JsonOption
from edgemux.multiplexer.errors import ConfigError, PassError

if TYPE_CHECKING:
    from edgemux.compression.split.costs import Price, Whole
    from edgemux.multiplexer.planner import Conditions, Expected

# Ways in the text; in JSON there are all.
_SHOWN = 8
# Differences below this are those of real numbers that are summed in another order.
_NEAR = 1e-3


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
    most: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Cuts that are listed: 100 by default, fewer of a very large graph."),
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
    prices, unfit = _prices(whole, time, most)
    ways = [] if conditions is None else _expected(whole, prices, whole_bytes or whole.input_bytes, conditions)
    if json:
        told = {
            "model": whole.name,
            "sha256": whole.digest,
            "input_bytes": whole.input_bytes,
            "cuts": prices,
            "unfit": unfit,
        }
        typer.echo(as_json.encode(told | ({"ways": ways} if ways else {})).decode())
    else:
        _print(whole, prices, unfit)
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

    if not math.isfinite(slower):
        raise ConfigError("split: --slower is a number of times")
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


def _prices(whole: Whole, timed: bool, most: int | None) -> tuple[list[Price], dict[int, str]]:
    """What cuts cost, and by index why others are none. Raises PassError where there is no other."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    cuts = track(whole.few(most), "measuring cuts", console=console, transient=True, disable=not console.is_terminal)
    prices: list[Price] = []
    unfit: dict[int, PassError] = {}
    for cut in cuts:
        try:
            prices.append(whole.price(cut, timed))
        except PassError as error:
            unfit[cut.index] = error
    if not prices:
        raise next(iter(unfit.values()))
    return prices, {index: str(error) for index, error in unfit.items()}


def _print(whole: Whole, prices: list[Price], unfit: dict[int, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    shown = f"{len(prices)} of {len(whole.cuts)}" if len(prices) < len(whole.cuts) else f"{len(prices)}"
    title = f"{escape(whole.name)}: {shown} cuts; its inputs are {whole.input_bytes:,} bytes as they are"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("cut", "bytes", "head\nM MACs", "tail\nM MACs", "head\nms", "tail\nms"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what is sent", overflow="fold")
    for price in prices:
        work = (f"{count / 1e6:.2f}" for count in (price.head_macs, price.tail_macs))
        times = ("" if ms is None else f"{ms:.2f}" for ms in (price.head_ms, price.tail_ms))
        table.add_row(str(price.index), f"{price.bytes:,}", *work, *times, escape(_sent(price)))
    (console if console.is_terminal else Console(width=max(console.width, 120))).print(table)
    if unfit:
        typer.echo(f"left out, as head and tail cannot be had or answer otherwise: {', '.join(map(str, unfit))}")


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
    notes = [
        note
        for note, holds in (
            ("an input itself", price.raw),
            ("one input at a time", not price.rows),
            (f"answers differ by up to {100 * price.difference:.1f} % of the largest", price.difference > _NEAR),
        )
        if holds
    ]
    sent = ", ".join(f"{_plain(name)} {kind} {list(shape)}" for name, kind, shape in parts)
    return sent + "".join(f" ({note})" for note in notes)


def _plain(name: str) -> str:
    """A name that does nothing to a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)
