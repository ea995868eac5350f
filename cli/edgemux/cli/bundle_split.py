"""`edgemux bundle split`: a bundle's cloud model cut in two, and whether the agent would use what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemux.cli.extras import extra
from edgemux.cli.options import JsonOption
from edgemux.multiplexer.errors import ConfigError

if TYPE_CHECKING:
    from edgemux.cli.split_verdict import Verdict
    from edgemux.compression.split.material import Material
    from edgemux.compression.split.trial import Made, Plan
    from edgemux.multiplexer.bundle import Manifest

# Of the inputs, those that are not for figures.
CHOSEN_BY, TRAINED_ON = 0.2, 0.7


def split(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle.")],
    at: Annotated[int, typer.Option(metavar="INDEX", help="Cut its cloud model there; edgemux split lists the cuts.")],
    inputs: Annotated[Path, typer.Option(metavar="PATH", help="Inputs: a folder of pictures, .npy or .npz.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle with the split goes; may be the same.")],
    labels: Annotated[
        str | None, typer.Option(metavar="FILE.npy", help="Class numbers; default: what the inputs say. none: none.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Of a value that is sent: 8, 4 or 2. [default: 8; learned: 4]")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the split. [default: cut-INDEX-BITS or learned-INDEX-BITS]")
    ] = None,
    learn: Annotated[bool, typer.Option("--learn", help="Train an encoder and a decoder for what crosses.")] = False,
    level: Annotated[
        int, typer.Option(min=0, metavar="K", help="Learned: go on from what device level K leaves; 0: from the input.")
    ] = 0,
    channels: Annotated[int | None, typer.Option(min=1, help="Learned: so many are sent; default: an eighth.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=2, help="Learned: passes over the inputs; default: 1500 batches.")
    ] = None,
    work: Annotated[Path | None, typer.Option(metavar="DIR", help="Learned: where the training is kept.")] = None,
    json: JsonOption = False,
) -> None:
    """Add a split to a bundle: a head for the device, a tail for the cloud, measured on your inputs."""
    _check_options(learn, {"--level": level, "--channels": channels, "--epochs": epochs, "--work": work})
    with extra("train,edge"):
        from edgemux.cli.split_verdict import verdict_of
        from edgemux.compression.places import check_place
        from edgemux.compression.split import pack
        from edgemux.compression.split.material import material
        from edgemux.compression.split.trial import Plan
    if learn:
        with extra("train"):
            import edgemux.compression.split.learned  # noqa: F401
    from edgemux.multiplexer.bundle import BITS, MANIFEST, Bundle

    bits = bits if bits is not None else 4 if learn else 8
    if bits not in BITS:
        raise ConfigError(f"--bits: {bits} is not 8, 4 or 2")
    plan = Plan(name or f"{'learned' if learn else 'cut'}-{at}-{bits}", at, bits, level)
    check_place(out, MANIFEST, "not a bundle")
    _check_plan(Bundle.open(folder).manifest, plan)
    found = material(folder, str(inputs), labels, Path(), TRAINED_ON if learn else CHOSEN_BY)
    made = _learned(found, plan, channels, epochs, work) if learn else _plain(found, plan)
    sealed = pack.add_split(folder, out, made.split, made.head, made.tail)
    verdict = verdict_of(sealed, made.split, found.feed.rows(found.test[:1]).nbytes)
    _print_json(made, verdict, out, sealed) if json else _print(made, verdict, out)


def _check_options(learn: bool, learned: Mapping[str, object]) -> None:
    """Raises ConfigError for what only a learned split has."""
    for option, given in learned.items():
        if given and not learn:
            raise ConfigError(f"bundle split: {option} needs --learn; a plain cut reads the input and has no training")


def _check_plan(manifest: Manifest, plan: Plan) -> None:
    """Raises ConfigError naming the option, before anything is computed."""
    import msgspec

    from edgemux.compression.recipe import Name
    from edgemux.multiplexer.bundle import splits_of

    try:
        msgspec.convert(plan.name, Name)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--name: {plan.name!r} is not lower-case letters, digits and hyphens") from error
    models = [model.name for model in (*manifest.levels, manifest.cloud)]
    routes = models + [split.name for split in splits_of(manifest)]
    if plan.name in routes:
        raise ConfigError(f"--name: {manifest.name} has a route {plan.name!r} already; it has {', '.join(routes)}")
    if plan.level > len(manifest.levels):
        raise ConfigError(f"--level: {manifest.name} has the levels 1 to {len(manifest.levels)}, not {plan.level}")


def _plain(found: Material, plan: Plan) -> Made:
    from edgemux.compression.split.plain import plain

    return plain(found, plan)


def _learned(found: Material, plan: Plan, channels: int | None, epochs: int | None, work: Path | None) -> Made:
    from rich.console import Console
    from rich.progress import Progress

    from edgemux.compression.build import default_work
    from edgemux.compression.split.learned import How, learned
    from edgemux.compression.workshop import Workshop

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        workshop = Workshop(work if work is not None else default_work(), progress)
        return learned(found, plan, How(channels, epochs), workshop)


def _print_json(made: Made, verdict: Verdict, out: Path, sealed: Manifest) -> None:
    import msgspec

    from edgemux.multiplexer.bundle import splits_of

    told: dict[str, Any] = {
        "out": str(out),
        "digest": sealed.digest,
        "split": splits_of(sealed)[-1],
        "measured": made.tried,
        "agent": verdict,
    }
    typer.echo(msgspec.json.encode(told).decode())


def _print(made: Made, verdict: Verdict, out: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    split, tried = made.split, made.tried
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "head", "tail", "whole"):
        table.add_column(column, justify="left" if not column else "right")
    for title, *values in (
        ("ms", *(f"{value:.3f}" for value in (tried.head_ms, tried.tail_ms, tried.whole_ms))),
        ("M MACs", *(f"{value / 1e6:.2f}" for value in (tried.head_macs, tried.tail_macs)), ""),
        ("KB", *(f"{value / 1000:.1f}" for value in (tried.head_bytes, tried.tail_bytes)), ""),
    ):
        table.add_row(title, *values)
    console = Console()
    (console if console.is_terminal else Console(width=max(console.width, 120))).print(table)
    shape = "x".join(str(size) for size in split.sent.shape[1:]) or "1"
    typer.echo(f"{split.name}: sends {shape} values of {split.bits} bits, {split.bytes:,.0f} bytes an input")
    right = ""
    if tried.accuracy is not None and tried.cloud_accuracy is not None:
        right = f"; right: {100 * tried.accuracy:.2f} %, the whole {100 * tried.cloud_accuracy:.2f} %"
    typer.echo(f"on {tried.n} inputs: another label than from the whole for {100 * tried.changed:.2f} %{right}")
    for line in verdict.lines:
        typer.echo(line)
    typer.echo(f"saved in {out}")
