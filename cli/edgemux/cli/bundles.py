"""What `edgemux bundle inspect` says about a bundle."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from edgemux.multiplexer.bundle import Bundle, Level, Model, Split, splits_of, tail_model


def describe(bundle: Bundle) -> dict[str, Any]:
    """The bundle as plain values; ``bytes`` of a model is the size of all the files that it needs."""
    manifest = bundle.manifest
    gates = manifest.multiplexer
    return {
        "name": manifest.name,
        "version": manifest.version,
        "inputs": msgspec.to_builtins(manifest.inputs),
        "outputs": msgspec.to_builtins(manifest.outputs),
        "classes": list(manifest.classes),
        "levels": [_model(bundle, level) for level in manifest.levels],
        "cloud": _model(bundle, manifest.cloud),
        "multiplexer": {
            "bytes": bundle.size(tuple(dict.fromkeys((gates.pre_gate, gates.post_gate)))),
            "median_ms": gates.median_ms,
        },
        "payloads": [] if manifest.payloads is msgspec.UNSET else msgspec.to_builtins(manifest.payloads),
        "splits": [_split(bundle, split) for split in splits_of(manifest)],
        "certificate": msgspec.to_builtins(manifest.certificate),
        "provenance": msgspec.to_builtins(manifest.provenance),
        "digest": manifest.digest,
    }


def _model(bundle: Bundle, model: Model) -> dict[str, Any]:
    return {
        # The cloud's model is no member of the nested family.
        "level": model.level if isinstance(model, Level) else None,
        "name": model.name,
        "files": list(model.files),
        "bytes": bundle.size(model.files),
        "params": model.params,
        "macs": model.macs,
        "accuracy": model.accuracy,
        "median_ms": model.median_ms,
    }


def _split(bundle: Bundle, split: Split) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(split)
    return described | {
        "model": tail_model(bundle.manifest.name, split.name),
        "head_bytes": bundle.size((split.head,)),
        "tail_bytes": bundle.size((split.tail,)),
    }


def print_description(about: dict[str, Any], console: Console) -> None:
    """The same for a reader."""
    inputs = ", ".join(f"{tensor['name']} {tensor['datatype']} {tensor['shape']}" for tensor in about["inputs"])
    for line in (
        f"{about['name']} {about['version']}, digest {about['digest'][:16]}",
        f"input {inputs}; {len(about['classes'])} classes: {', '.join(about['classes'])}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("model")
    # A bundle that was made without labels knows only how often its models agree with the cloud's.
    right = "accuracy" if about["provenance"]["measured"].get("labelled", 1.0) else "agreement"
    for column in ("level", "bytes", "params", "macs", right, "median ms"):
        table.add_column(column, justify="right")
    for model in (*about["levels"], about["cloud"]):
        table.add_row(
            model["name"],
            "-" if model["level"] is None else str(model["level"]),
            *(f"{model[key]:,}" for key in ("bytes", "params", "macs")),
            f"{model['accuracy'] * 100:.2f} %",
            f"{model['median_ms']:.3f}",
        )
    gates = about["multiplexer"]
    table.add_section()
    table.add_row("multiplexer", "-", f"{gates['bytes']:,}", "", "", "", f"{gates['median_ms']:.3f}")
    console.print(table)
    for rows in (_payload_table(about["payloads"], right), _split_table(about["splits"], right)):
        if rows.row_count:
            console.print(rows)
    console.print(f"measured on {about['provenance']['hardware']}", highlight=False, markup=False, soft_wrap=True)
    if note := about["provenance"]["verdicts"].get("router"):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(_certified(about["certificate"]), highlight=False, markup=False, soft_wrap=True)


def _payload_table(payloads: list[dict[str, Any]], right: str) -> Table:
    """``right``: what the share of right answers is called."""
    table = _titled("inputs can be sent as", "form", "bytes", "label changed", right, "encode ms", "decode ms")
    for each in payloads:
        shares = (f"{each[key] * 100:.2f} %" for key in ("changed", "accuracy"))
        times = (f"{each[key]:.3f}" for key in ("encode_ms", "decode_ms"))
        table.add_row(each["encoding"], f"{each['bytes']:,.0f}", *shares, *times)
    return table


def _split_table(splits: list[dict[str, Any]], right: str) -> Table:
    titles = ("head bytes", "tail bytes", "tail M macs", "bits", "sent bytes")
    table = _titled("splits", "split", "level", *titles, "label changed", right, "head ms", "tail ms")
    for each in splits:
        files = (f"{each[key]:,}" for key in ("head_bytes", "tail_bytes"))
        sizes = (*files, f"{each['tail_macs'] / 1e6:.1f}", str(each["bits"]), f"{each['bytes']:,.0f}")
        shares = (f"{each[key] * 100:.2f} %" for key in ("changed", "accuracy"))
        times = (f"{each[key]:.3f}" for key in ("head_ms", "tail_ms"))
        table.add_row(each["name"], str(each["level"] or "-"), *sizes, *shares, *times)
    return table


def _titled(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left")
    # A name is what one copies into a configuration: whole, even where the numbers' titles take three lines then.
    table.add_column(first, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _certified(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "no certificate"
    bounds = ", ".join(
        f"level {level['level']} keeps {level['kept'] * 100:.1f} % and differs in at most "
        f"{level['upper_bound'] * 100:.2f} %"
        for level in certificate["levels"]
    )
    confidence = (1 - certificate["delta"]) * 100
    return f"certified on {certificate['n']} inputs, confidence {confidence:g} %: {bounds or 'no level'}"
