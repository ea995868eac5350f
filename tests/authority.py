"""A certificate authority for tests, by the openssl command line."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import msgspec

OPENSSL = shutil.which("openssl")
HERE = "IP:127.0.0.1,DNS:localhost"
DAY = datetime.timedelta(days=1)

_CONFIG = """
[ca]
default_ca = here
[here]
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""


class Issued(msgspec.Struct, frozen=True):
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates into ``folder``; its own is ``ca``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        (folder / "ca.cnf").write_text(_CONFIG)
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01")
        self._openssl(
            *(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]),
            *("-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"),
        )

    def issue(
        self, name: str, names: str = HERE, first: datetime.timedelta = -DAY, last: datetime.timedelta = 9 * DAY
    ) -> Issued:
        """A certificate for ``names``, valid from ``first`` to ``last`` from now."""
        issued = Issued(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        self._openssl(
            *(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"),
            *("-keyout", issued.key.name, "-out", f"{name}.csr"),
        )
        now = datetime.datetime.now(datetime.UTC)
        dates = [f"{now + at:%Y%m%d%H%M%SZ}" for at in (first, last)]
        self._openssl(
            *(["ca", "-config", "ca.cnf", "-batch", "-notext", "-startdate"]),
            *(dates[0], "-enddate", dates[1], "-in", f"{name}.csr", "-out", issued.cert.name),
        )
        return issued

    def _openssl(self, *arguments: str) -> None:
        assert OPENSSL is not None
        subprocess.run([OPENSSL, *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60)
