"""HTTP/2 by hand: what no gRPC library would send, half a message, a byte at a time, or nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = 8
INFER = "/inference.GRPCInferenceService/ModelInfer"
_NO_LINGER = struct.pack("ii", 1, 0)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def message(content: bytes, claimed: int | None = None) -> bytes:
    """A gRPC message, uncompressed; ``claimed``: the length that it says it has."""
    return b"\0" + (len(content) if claimed is None else claimed).to_bytes(4, "big") + content


def headers(timeout: str | None) -> bytes:
    """A header block of a ModelInfer, every field literal and never indexed; ``timeout``: as gRPC's header has it."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": INFER,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    if timeout is not None:
        fields["grpc-timeout"] = timeout
    return b"".join(b"\x10" + _text(name) + _text(value) for name, value in fields.items())


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _text(text: str) -> bytes:
    """Length, below 127, and octets."""
    return bytes([len(text)]) + text.encode()


class Connection:
    """A connection to ``HOST:PORT`` that has said the preface; it reads nothing unless told to."""

    def __init__(self, address: str, speak: bool = True) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30.0)
        self._stream = -1
        if speak:
            self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def call(self, content: bytes = b"", end: bool = False, timeout: str | None = None) -> int:
        """Begin a ModelInfer and send the first bytes of its message; returns the stream."""
        self._stream += 2
        first = frame(HEADERS, END_HEADERS, self._stream, headers(timeout))
        self.socket.sendall(first + frame(DATA, END_STREAM if end else 0, self._stream, content))
        return self._stream

    def more(self, stream: int, content: bytes) -> None:
        """Send more of a stream's message."""
        self.socket.sendall(frame(DATA, 0, stream, content))

    def cancel(self, stream: int) -> None:
        """Give up a stream."""
        self.socket.sendall(frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big")))

    def drain(self) -> bytes:
        """Whatever there is to read now."""
        found = b""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while chunk := self.socket.recv(65536):
                found += chunk
        self.socket.setblocking(True)
        return found

    def until(self, wanted: bytes, seconds: float = 30.0) -> bool:
        """Read until ``wanted`` comes, or a stream is reset; False when neither does."""
        self.socket.settimeout(seconds)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while wanted not in found and frame(RST_STREAM, 0, self._stream, b"\0" * 4)[:9] not in found:
                chunk = self.socket.recv(65536)
                if not chunk:
                    return False
                found += chunk
            return True
        return False

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.socket.close()

    def closed_within(self, seconds: float) -> bool:
        """Whether the other side closes within so many seconds; reads what comes until then."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True
