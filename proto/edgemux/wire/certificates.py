"""Certificates in files: read whole or not at all, replaced while in use, and with their dates.

Files are never trusted to be whole: whoever renews a certificate writes two files, one after the other. A pair is
taken when its key is the certificate's; until then the pair that was taken last stays in use.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.events import (
    CertificateExpires,
    CertificatesRefused,
    CertificatesRenewed,
    CertificateUnfit,
    Name,
    tell,
    why,
)

# How long a change on disk may go unnoticed; reading a few kilobytes that are in the page cache takes 0.1 ms.
REREAD_S = 1.0
MAX_FILE_BYTES = 2**20
# Long enough for somebody to see it in the log, short enough not to be usual for certificates of a week.
SOON = datetime.timedelta(days=2)
_VALIDITY_AT = 4  # in a tbsCertificate that has a version: version, serial, algorithm, issuer, validity

T = TypeVar("T")

_log = logging.getLogger("edgemux.wire")


class Files(msgspec.Struct, frozen=True):
    """PEM files of one side: an authority ``ca`` for the other side's certificate, an own ``cert`` with its ``key``.

    Each may be None, but ``cert`` and ``key`` go together.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None


class Pair(msgspec.Struct, frozen=True):
    """What was in the files at one moment, proved to belong together. ``until``: the own certificate's last second."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None
    since: datetime.datetime | None
    until: datetime.datetime | None

    def trouble(self, now: datetime.datetime) -> str | None:
        """What is wrong with the own certificate's dates, None when nothing is."""
        if self.until is not None and now > self.until:
            return f"expired on {self.until.isoformat()}"
        if self.since is not None and now < self.since:
            return f"is not valid before {self.since.isoformat()}, or the clock is wrong"
        return None


class Reread(Generic[T]):
    """A value that stands in files which are replaced while it is in use. Thread-safe.

    Whoever inherits reads it: ``_look`` sets ``_value`` when the files have changed and can be used, under the lock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._value: T
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_s = clock()

    def current(self) -> T:
        """The value in use; looks at the files when nobody has for REREAD_S. Compare with ``is`` to see a change."""
        if self._clock() - self._looked_s >= REREAD_S and self._lock.acquire(blocking=False):
            try:
                self._look_now()
            finally:
                self._lock.release()
        return self._value

    def reload(self) -> T:
        """The value in use, after a look at the files."""
        with self._lock:
            self._look_now()
        return self._value

    def _look_now(self) -> None:
        self._looked_s = self._clock()
        self._look()

    def _look(self) -> None:
        raise NotImplementedError


class Certificates(Reread[Pair]):
    """The pair in use, taken from ``files`` again when they change. Thread-safe.

    ``name`` is what the log and errors call the files: a section of the configuration.
    """

    def __init__(self, files: Files, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError when there is no whole pair to begin with."""
        super().__init__(clock)
        self._files = files
        self._name = name
        contents = _read(files, name)
        self._tried = _digest(contents)
        self._value = whole(contents, name)
        self._say_dates()

    def _look(self) -> None:
        try:
            contents = _read(self._files, self._name)
        except ConfigError as error:
            self._keep(error, b"unreadable")
            return
        digest = _digest(contents)
        if digest == self._tried:
            return
        try:
            self._value = whole(contents, self._name)
        except ConfigError as error:
            self._keep(error, digest)
            return
        self._tried = digest
        tell(_log, CertificatesRenewed(setting=Name(self._name)))
        self._say_dates()

    def _keep(self, error: ConfigError, digest: bytes) -> None:
        """Said once for every state of the files."""
        if digest != self._tried:
            self._tried = digest
            tell(_log, CertificatesRefused(why=why(error)))

    def _say_dates(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        trouble = self._value.trouble(now)
        if trouble is not None:
            tell(_log, CertificateUnfit(setting=Name(self._name), trouble=Name(trouble)))
        elif self._value.until is not None and self._value.until - now < SOON:
            until = Name(self._value.until.isoformat())
            tell(_log, CertificateExpires(setting=Name(self._name), expires_on=until))


def whole(contents: tuple[bytes | None, bytes | None, bytes | None], name: str) -> Pair:
    """The pair out of (certificate, key, authority). Raises ConfigError when they do not belong together."""
    cert, key, ca = contents
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load(context, Pair(cert, key, ca, None, None), name)
    if cert is None:
        return Pair(None, None, ca, None, None)
    try:
        since, until = dates(cert)
    except ValueError as error:
        raise ConfigError(f"{name}: the certificate's dates cannot be read") from error
    return Pair(cert, key, ca, since, until)


def load(context: ssl.SSLContext, pair: Pair, name: str) -> None:
    """Put a pair into an ssl context. Raises ConfigError when OpenSSL refuses it."""
    try:
        if pair.cert is not None and pair.key is not None:
            with _as_file(pair.cert) as cert, _as_file(pair.key) as key:
                # Without a password here OpenSSL asks for one on the terminal, and waits.
                context.load_cert_chain(cert, key, password=lambda: b"")
        if pair.ca is not None:
            context.load_verify_locations(cadata=pair.ca.decode("ascii"))
    except ssl.SSLError as error:
        reason = "the key is another certificate's" if error.reason == "KEY_VALUES_MISMATCH" else "not whole PEM files"
        raise ConfigError(f"{name}: {reason}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: not PEM files") from error


def server_context(pair: Pair, name: str) -> ssl.SSLContext:
    """A server's ssl context; where there is an authority, clients must show a certificate of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load(context, pair, name)
    if pair.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def dates(pem: bytes) -> tuple[datetime.datetime, datetime.datetime]:
    """First and last second of the first certificate in PEM text, UTC. Raises ValueError when it is none.

    The standard library reads the dates of a peer's certificate only; these are three steps into X.509's DER.
    """
    try:
        text = pem.decode("ascii")
        start, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[start : end + len(ssl.PEM_FOOTER)])
        certificate = next(_fields(der))[1]
        signed = list(_fields(next(_fields(certificate))[1]))
        validity = signed[_VALIDITY_AT if signed[0][0] == 0xA0 else _VALIDITY_AT - 1][1]
        first, last = _fields(validity)
        return _time(*first), _time(*last)
    except (ValueError, IndexError, StopIteration) as error:
        raise ValueError("not a certificate") from error


def _fields(der: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of each value in a row of DER values with tags of one byte."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        if at + length > len(der):
            raise ValueError("cut off")
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> datetime.datetime:
    """UTCTime (tag 23, years 1950 to 2049) or GeneralizedTime (24), both in seconds and UTC by RFC 5280."""
    text = content.decode("ascii")
    if tag == 23:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != 24:
        raise ValueError("not a time")
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)


def _read(files: Files, name: str) -> tuple[bytes | None, bytes | None, bytes | None]:
    return read_file(files.cert, f"{name}.cert"), read_file(files.key, f"{name}.key"), read_file(files.ca, f"{name}.ca")


def read_file(path: Path | None, name: str) -> bytes | None:
    """A small file's content, None for no file. Raises ConfigError."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: more than {MAX_FILE_BYTES} bytes")
    return content


def _digest(contents: tuple[bytes | None, ...]) -> bytes:
    digests = (hashlib.sha256(content).digest() if content is not None else b"-" for content in contents)
    return hashlib.sha256(b"".join(digests)).digest()


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Bytes under a name, for a library that reads nothing else: what was checked must be what is loaded."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("edgemux", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:  # only its owner may read it
            file.write(content)
            file.flush()
            yield file.name
