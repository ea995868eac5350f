"""The live page of a server: a shell that holds nothing and is open to all, and its data, which is guarded.

Everything the page is made of lies in ``page/`` and comes from the server itself: it works without internet.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import platform
import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from edgemux.wire.http import Page, Request
from edgemux.wire.security import Guard

DATA = "/live.json"
ASSETS = "/assets/"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_SHELL = "index.html"
# Nothing but what the server itself serves; pictures are drawn by the page.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# Names that only the own network gives out. Any other may be made to mean this machine by whoever owns it.
_OWN_ENDINGS = (".local", ".localhost", ".internal", ".lan", ".home.arpa")
_FOREIGN_NAME = "host: without a token this is only told to whoever asks by an address or by a name of the own network"


class Live:
    """A Site: the shell at ``/``, what it needs below ``/assets/``, and ``/live.json``."""

    def __init__(self, data: Callable[[int], dict[str, Any]], guard: Guard) -> None:
        """``data``: what is true now, and of the inputs those after that number."""
        self._data = data
        self._guard = guard
        self._version = version("edgemux")
        self._started_s = time.monotonic()
        # In a container every process has the same number.
        self._life = secrets.token_hex(8)

    def opens(self, path: str) -> bool:
        """Whether what lies there holds no data."""
        return path == "/" or path.startswith(ASSETS)

    def page(self, path: str, request: Request) -> Page | None:
        """What a path answers, None where there is nothing of this page."""
        if path == DATA:
            return self._told(request)
        if not self.opens(path):
            return None
        asset = assets().get(_SHELL if path == "/" else path.removeprefix(ASSETS))
        return None if asset is None else Page(200, *asset, HEADERS)

    def _told(self, request: Request) -> Page:
        if self._guard.gate.open and not is_own_name(request.headers.get(b"host", b"")):
            return Page(421, {"error": _FOREIGN_NAME}, headers=HEADERS)
        told = self._here() | self._data(after(request.target)) | {"security": self._guard.describe()}
        return Page(200, told, headers=HEADERS)

    def _here(self) -> dict[str, Any]:
        """This process and its machine. ``clock_s`` is monotonic, ``time_s`` of the wall clock."""
        now_s = time.monotonic()
        return {
            "release": self._version,
            "host": platform.node(),
            "machine": platform.machine(),
            "process": os.getpid(),
            "life": self._life,
            "clock_s": round(now_s, 6),
            "time_s": round(time.time(), 3),
            "up_s": round(now_s - self._started_s, 1),
        }


@functools.cache
def assets() -> dict[str, tuple[bytes, str]]:
    """Content and type of each file of the page, by name. Read when first asked for: most agents nobody looks at."""
    return {
        each.name: (each.read_bytes(), f"{_TYPES[os.path.splitext(each.name)[1]]}; charset=utf-8")
        for each in files("edgemux.wire").joinpath("page").iterdir()
        if each.is_file()
    }


def after(target: bytes) -> int:
    """The number in ``?after=``: that of the latest input that the page has already; 0 for none, or for nonsense."""
    given = parse_qs(str(target.partition(b"?")[2], "latin-1")).get("after", ["0"])[0]
    return int(given) if given.isascii() and given.isdigit() and len(given) <= 18 else 0


def is_own_name(host: bytes) -> bool:
    """Whether a Host header is an address, or a name that no stranger gives out.

    Someone else's page, under someone else's name that suddenly means this machine, would else be read as our own
    (DNS rebinding).
    """
    name = str(host, "latin-1").strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        name = name.rstrip(".")
        return name != "" and ("." not in name or name.endswith(_OWN_ENDINGS))
    return True
