"""The commands of docs/security.md make what the page says."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import tomllib
from pathlib import Path

import pytest

from edgemux.cloud.config import CloudConfig
from edgemux.edge.config import EdgeConfig
from edgemux.multiplexer.domain import Reason
from edgemux.wire.certificates import Certificates, Files, server_context
from edgemux.wire.security import TokenFile
from edgemux.wire.settings import load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command here")
def test_the_commands_make_certificates_and_tokens_that_are_taken(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(# openssl\n.*?)```", PAGE, flags=re.DOTALL)
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    ca = tmp_path / "ca.pem"
    server = Certificates(Files(tmp_path / "server.pem", tmp_path / "server.key", ca), "listen.tls").current()
    agent = Certificates(Files(tmp_path / "agent.pem", tmp_path / "agent.key", ca), "cloud.tls").current()
    TokenFile(tmp_path / "tokens", "listen.token_file")

    theirs = ssl.create_default_context(cafile=str(ca))
    theirs.load_cert_chain(tmp_path / "agent.pem", tmp_path / "agent.key")
    assert agent.until is not None
    ends = [ssl.MemoryBIO() for _ in range(4)]
    sides = [
        server_context(server, "listen.tls").wrap_bio(ends[0], ends[1], server_side=True),
        theirs.wrap_bio(ends[2], ends[3], server_hostname="localhost"),
    ]
    done = [False, False]
    for _ in range(5):
        for number, side in enumerate(sides):
            try:
                side.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
        ends[2].write(ends[1].read())
        ends[0].write(ends[3].read())
    assert done == [True, True]


def test_the_settings_are_settings(tmp_path: Path) -> None:
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    columns = [re.split(r"\s{2,}# ", line, maxsplit=1) for line in table.splitlines()[1:]]
    assert all(len(column) == 2 for column in columns)
    for number, kind in enumerate((CloudConfig, EdgeConfig)):
        text = "bundle = 'b'\n" + "\n".join(column[number] for column in columns)
        tomllib.loads(text)
        (tmp_path / "config.toml").write_text(text)
        settings = load_settings(kind, tmp_path / "config.toml", {})
        if isinstance(settings, CloudConfig):
            assert settings.listen.tls.client_ca is not None
        else:
            assert settings.cloud.tls.on
            assert settings.cloud.token_file is not None


def test_the_reasons_are_reasons() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    assert named == {Reason.CLOUD_TLS, Reason.CLOUD_DENIED, Reason.BREAKER}
