"""A channel to a name that nobody knows looks it up again, and not in a hot loop."""

from __future__ import annotations

import grpc.aio
import pytest

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import client_options
from edgemux.wire.renewed import LOOK_UP_S, RenewedChannel
from edgemux.wire.service import Stub


async def test_a_name_that_is_not_known_is_looked_up_by_a_new_channel_once_in_a_while() -> None:
    made: list[grpc.aio.Channel] = []
    now_s = [100.0]

    def make(ours: bool) -> grpc.aio.Channel:
        made.append(grpc.aio.insecure_channel("edgemux-cloud.invalid:9", options=client_options()))
        return made[-1]

    channel = RenewedChannel(make, None, None, lambda: now_s[0])
    ask = Stub(channel).ServerLive
    counts = []
    for wait_s in (0.0, LOOK_UP_S / 2, LOOK_UP_S / 2, 0.0):
        now_s[0] += wait_s
        with pytest.raises(grpc.aio.AioRpcError, match=r"(?i)dns resolution failed|errors resolving"):
            await ask(oip.ServerLiveRequest(), timeout=30)
        counts.append(len(made))
    await channel.close()
    assert counts == [2, 2, 3, 3]
