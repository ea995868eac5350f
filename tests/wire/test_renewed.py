"""A channel to a name that nobody knows looks it up again, and not in a hot loop."""

from __future__ import annotations

import grpc.aio
import pytest

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import FOREIGN_KEEPALIVE_S, client_options
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


def test_only_our_own_servers_are_pinged_more_often_than_every_five_minutes_or_without_a_call() -> None:
    ours, foreign = dict(client_options()), dict(client_options(keepalive_s=FOREIGN_KEEPALIVE_S))
    assert ours["grpc.keepalive_time_ms"] == 10_000
    assert ours["grpc.keepalive_permit_without_calls"] == 1
    assert foreign["grpc.keepalive_time_ms"] > 300_000
    assert foreign["grpc.keepalive_permit_without_calls"] == 0


async def test_a_server_that_turns_out_to_be_ours_gets_a_connection_of_its_own_once_and_only_where_it_can_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    made: list[bool] = []
    address = ["127.0.0.1:1"]

    def make(ours: bool) -> grpc.aio.Channel:
        made.append(ours)
        return grpc.aio.insecure_channel(address[0], options=client_options())

    monkeypatch.setattr("edgemux.wire.renewed.CONNECT_S", 0.2)
    channel = RenewedChannel(make, None, None)
    channel.is_ours()
    assert channel._becoming is not None
    await channel._becoming
    assert made == [False, True]
    assert not channel._ours, "nobody listens there"
    await server.start()
    monkeypatch.setattr("edgemux.wire.renewed.CONNECT_S", 20.0)
    address[0] = f"127.0.0.1:{port}"
    for _ in range(2):
        channel.is_ours()
        if channel._becoming is not None:
            await channel._becoming
    assert made == [False, True, True]
    assert channel._ours
    await channel.close()
    await server.stop(0)
