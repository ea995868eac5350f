"""The command line `edgemux`. Each command imports the part it needs when it runs, and no other.

Exit codes: 0 done; 1 it was tried and failed; 2 it was asked for wrongly, with one line on stderr that says why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemux.cli import bundle_split, splitter
from edgemux.cli.extras import extra
from edgemux.cli.options import (
    AddressOption,
    BundleOption,
    ClientCaOption,
    ConfigOption,
    Engine,
    EngineOption,
    GrpcPortOption,
    HaproxyOption,
    HostOption,
    HttpPortOption,
    InsecureOption,
    JsonOption,
    MaxReplicasOption,
    MetricsPortOption,
    MinReplicasOption,
    OwnTokenOption,
    ReplicasOption,
    TargetOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TlsOption,
    TokenFileOption,
    check_address,
    listening,
    protected,
)
from edgemux.cli.visits import doctor, ready, traffic
from edgemux.multiplexer.errors import ConfigError, EdgemuxError, ExecutionError, PassError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
bundle_app = typer.Typer(help="Look into a bundle, check it, or cut its cloud model.")
app.add_typer(bundle_app, name="bundle")
app.command(epilog="Example: edgemux doctor --config /etc/edgemux/edge.toml")(doctor)
app.command(epilog="Example: edgemux split cloud.onnx --at 12 --out halves")(splitter.split)
bundle_app.command(epilog="Example: edgemux bundle split my-bundle --at 3 --inputs x.npy --out my-bundle")(
    bundle_split.split
)

# The root of everything that the parser raises for wrong use; it has no public name of its own.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """A neural multiplexer: each input is answered on the device, in the cloud, or by both in turn."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"edgemux {version_of('edgemux')}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        raise ConfigError("a command is needed, see edgemux --help")


@app.command(epilog="Example: edgemux cloud --bundle deploy/bundles/fashion-mnist --grpc-port 8001")
def cloud(
    bundle: BundleOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    grpc_port: GrpcPortOption = None,
    http_port: HttpPortOption = None,
    metrics_port: MetricsPortOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    insecure: InsecureOption = False,
    max_batch: Annotated[int | None, typer.Option(help="Most inputs in one run of the model.")] = None,
    linger: Annotated[float | None, typer.Option(help="Longest wait of a batch's first input, in s.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Most inputs that wait; more are refused.")] = None,
    processes: Annotated[int | None, typer.Option(help="Servers behind the same ports, about one a core.")] = None,
    engine: EngineOption = Engine.PROCESS,
    address: AddressOption = None,
    replicas: ReplicasOption = None,
    min_replicas: MinReplicasOption = None,
    max_replicas: MaxReplicasOption = None,
    target_ongoing: TargetOption = None,
    haproxy: HaproxyOption = None,
) -> None:
    """Serve a bundle's full model."""
    with extra("cloud"):
        from edgemux.cloud.config import load
    overrides = {
        **listening(bundle, host, grpc_port, http_port, metrics_port),
        **protected(tls_cert, tls_key, tls_client_ca, token_file, insecure),
        "batching.max_batch": max_batch,
        "batching.linger_s": linger,
        "admission.max_queue": max_queue,
        "processes": processes,
        "ray.address": address,
        "ray.replicas": replicas,
        "ray.min_replicas": min_replicas,
        "ray.max_replicas": max_replicas,
        "ray.target_ongoing": target_ongoing,
        "ray.haproxy": haproxy,
    }
    settings = load(config, overrides)
    with extra("cloud"):
        if engine is Engine.RAY:
            from edgemux.cloud.ray_engine import serve
        else:
            from edgemux.cloud.server import serve
    serve(settings)


@app.command(epilog="Example: edgemux edge --bundle deploy/bundles/fashion-mnist --cloud 192.0.2.7:8001")
def edge(
    bundle: BundleOption = None,
    cloud: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="The cloud, or several; none: all stays here.")
    ] = None,
    config: ConfigOption = None,
    host: HostOption = None,
    grpc_port: GrpcPortOption = None,
    http_port: HttpPortOption = None,
    metrics_port: MetricsPortOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    insecure: InsecureOption = False,
    timeout: Annotated[float | None, typer.Option(help="Deadline of requests that bring none, in s.")] = None,
    offloads_per_second: Annotated[float | None, typer.Option(help="Most offloads, in the long run.")] = None,
    bytes_per_second: Annotated[float | None, typer.Option(help="Most bytes to the cloud, in the long run.")] = None,
    compute_share: Annotated[
        float | None, typer.Option(help="Share of the free CPU that device models may use.")
    ] = None,
) -> None:
    """Run the agent: answer each input on this device or in the cloud."""
    with extra("edge"):
        from edgemux.edge.config import load
        from edgemux.edge.server import serve
    overrides = {
        **listening(bundle, host, grpc_port, http_port, metrics_port),
        **protected(tls_cert, tls_key, tls_client_ca, token_file, insecure),
        "cloud.address": None if cloud is None else cloud.split(",")[0],
        "cloud.addresses": None if cloud is None else cloud.split(","),
        "request.default_timeout_s": timeout,
        "limits.offloads_per_s": offloads_per_second,
        "limits.bytes_per_s": bytes_per_second,
        "limits.compute_share": compute_share,
    }
    serve(load(config, overrides))


@app.command(epilog="Example: edgemux infer boot.png shirt.jpg --to 127.0.0.1:9001")
def infer(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures: JPEG, PNG or WebP.")],
    to: Annotated[str, typer.Option(metavar="HOST:PORT", help="An agent or a cloud server (its gRPC port).")],
    model: Annotated[str | None, typer.Option(help="Which model, where there are several.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of each request, in s.")] = 5.0,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: OwnTokenOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a server about picture files."""
    with extra("edge"):
        from edgemux.cli.pictures import Server, ask_about, print_answers
        from edgemux.wire.security import ClientTls
    check_address("--to", to)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("infer: --tls-cert and --tls-key go together")
    server = Server(to, ClientTls(enabled=tls or None, ca=tls_ca, cert=tls_cert, key=tls_key), token_file)
    answers = ask_about(files, server, model, timeout)
    if json:
        _print_json(answers)
    else:
        print_answers(answers, _console())
    refused = [answer for answer in answers if answer.error is not None]
    if refused:
        raise ConfigError(f"{refused[0].file}: {refused[0].error}")


@bundle_app.command(epilog="Example: edgemux bundle inspect deploy/bundles/fashion-mnist --json")
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle.")],
    json: JsonOption = False,
) -> None:
    """Say what a bundle holds, from its manifest."""
    from edgemux.cli.bundles import describe, print_description
    from edgemux.multiplexer.bundle import Bundle

    about = describe(Bundle.open(folder))
    if json:
        _print_json(about)
    else:
        print_description(about, _console())


@bundle_app.command(epilog="Example: edgemux bundle verify deploy/bundles/fashion-mnist")
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle.")]) -> None:
    """Check the digest of every file of a bundle."""
    from edgemux.multiplexer.bundle import Bundle

    bundle = Bundle.open(folder)
    bundle.verify()
    typer.echo(f"{bundle.manifest.name}: {len(bundle.manifest.files)} files are what the manifest says")


@app.command(
    epilog="Example: edgemux build deploy/recipes/fashion-mnist.toml --out my-bundle; or "
    "edgemux build --edge small.onnx --cloud big.onnx --inputs pictures/"
)
def build(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE.toml", help="What to build.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the bundle goes.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small one in minutes, to see that it works.")] = False,
    work: Annotated[Path | None, typer.Option(metavar="DIR", help="Where stages are kept, to go on later.")] = None,
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A bundle whose models are kept: only fit and certify again.")
    ] = None,
    edge: Annotated[Path | None, typer.Option(metavar="ONNX", help="Instead of a recipe: the device's model.")] = None,
    cloud: Annotated[Path | None, typer.Option(metavar="ONNX", help="And the cloud's model.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="PATH", help="And inputs: a folder of pictures, .npy or .npz.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="FILE.npy", help="Class numbers; default: what the inputs say. none: none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name, by default the cloud file's.")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    alpha: Annotated[float, typer.Option(help="Most inputs to be kept and differ from the cloud, a share.")] = 0.05,
    delta: Annotated[float, typer.Option(help="One less the confidence of that.")] = 0.1,
) -> None:
    """Make a bundle: train, compress, fit, certify and pack by a recipe; or fit and certify two models of yours."""
    of_yours = {"--edge": edge, "--cloud": cloud, "--inputs": inputs}
    if (recipe is None) == (edge is None and cloud is None and inputs is None):
        raise ConfigError("build: give either RECIPE.toml or --edge, --cloud and --inputs")
    if recipe is not None and not recipe.is_file():
        raise ConfigError(f"{recipe}: no such recipe")
    if recipe is None and models is not None:
        raise ConfigError("build: --models needs the RECIPE.toml of that bundle")
    with extra("train"):
        from edgemux.cli import builder
    from rich.progress import Progress

    console = _console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        done = builder.Run(out, quick, work, progress)
        if recipe is not None:
            made = builder.by_recipe(recipe, models, done)
        else:
            made = builder.of_yours(of_yours, builder.About(labels, name, version, alpha, delta), done)
    typer.echo(str(made))


@app.command(epilog="Example: edgemux compress my_nets:small --data data.npz --recipe 'prune(lasso, 0.5) > int8'")
def compress(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="An .onnx file, or package.module:callable that makes a net.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The net's state_dict, as torch saves it.")
    ] = None,
    data: Annotated[str, typer.Option(metavar="FILE.npz", help="train_x, train_y, test_x, test_y.")] = "fashion-mnist",
    recipe: Annotated[str | None, typer.Option(help="Passes, as text or in a TOML file.")] = None,
    need: Annotated[str | None, typer.Option(help="Instead of a recipe: ms<2,kb<100,drop<0.5.")] = None,
    budget: Annotated[str, typer.Option(help="How long to search for a recipe.")] = "20min",
    target: Annotated[str, typer.Option(help="auto, x86-avx2, x86-vnni or arm64.")] = "auto",
    effort: Annotated[float, typer.Option(min=0.01, max=100.0, help="Factor on all training.")] = 1.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model goes.")] = Path("compressed"),
    passes: Annotated[bool, typer.Option("--passes", help="List the passes that are installed, and end.")] = False,
    json: JsonOption = False,
) -> None:
    """Compress a classifier by a recipe of passes, or by what it must keep; say what each pass did here."""
    with extra("train"):
        from edgemux.cli import compressor
    if passes:
        typer.echo(compressor.passes_for_people())
        return
    if model is None:
        raise ConfigError("compress: MODEL is needed, an .onnx file or package.module:callable")
    if (recipe is None) == (need is None):
        raise ConfigError("compress: give either --recipe or --need")

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    net = compressor.model_of(model, weights)
    if recipe is not None:
        artifact = compressor.by_recipe(net, data, recipe, target, effort, out, tell)
        _print_json(artifact.about) if json else typer.echo(f"{artifact.report()}\nsaved in {out}")
        return
    found = compressor.by_need(net, data, need or "", budget, target, effort, out, tell)
    if json:
        _print_json({"trials": found.trials, "front": [choice.trial for choice in found.front]})
    else:
        typer.echo(found.report())
    if found.best is None:
        raise PassError("compress: no recipe that was tried keeps the need; nothing is saved")
    typer.echo(f"saved in {out}: {found.best.trial.recipe or 'the original'}", err=json)


@app.command(epilog="Example: edgemux lab --data logits.npz --out report.html")
def lab(
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="edge_logits, cloud_logits [N,C]; labels [N], inputs [N,...] if any."),
    ] = None,
    edge: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="The device's model, instead of --data.")
    ] = None,
    cloud: Annotated[Path | None, typer.Option(metavar="FILE.onnx", help="The cloud's model.")] = None,
    inputs: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Inputs of both models, [N,...].")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Labels of the inputs, [N], if any.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="Where the report goes.")] = Path("lab.html"),
    alpha: Annotated[float, typer.Option(help="Most answers that may be kept and in error, a share.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Chance that the certificate is wrong.")] = 0.1,
    certify: Annotated[str, typer.Option(help="In error: differs from the 'cloud', or wrong by 'labels'.")] = "cloud",
    edge_ms: Annotated[float | None, typer.Option(min=0.0, help="What a device answer takes.")] = None,
    cloud_ms: Annotated[float | None, typer.Option(min=0.0, help="What a cloud answer takes, link included.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides the splits and the fits.")] = 0,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Save what an agent can run, print its policies. New, empty, or of an earlier run."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare every router on your own two models: table, plots, and a certificate."""
    if certify not in ("cloud", "labels"):
        raise ConfigError(f"--certify: {certify!r} is neither cloud nor labels")
    with extra("train"):
        from edgemux.cli import lab as bench
        from edgemux.multiplexer.lab.results import Options
    files = bench.Files(data, edge, cloud, inputs, labels)
    options = Options(alpha, delta, certify == "labels", seed, device_ms=edge_ms, cloud_ms=cloud_ms)
    found = bench.look(files, options, out, _console(stderr=True), save)
    if json:
        _print_json(found)
    else:
        bench.print_study(found, out, _console())


@app.command(epilog="Example: edgemux demo --requests 600 --link 80ms,2mbit")
def demo(
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: the repository's own.")] = None,
    requests: Annotated[int, typer.Option(help="How many requests are counted, over all phases.")] = 1500,
    rate: Annotated[float, typer.Option(min=0.1, max=10000, help="Requests per second, open loop.")] = 100.0,
    link: Annotated[str, typer.Option(help="The link between agent and cloud: round trip, bandwidth.")] = "40ms,10mbit",
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of every request, in s.")] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of the images.")] = 0,
    json: JsonOption = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when a request failed or was late.")] = False,
) -> None:
    """Send real images through an agent and a cloud on this machine while things go wrong."""
    with extra("edge,cloud"):
        from edgemux.cli import demo as show
    from edgemux.cli.link import parse_link
    from edgemux.cli.phases import MIN_REQUESTS
    from edgemux.multiplexer.bundle import Bundle

    if requests < MIN_REQUESTS:
        raise ConfigError(f"--requests: at least {MIN_REQUESTS}, so that every phase gets some")
    plan = show.Plan(requests, rate, parse_link(link), timeout, seed)
    console = None if json else _console()
    report = show.run(Bundle.open(bundle or show.starter_bundle()), plan, console)
    if json:
        _print_json(report)
    if strict and (report.errors or report.late):
        raise typer.Exit(1)


app.command(epilog="Example: edgemux ready 127.0.0.1:9000")(ready)
app.command(epilog="Example: edgemux traffic --to 127.0.0.1:9001 --rate 20")(traffic)


def _console(stderr: bool = False) -> Console:
    """Where readable output goes; tables keep their width when the output is a file or a pipe."""
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=max(console.width, 120))


def _print_json(value: Any) -> None:
    import msgspec

    typer.echo(msgspec.json.encode(value).decode())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Wrong use and expected failures become one line on stderr."""
    try:
        code = app(args=list(arguments), prog_name="edgemux", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "edgemux"
        return _refuse(f"{command}: {error.format_message()}", 2)
    except typer.Abort:
        return 130
    except (ExecutionError, PassError) as error:
        return _refuse(f"edgemux: {error}", 1)
    except EdgemuxError as error:
        return _refuse(f"edgemux: {error}", 2)
    return code if isinstance(code, int) else 0


def _refuse(message: str, code: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code


def main() -> None:
    """The entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
