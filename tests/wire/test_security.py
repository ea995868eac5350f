"""Who may listen where, who may ask, and what tokens are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import REREAD_S
from edgemux.wire.channel import client_files
from edgemux.wire.http import App
from edgemux.wire.process import Listen
from edgemux.wire.security import (
    ClientTls,
    Gate,
    ServerTls,
    TokenFile,
    check_exposure,
    is_loopback,
    read_tokens,
)

TOKEN = "a-token-of-twenty-ch"
OTHER = "another-token-of-27-letters"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def tokens_in(path: Path, *tokens: str, clock: Any = None) -> TokenFile:
    path.write_text("\n".join(tokens))
    return TokenFile(path, "listen.token_file", clock or Clock())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"])
def test_this_machine_alone_is_loopback(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, encrypted=False, authenticated=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", "127.0.0.1.example.org", ""])
def test_beyond_this_machine_it_takes_tls_and_a_token_or_a_word(host: str) -> None:
    assert not is_loopback(host)
    for encrypted, authenticated in ((False, False), (True, False), (False, True)):
        with pytest.raises(ConfigError, match="or --insecure") as refusal:
            check_exposure(host, encrypted, authenticated, insecure=False)
        assert ("listen.tls.cert" in str(refusal.value)) is not encrypted
        assert ("listen.token_file" in str(refusal.value)) is not authenticated
        check_exposure(host, encrypted, authenticated, insecure=True)
    check_exposure(host, encrypted=True, authenticated=True, insecure=False)


def test_loopback_is_the_default() -> None:
    assert is_loopback(Listen(grpc_port=0, http_port=0, metrics_port=0).host)


@pytest.mark.parametrize("given", [{"cert": "a"}, {"key": "a"}, {"client_ca": "a"}])
def test_half_of_a_server_s_tls_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cert and key"):
        ServerTls(**{name: Path(value) for name, value in given.items()})


def test_half_of_a_client_s_tls_is_refused_and_any_of_it_turns_it_on() -> None:
    with pytest.raises(ValueError, match="cert and key go together"):
        ClientTls(cert=Path("a"))
    with pytest.raises(ValueError, match="enabled is false"):
        ClientTls(enabled=False, ca=Path("a"))
    assert not ClientTls().on
    assert all(tls.on for tls in (ClientTls(enabled=True), ClientTls(ca=Path("a")), ClientTls(server_name="a")))


def test_a_token_is_not_sent_for_all_to_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    with pytest.raises(ConfigError, match=r"cloud\.token_file: a token is sent only over TLS"):
        client_files("192.0.2.7:8001", ClientTls(), path, "cloud")
    assert client_files("127.0.0.1:8001", ClientTls(), path, "cloud")[1] is not None
    assert client_files("192.0.2.7:8001", ClientTls(enabled=True), path, "cloud")[1] is not None


def test_lines_are_tokens_but_for_comments_and_empty_ones() -> None:
    assert read_tokens(f"# old\n{TOKEN}\n\n  {OTHER}  \r\n".encode(), "f") == (TOKEN, OTHER)


@pytest.mark.parametrize("content", [b"", b"# none\n", b"short", b"has spaces in its middle part", b"\xff" * 20])
def test_what_holds_no_token_is_refused_naming_the_setting_and_not_the_content(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^f: ") as refusal:
        read_tokens(content, "f")
    assert "spaces" not in str(refusal.value)


@given(st.text())
def test_no_header_but_a_known_token_s_passes(header: str) -> None:
    class Fixed:
        def current(self) -> tuple[str, ...]:
            return (TOKEN, OTHER)

    gate = Gate(Fixed())  # type: ignore[arg-type]
    assert gate.allows(header) is (header in {f"Bearer {TOKEN}", f"Bearer {OTHER}", f"bearer {TOKEN}"})
    assert gate.allows(f"Bearer {TOKEN}")
    assert gate.allows(f"bearer {OTHER}")
    assert not gate.allows(f"Bearer {TOKEN}{header or 'x'}")
    assert not gate.allows(None)


def test_a_gate_without_tokens_is_open() -> None:
    assert Gate().open
    assert Gate().allows(None)


def test_tokens_are_rotated_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    tokens = tokens_in(tmp_path / "tokens", TOKEN, clock=clock)
    gate = Gate(tokens)
    (tmp_path / "tokens").write_text(f"{TOKEN}\n{OTHER}\n")
    assert not gate.allows(f"Bearer {OTHER}")
    clock.now_s += REREAD_S
    assert gate.allows(f"Bearer {OTHER}")
    assert gate.allows(f"Bearer {TOKEN}")
    (tmp_path / "tokens").write_text(OTHER)
    tokens.reload()
    assert not gate.allows(f"Bearer {TOKEN}")


@pytest.mark.parametrize("content", ["", "short", None])
def test_a_token_file_that_is_no_use_any_more_leaves_the_old_tokens_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    tokens = tokens_in(tmp_path / "tokens", TOKEN)
    if content is None:
        (tmp_path / "tokens").unlink()
    else:
        (tmp_path / "tokens").write_text(content)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tokens.reload() == (TOKEN,)
    assert len(caplog.records) == 1
    assert "tokens refused why=" in caplog.text
    assert TOKEN not in caplog.text
    (tmp_path / "tokens").write_text(OTHER)
    assert tokens.reload() == (OTHER,)


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/status", None, 401),
        ("/status", b"Bearer " + b"x" * 20, 401),
        ("/status", b"Bearer " + TOKEN.encode(), 200),
        ("/nowhere", None, 401),
        ("/v2/health/ready", None, 200),
        ("/v2/health/../status", None, 404),
    ],
)
async def test_pages_but_health_need_a_token(tmp_path: Path, path: str, header: bytes | None, status: int) -> None:
    from edgemux.wire.http import Page

    pages = {"/status": lambda: Page(200, {}), "/v2/health/ready": lambda: Page(200, {})}
    app = App(pages, Gate(tokens_in(tmp_path / "tokens", TOKEN)))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [] if header is None else [(b"authorization", header)]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    await app(scope, receive, send)
    assert sent[0]["status"] == status
    assert ((b"www-authenticate", b"Bearer") in sent[0]["headers"]) is (status == 401)


def test_the_settings_come_from_a_file_as_documented() -> None:
    given = {"tls": {"cert": "a.pem", "key": "a.key"}, "token_file": "t", "insecure": True}
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    listen = msgspec.convert(ports | given, Listen, dec_hook=lambda kind, value: kind(value))
    assert (listen.tls.cert, listen.token_file, listen.insecure) == (Path("a.pem"), Path("t"), True)
