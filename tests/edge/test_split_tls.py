"""Tails are asked over the cloud's own channel, which goes over to new certificates."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement
from edgemux.wire.security import ClientTls, Guard, ServerTls
from tests.authority import Authority
from tests.simulated_cloud import listening
from tests.split_stand import SplitCloud, with_splits

PATIENT_S = 20.0


class WhoAsks(SplitCloud):
    """Keeps the names on the certificates of those who ask."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.names: list[bytes] = []

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.names += context.auth_context()["x509_common_name"]
        return await super().ModelInfer(request, context)


async def test_splits_go_on_over_a_renewed_certificate(
    agent_of: Any, authority: Authority, tiny_bundle: Path, tmp_path: Path, pictures: Any
) -> None:
    images, _ = pictures(5, 41)
    folder = with_splits(tiny_bundle, tmp_path / "bundle")
    own, first, second = authority.issue("split-cloud"), authority.issue("first"), authority.issue("second")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(issued: Any) -> None:
        shutil.copyfile(issued.cert, cert)
        shutil.copyfile(issued.key, key)

    put(first)
    secure = Guard(ServerTls(own.cert, own.key, authority.ca), None).credentials()
    async with listening(WhoAsks(Bundle.open(folder)), secure) as there:
        assert isinstance(there, WhoAsks)
        settings = {"bundle": folder, "split": SplitSettings(never_send_raw=True), "policy": "cloud-only"}
        tls = {"tls": ClientTls(ca=authority.ca, cert=cert, key=key)}
        async with agent_of(there.address, there=tls, **settings) as agent:
            until = time.monotonic() + PATIENT_S
            while b"second" not in there.names:
                assert time.monotonic() < until, "the new certificate is never used"
                answers = await agent.infer({"image": images}, PATIENT_S)
                assert {answer.prediction.route.placement for answer in answers} == {Placement.SPLIT}
                if len(there.names) == len(images):
                    put(second)
                await asyncio.sleep(0.05)
    assert there.names[0] == b"first"
    assert there.models <= {f"{there.manifest.name}.{name}" for name in ("plain", "going-on")}
