"""The blocks of a page of the documentation, and a reader who does what they say.

A block of bash, sh, python or toml is run, unless a comment right before it says otherwise:

    <!-- not run: REASON -->     a reader can, a test cannot
    <!-- file: NAME -->          the block is the content of a file, for the blocks after it

A page that takes for granted that servers of the starter bundle run says so once, above its blocks:

    <!-- servers: cloud edge -->

bash: lines that start a server (edgemux cloud, edgemux edge) leave it running; the others are run by bash, which stops
at the first that fails. toml: what is no file must be a configuration of the agent's or of the cloud's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgemux.cloud.config import CloudConfig
from edgemux.edge.config import EdgeConfig
from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.settings import load_settings

ROOT = Path(__file__).parents[1]
RUN = ("bash", "sh", "python", "toml")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<word>not run|file): (?P<text>.+?) -->\n+)?^```(?P<language>\w*)\n(?P<content>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SERVERS = re.compile(r"^<!-- servers:((?: cloud| edge)+) -->$", re.MULTILINE)
_COMMENT = re.compile(r"^<!-- (?!(?:not run|file|servers): .+ -->$)", re.MULTILINE)
_SERVER = re.compile(r"^edgemux (cloud|edge) ")
_READY = re.compile(r"edgemux (cloud|edge) ready .*grpc=(\S+) http=(\S+) metrics=(\S+)")
_ADDRESS = re.compile(r"\b((?:127\.0\.0\.1|localhost):)(\d{4})\b")
# What a page may say of where a server listens: its defaults. Here they may be in use, so others stand in for them.
_DEFAULTS = {"cloud": ("8001", "8000", "8002"), "edge": ("9001", "9000", "9002")}
_SLOW_S = 100.0


class Block(msgspec.Struct, frozen=True):
    """A block: its language, content and line; why it is not run, or which file it is, empty for neither."""

    language: str
    content: str
    line: int
    not_run: str = ""
    file: str = ""

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.not_run


def blocks(page: str) -> list[Block]:
    """In the order of the page. Raises ValueError for a comment that is nearly one of ours."""
    for found in _COMMENT.finditer(page):
        raise ValueError(f"line {page[: found.start()].count(chr(10)) + 1}: neither not run: nor file: nor servers:")
    return [
        Block(
            found["language"],
            found["content"],
            page[: found.start("language")].count("\n") + 1,
            not_run=found["text"] if found["word"] == "not run" else "",
            file=found["text"] if found["word"] == "file" else "",
        )
        for found in _BLOCK.finditer(page)
    ]


def servers(page: str) -> list[str]:
    """Commands that start what the page takes for granted."""
    found = _SERVERS.search(page)
    parts = [] if found is None else found[1].split()
    ours = {part: f"edgemux {part} --bundle deploy/bundles/fashion-mnist" for part in parts}
    if len(parts) == 2:
        ours["edge"] += " --cloud 127.0.0.1:8001"
    return [ours[part] for part in sorted(parts)]


class Reader:
    """Does what the blocks of a page say, in ``folder``, where deploy/ lies as in a checkout. To be closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[subprocess.Popen[str]] = []
        self._ports: dict[str, str] = {}
        (folder / "deploy").symlink_to(ROOT / "deploy")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.communicate(timeout=60)

    def follow(self, block: Block) -> None:
        """Raises AssertionError with what a block printed when it fails."""
        if block.file:
            (self._folder / block.file).write_text(self._here(block.content))
        elif block.language == "toml":
            check_settings(block.content)
        elif block.language == "python":
            self._run([sys.executable, "-c", self._here(block.content)])
        elif block.language == "sh":
            self._run(["sh", "-e", "-c", self._here(block.content)])
        else:
            for part in parts(block.content):
                self.start(part) if _SERVER.match(part) else self._run(
                    ["bash", "-e", "-o", "pipefail", "-c", self._here(part)]
                )

    def _here(self, text: str) -> str:
        """The same with the ports that servers have here, for the ports that the page gives them."""
        return _ADDRESS.sub(lambda found: found[1] + self._ports.get(found[2], found[2]), text)

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "no_proxy": "127.0.0.1,localhost"}

    def start(self, line: str) -> None:
        """Start a server and wait until it is ready; it stays. Raises AssertionError with its log."""
        words = shlex.split(self._here(line), comments=True)
        options = [f"--{name}-port" for name in ("grpc", "http", "metrics")]
        told = [words[words.index(option) + 1] if option in words else None for option in options]
        words += [word for option in options for word in (option, "0")]
        log = (self._folder / f"server-{len(self._servers)}.log").open("w+")
        server = subprocess.Popen(
            words, cwd=self._folder, env=self._environment(), text=True, stdout=subprocess.PIPE, stderr=log
        )
        self._servers.append(server)
        assert server.stdout is not None
        ready = _READY.search(server.stdout.readline())
        log.seek(0)
        assert ready is not None, f"{line}: {log.read()}"
        log.close()
        part, *addresses = ready.groups()
        for default, number, address in zip(_DEFAULTS[part], told, addresses, strict=True):
            self._ports[number or default] = address.rpartition(":")[2]

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_SLOW_S,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


def parts(content: str) -> Iterator[str]:
    """A block of bash as commands that are run together, and lines that start a server."""
    together: list[str] = []
    for line in content.splitlines():
        if _SERVER.match(line):
            if together:
                yield "\n".join(together)
            together = []
            yield line
        else:
            together.append(line)
    if any(line.strip() and not line.startswith("#") for line in together):
        yield "\n".join(together)


def check_settings(content: str) -> None:
    """Raises AssertionError where ``content``, with a bundle, is a configuration of neither side."""
    settings: dict[str, Any] = tomllib.loads(content)
    wrong = []
    for kind in (EdgeConfig, CloudConfig):
        given = {"bundle": "DIR"} if not {"bundle", "applications", "models"} & settings.keys() else {}
        try:
            _load(kind, given | settings)
        except ConfigError as error:
            wrong.append(str(error))
        else:
            return
    raise AssertionError(f"{content}\nneither the agent's ({wrong[0]}) nor the cloud's ({wrong[1]})")


def _load(kind: type, settings: dict[str, Any]) -> None:
    flat = {f"{key}": value for key, value in settings.items()}
    load_settings(kind, None, flat)
