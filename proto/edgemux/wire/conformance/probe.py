"""A probe, what became of it, and whether that is right: Triton's status, or a written reason for another one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgemux.multiplexer.errors import ConfigError


class Inapplicable(Exception):
    """The probe cannot be asked of this server or model; says why."""


class Probe(msgspec.Struct, frozen=True):
    """One question. name: room/what; expected: what Triton answers, as ``ask`` words it.

    extension: the protocol's extension that it is about, where there is one: a server may lack it, but must not list
    it then.
    """

    name: str
    expected: str
    ask: Callable[[Any], str]
    extension: str = ""


class Reason(msgspec.Struct, frozen=True):
    """Why a server answers ``got``, one or several ways, where Triton answers otherwise."""

    got: tuple[str, ...]
    reason: str


class Result(msgspec.Struct, frozen=True):
    """What became of a probe. ok: as expected, or otherwise for a reason, which is then given."""

    probe: str
    expected: str
    got: str
    ok: bool
    reason: str = ""


def judge(probe: Probe, got: str, reasons: Mapping[str, Reason], extensions: Sequence[str]) -> Result:
    """Compare an answer with Triton's. A reason holds for the answers that it names, not for others."""
    if got == probe.expected:
        return Result(probe.name, probe.expected, got, True)
    known = reasons.get(probe.name)
    if known is not None and got in known.got:
        return Result(probe.name, probe.expected, got, True, known.reason)
    if probe.extension and probe.extension not in extensions and _absent(got):
        return Result(
            probe.name, probe.expected, got, True, f"the server does not list the extension {probe.extension}"
        )
    return Result(probe.name, probe.expected, got, False)


def _absent(got: str) -> bool:
    """How a server says that it has no such thing."""
    return got.split(" ")[0] in ("UNIMPLEMENTED", "404", "405", "501")


def run(probes: Sequence[Probe], target: Any, reasons: Mapping[str, Reason], extensions: Sequence[str]) -> list[Result]:
    """Ask every probe, one after the other. What a probe itself cannot cope with is told as its answer."""
    results = []
    for probe in probes:
        try:
            result = judge(probe, probe.ask(target), reasons, extensions)
        except Inapplicable as why:
            result = Result(probe.name, probe.expected, "-", True, f"not asked: {why}")
        except Exception as error:  # a server may answer anything at all, and the others are to be asked all the same
            result = judge(probe, f"unreadable answer: {type(error).__name__}", reasons, extensions)
        results.append(result)
    return results


def parse_reasons(text: str) -> dict[str, Reason]:
    """Reasons by probe from TOML: ``[[difference]]`` with ``probes``, ``got`` (a text or several), ``reason``.

    Raises ConfigError.
    """
    reasons: dict[str, Reason] = {}
    try:
        for table in tomllib.loads(text)["difference"]:
            reason = _reason(table)
            for name in table["probes"]:
                reasons[name] = reason
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"reasons: {str(error).splitlines()[0][:200]}") from error
    return reasons


def read_reasons(path: Path) -> dict[str, Reason]:
    """Reasons of a file. Raises ConfigError."""
    try:
        return parse_reasons(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read") from error


def own_reasons(server: str) -> dict[str, Reason]:
    """The reasons that are kept here for our own servers, by the name in their metadata; none for others."""
    if not server.startswith("edgemux-"):
        return {}
    folder = Path(__file__).parent / "reasons"
    special = folder / f"{Path(server).name}.toml"
    return read_reasons(folder / "edgemux.toml") | (read_reasons(special) if special.is_file() else {})


def _reason(table: Any) -> Reason:
    got, reason = table["got"], table["reason"]
    several = (got,) if isinstance(got, str) else tuple(got)
    if not isinstance(reason, str) or not reason.strip() or not all(isinstance(each, str) for each in several):
        raise TypeError("got must be text, or a list of it, and reason must be text")
    return Reason(several, reason)
