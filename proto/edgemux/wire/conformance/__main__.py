"""The command: every probe, a table, and an exit status.

    python -m edgemux.wire.conformance HOST:PORT [--http HOST:PORT] [--admin HOST:PORT] [--model NAME] [--reasons FILE]
        [--only TEXT] [--json]

0: every probe is answered as Triton answers it, or for a written reason otherwise. 1: one is not. 2: wrong use, or no
server there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgemux.multiplexer.errors import EdgemuxError
from edgemux.wire.conformance import (
    admin_probes,
    infer_probes,
    rest_infer_probes,
    rest_probes,
    server_probes,
    stream_probes,
)
from edgemux.wire.conformance.probe import Probe, Reason, Result, own_reasons, read_reasons, run
from edgemux.wire.conformance.target import Target

PROBES: tuple[Probe, ...] = (
    *server_probes.PROBES,
    *infer_probes.PROBES,
    *stream_probes.PROBES,
    *admin_probes.PROBES,
    *rest_probes.PROBES,
    *rest_infer_probes.PROBES,
)
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")


def probe_server(
    address: str,
    http: str | None = None,
    model: str | None = None,
    reasons: Mapping[str, Reason] | None = None,
    only: str = "",
    admin: str | None = None,
) -> list[Result]:
    """Ask a server every probe whose name holds ``only``. Raises EdgemuxError when it cannot be asked."""
    target = Target(address, http, model, admin)
    try:
        known = own_reasons(target.server) | dict(reasons or {})
        return run([each for each in PROBES if only in each.name], target, known, target.extensions)
    finally:
        target.close()


def table(results: Sequence[Result]) -> str:
    """For people: a line a probe, the failed ones marked, and a last line with the counts."""
    widths = [max(len(getattr(each, field)) for each in results) for field in ("probe", "expected", "got")]
    lines = []
    for each in results:
        cells = [text.ljust(width) for text, width in zip((each.probe, each.expected, each.got), widths, strict=True)]
        lines.append(" ".join(["ok  " if each.ok else "FAIL", *cells, each.reason]).rstrip())
    failed = sum(not each.ok for each in results)
    differing = sum(each.ok and each.got != each.expected for each in results)
    same = len(results) - failed - differing
    lines.append(f"{len(results)} probes: {same} as Triton, {differing} otherwise for a reason, {failed} failed")
    return "\n".join(lines)


def _address(text: str) -> str:
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[1]) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """Wrong use is one line."""
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = _Parser(prog="python -m edgemux.wire.conformance", description="Probe an Open Inference Protocol server.")
    parser.add_argument("address", type=_address, metavar="HOST:PORT", help="of its gRPC side")
    parser.add_argument("--http", type=_address, metavar="HOST:PORT", help="of its REST side, probed only when given")
    parser.add_argument(
        "--admin", type=_address, metavar="HOST:PORT", help="that takes orders; the model is loaded anew"
    )
    parser.add_argument("--model", help="one with numeric inputs; the first of the server's index when left out")
    parser.add_argument(
        "--reasons", type=Path, metavar="FILE", help="TOML: known differences from Triton, with reasons"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="probes whose name holds it")
    parser.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(arguments)
    try:
        reasons = {} if options.reasons is None else read_reasons(options.reasons)
        results = probe_server(options.address, options.http, options.model, reasons, options.only, options.admin)
    except EdgemuxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not results:
        print(f"error: no probe's name holds {options.only!r}", file=sys.stderr)
        return 2
    print(msgspec.json.encode(results).decode() if options.json else table(results))
    return 0 if all(each.ok for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
