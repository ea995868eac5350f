"""Certificates that are renewed while in use, one file after the other."""

from __future__ import annotations

import datetime
import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import REREAD_S, Certificates, Files, dates
from tests.authority import DAY, OPENSSL, Authority, Issued


class Clock:
    now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def pairs(authority: Authority) -> tuple[Issued, Issued]:
    return authority.issue("first"), authority.issue("second")


@pytest.fixture
def files(tmp_path: Path, pairs: tuple[Issued, Issued], authority: Authority) -> Files:
    """The first pair in files of its own."""
    where = Files(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    copy(pairs[0].cert, where.cert)
    copy(pairs[0].key, where.key)
    copy(authority.ca, where.ca)
    return where


def copy(source: Path, to: Path | None) -> None:
    assert to is not None
    shutil.copyfile(source, to)


def test_a_new_pair_is_taken_when_it_is_whole_and_half_of_it_is_not(
    files: Files, pairs: tuple[Issued, Issued], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    certificates = Certificates(files, "listen.tls", clock)
    first = certificates.current()
    copy(pairs[1].cert, files.cert)
    assert certificates.current() is first  # not looked at yet
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now_s += REREAD_S
            assert certificates.current() is first
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "certificates refused why=" in caplog.text
    assert "the key is another certificate's" in caplog.text
    copy(pairs[1].key, files.key)
    clock.now_s += REREAD_S
    second = certificates.current()
    assert second.cert == pairs[1].cert.read_bytes()
    assert second.key == pairs[1].key.read_bytes()
    assert certificates.current() is second


@pytest.mark.parametrize("half", ["cert", "key", "ca"])
def test_every_cut_of_a_file_leaves_the_pair_from_before(
    files: Files, pairs: tuple[Issued, Issued], authority: Authority, half: str
) -> None:
    certificates = Certificates(files, "listen.tls")
    first = certificates.current()
    path: Path = getattr(files, half)
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip()) - 1, 61):
        path.write_bytes(whole[:length])
        assert certificates.reload() is first
    path.unlink()
    assert certificates.reload() is first
    path.write_bytes(whole)
    assert certificates.reload().cert == first.cert


def test_the_first_pair_must_be_whole(files: Files, pairs: tuple[Issued, Issued]) -> None:
    copy(pairs[1].key, files.key)
    with pytest.raises(ConfigError, match=r"listen\.tls: the key is another certificate's"):
        Certificates(files, "listen.tls")
    assert files.key is not None
    files.key.unlink()
    with pytest.raises(ConfigError, match=r"listen\.tls\.key: cannot be read"):
        Certificates(files, "listen.tls")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    files: Files, pairs: tuple[Issued, Issued]
) -> None:
    command = [
        str(OPENSSL),
        "ec",
        "-in",
        str(pairs[0].key),
        "-aes128",
        "-passout",
        "pass:secret",
        "-out",
        str(files.key),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"^listen\.tls: "):
        Certificates(files, "listen.tls")


@pytest.mark.parametrize(
    ("first", "last", "trouble"),
    [(-2 * DAY, -DAY, "expired on"), (DAY, 2 * DAY, "is not valid before"), (-DAY, DAY, None)],
)
def test_the_own_certificate_s_dates_are_read_and_said(
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    first: datetime.timedelta,
    last: datetime.timedelta,
    trouble: str | None,
) -> None:
    issued = authority.issue("dated", first=first, last=last)
    now = datetime.datetime.now(datetime.UTC)
    since, until = dates(issued.cert.read_bytes())
    assert abs(since - (now + first)) < datetime.timedelta(minutes=2)
    assert abs(until - (now + last)) < datetime.timedelta(minutes=2)
    with caplog.at_level(logging.WARNING):
        pair = Certificates(Files(issued.cert, issued.key), "cloud.tls").current()
    said = pair.trouble(now)
    assert (said is None) if trouble is None else (said is not None and said.startswith(trouble))
    assert (trouble or "certificate expires setting=cloud.tls expires_on=") in caplog.text


def test_dates_after_2049_are_read_too(authority: Authority) -> None:
    issued = authority.issue("far", last=datetime.timedelta(days=40 * 365))
    assert dates(issued.cert.read_bytes())[1].year > 2060


@pytest.mark.parametrize("pem", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_has_no_dates(pem: bytes) -> None:
    with pytest.raises(ValueError, match="not a certificate"):
        dates(pem)
