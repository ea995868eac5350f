"""HTTP/1.1 as a probe needs it: any method, header and body, on one connection that is kept."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

import msgspec


class RestAnswer(msgspec.Struct, frozen=True):
    """headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The content; None when it is no JSON."""
        try:
            return json.loads(self.content)
        except ValueError:
            return None

    @property
    def verdict(self) -> str:
        """Status, and for a refusal whether it says why as the protocol wants: ``{"error": TEXT}``."""
        if self.status < 400:
            return str(self.status)
        content = self.json
        told = isinstance(content, dict) and isinstance(content.get("error"), str) and content["error"]
        return f"{self.status} error" if told else str(self.status)


class RestClient:
    """One connection, made anew when the server has closed it."""

    def __init__(self, address: str, patience_s: float) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)
        self._patience_s = patience_s
        self._connection = self._new()

    def _new(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=self._patience_s)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> RestAnswer:
        """Raises OSError and http.client.HTTPException."""
        try:
            return self._ask(method, path, body, headers or {})
        except (OSError, http.client.HTTPException):  # closed while it was idle; or it is so again
            self._connection.close()
            return self._ask(method, path, body, headers or {})

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> RestAnswer:
        self._connection.request(method, path, body, dict(headers))
        return _read(self._connection.getresponse())

    def post(self, path: str, content: Any, headers: Mapping[str, str] | None = None) -> RestAnswer:
        """With a JSON body."""
        return self.ask("POST", path, json.dumps(content).encode(), headers)

    def twice(self, path: str) -> tuple[RestAnswer, RestAnswer, bool]:
        """Two requests, and whether both went over the same connection."""
        self._connection.close()
        first = self._ask("GET", path, None, {})
        kept = self._connection.sock is not None
        return first, self.ask("GET", path), kept

    def raw(self, content: bytes) -> str:
        """Bytes as they are over a connection of their own: the first line's status, or ``closed``."""
        address = (self.host, self.port)
        with contextlib.closing(socket.create_connection(address, self._patience_s)) as connection:
            try:
                connection.sendall(content)
                line = connection.makefile("rb").readline(200)
            except OSError:
                return "closed"
        parts = line.split()
        return parts[1].decode("latin-1") if len(parts) > 1 and line.startswith(b"HTTP/") else "closed"


def _read(response: http.client.HTTPResponse) -> RestAnswer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return RestAnswer(response.status, headers, response.read())
