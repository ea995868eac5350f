"""TLS and tokens between real clients and real servers, and what the ends of a bad connection are told apart by."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from edgemux.multiplexer.errors import Unauthenticated, Unreachable, Untrusted
from edgemux.wire import Client
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.certificates import REREAD_S
from edgemux.wire.channel import bind, open_renewed_channel, server_options
from edgemux.wire.http import App, Page
from edgemux.wire.process import take_port
from edgemux.wire.security import REFRESH_S, ClientTls, Guard, ServerTls, TokenCheck
from edgemux.wire.service import Stub, register
from edgemux.wire.status import from_peer
from edgemux.wire.web import answering, exporting
from tests.authority import DAY, Authority, Issued

TOKEN = "a-token-of-twenty-ch"
OTHER = "another-token-of-27-letters"
PATIENT_S = 20.0


class Servicer:
    """Lives, and keeps what the clients have sent beside the request."""

    def __init__(self) -> None:
        self.peers: list[dict[str, list[bytes]]] = []

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.peers.append({key: list(value) for key, value in context.auth_context().items()})
        return oip.ServerLiveResponse(live=True)

    def __getattr__(self, name: str) -> Any:
        return self.ServerLive


class Running:
    """A server, the guard of its files, and where it listens."""

    def __init__(self, guard: Guard, servicer: Servicer, port: int) -> None:
        self.guard, self.servicer, self.port = guard, servicer, port
        self.address = f"localhost:{port}"


@contextlib.asynccontextmanager
async def running(tls: ServerTls, token_file: Path | None = None) -> AsyncIterator[Running]:
    guard, servicer = Guard(tls, token_file), Servicer()
    interceptors = () if guard.gate.open else (TokenCheck(guard.gate),)
    server = grpc.aio.server(options=server_options(), interceptors=interceptors)
    port = bind(server, "127.0.0.1", 0, guard.credentials())
    register(server, servicer)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    await server.start()
    try:
        yield Running(guard, servicer, port)
    finally:
        await server.stop(0)


async def ask(channel: Any) -> Any:
    """What a client meets: None when it is answered."""
    try:
        await Stub(channel).ServerLive(oip.ServerLiveRequest(), timeout=PATIENT_S)
    except grpc.aio.AioRpcError as error:
        return from_peer(error.code(), error.details())
    return None


async def ask_once(address: str, tls: ClientTls, token_file: Path | None = None) -> Any:
    channel = open_renewed_channel(address, tls=tls, token_file=token_file)
    try:
        return await ask(channel)
    finally:
        await channel.close()


@pytest.fixture(scope="module")
def own(authority: Authority) -> Issued:
    return authority.issue("server")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Issued:
    return authority.issue("client", "DNS:client")


async def test_a_client_that_knows_the_authority_is_answered(authority: Authority, own: Issued) -> None:
    async with running(ServerTls(own.cert, own.key)) as server:
        assert await ask_once(server.address, ClientTls(ca=authority.ca)) is None
        assert await ask_once(f"127.0.0.1:{server.port}", ClientTls(ca=authority.ca)) is None
        with_name = ClientTls(ca=authority.ca, server_name="localhost")
        assert await ask_once(f"127.0.0.1:{server.port}", with_name) is None


@pytest.mark.parametrize(
    ("dates", "names", "cause"),
    [
        ((-2 * DAY, -DAY), "DNS:localhost", "the cloud's certificate has expired, or our clock is wrong"),
        ((DAY, 2 * DAY), "DNS:localhost", "the cloud's certificate is not valid yet, or our clock is wrong"),
        ((-DAY, DAY), "DNS:other.example", "the cloud's certificate is for another name"),
    ],
)
async def test_a_server_s_certificate_that_is_no_use_is_told_apart(
    authority: Authority, dates: Any, names: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = authority.issue("bad", names, *dates)
    async with running(ServerTls(bad.cert, bad.key)) as server:
        channel = open_renewed_channel(server.address, tls=ClientTls(ca=authority.ca))
        for _ in range(3):
            error = await ask(channel)
            assert isinstance(error, Untrusted)
            assert str(error) == cause
        assert channel.describe()["trouble"] == cause
        await channel.close()
        assert server.servicer.peers == []
    assert len([record for record in caplog.records if cause in record.message and record.levelname == "ERROR"]) == 1


async def test_a_stranger_s_authority_is_not_trusted_nor_the_system_s(
    authority: Authority, own: Issued, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path)
    async with running(ServerTls(own.cert, own.key)) as server:
        for tls in (ClientTls(ca=stranger.ca), ClientTls(enabled=True)):
            error = await ask_once(server.address, tls)
            assert isinstance(error, Untrusted)
            assert str(error) == "nobody whom we trust vouches for the cloud's certificate"


async def test_nothing_goes_out_in_plaintext_where_there_is_no_tls(authority: Authority) -> None:
    async with running(ServerTls()) as server:
        error = await ask_once(server.address, ClientTls(ca=authority.ca))
        assert isinstance(error, Untrusted)
        assert str(error) == "the cloud does not speak TLS"
        assert server.servicer.peers == []


async def test_a_plaintext_client_is_not_answered_by_a_tls_server(own: Issued) -> None:
    async with running(ServerTls(own.cert, own.key)) as server:
        assert isinstance(await ask_once(server.address, ClientTls()), Unreachable)
        assert server.servicer.peers == []


async def test_with_mutual_tls_only_certificates_of_the_authority_get_in(
    authority: Authority, own: Issued, client: Issued, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path).issue("stranger", "DNS:stranger")
    expired = authority.issue("expired", "DNS:client", -2 * DAY, -DAY)
    async with running(ServerTls(own.cert, own.key, authority.ca)) as server:
        known = ClientTls(ca=authority.ca, cert=client.cert, key=client.key)
        assert await ask_once(server.address, known) is None
        assert server.servicer.peers[0]["x509_common_name"] == [b"client"]
        for tls in (
            ClientTls(ca=authority.ca),
            ClientTls(ca=authority.ca, cert=stranger.cert, key=stranger.key),
            ClientTls(ca=authority.ca, cert=expired.cert, key=expired.key),
        ):
            assert isinstance(await ask_once(server.address, tls), Unreachable)
        assert len(server.servicer.peers) == 1


def test_a_client_knows_itself_that_its_certificate_has_expired(authority: Authority) -> None:
    expired = authority.issue("expired", "DNS:client", -2 * DAY, -DAY)

    async def trouble() -> str | None:
        channel = open_renewed_channel("localhost:1", tls=ClientTls(cert=expired.cert, key=expired.key))
        try:
            return channel.trouble()
        finally:
            await channel.close()

    said = asyncio.run(trouble())
    assert said is not None
    assert said.startswith("expired on ")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_rotated_pair_is_served_to_new_connections_and_old_ones_live_on(
    authority: Authority, own: Issued, tmp_path: Path
) -> None:
    files = ServerTls(tmp_path / "cert.pem", tmp_path / "key.pem")
    second = authority.issue("second")
    third = authority.issue("third", "DNS:other.example")
    assert files.cert is not None
    assert files.key is not None
    shutil.copyfile(second.cert, files.cert)
    shutil.copyfile(second.key, files.key)
    async with running(files) as server:
        lasting = open_renewed_channel(server.address, tls=ClientTls(ca=authority.ca))
        assert await ask(lasting) is None
        shutil.copyfile(third.cert, files.cert)  # half of the new pair
        server.guard.reload()
        assert await ask_once(server.address, ClientTls(ca=authority.ca)) is None
        shutil.copyfile(third.key, files.key)
        server.guard.reload()
        assert isinstance(await ask_once(server.address, ClientTls(ca=authority.ca)), Untrusted)
        named = ClientTls(ca=authority.ca, server_name="other.example")
        assert await ask_once(server.address, named) is None
        assert await ask(lasting) is None
        await lasting.close()


async def test_a_client_goes_over_to_a_new_certificate_of_its_own(
    authority: Authority, own: Issued, client: Issued, tmp_path: Path
) -> None:
    second = authority.issue("second-client", "DNS:second")
    tls = ClientTls(ca=authority.ca, cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    assert tls.cert is not None
    assert tls.key is not None
    shutil.copyfile(client.cert, tls.cert)
    shutil.copyfile(client.key, tls.key)
    async with running(ServerTls(own.cert, own.key, authority.ca)) as server:
        clock = Clock()
        channel = open_renewed_channel(server.address, tls=tls, clock=clock)
        assert await ask(channel) is None
        shutil.copyfile(second.cert, tls.cert)
        clock.now_s += REREAD_S
        assert await ask(channel) is None
        shutil.copyfile(second.key, tls.key)
        clock.now_s += REREAD_S
        assert await ask(channel) is None
        await channel.close()
        names = [peer["x509_common_name"][0] for peer in server.servicer.peers]
        assert names == [b"client", b"client", b"second-client"]


def token_in(path: Path, token: str) -> Path:
    path.write_text(token)
    return path


async def test_without_a_token_only_health_is_told(tmp_path: Path) -> None:
    async with running(ServerTls(), token_in(tmp_path / "tokens", TOKEN)) as server:
        error = await ask_once(server.address, ClientTls())
        assert isinstance(error, Unauthenticated)
        assert isinstance(
            await ask_once(server.address, ClientTls(), token_in(tmp_path / "wrong", OTHER)), Unauthenticated
        )
        assert await ask_once(server.address, ClientTls(), token_in(tmp_path / "right", TOKEN)) is None
        async with grpc.aio.insecure_channel(server.address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await channel.unary_unary("/no.such/Method")(b"", timeout=PATIENT_S)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_burst_of_refusals_is_one_look_at_the_token_and_a_new_one_gets_in(tmp_path: Path) -> None:
    path = token_in(tmp_path / "mine", OTHER)
    clock = Clock()
    looks = 0
    async with running(ServerTls(), token_in(tmp_path / "tokens", TOKEN)) as server:
        channel = open_renewed_channel(server.address, token_file=path, clock=clock)
        tokens = channel._tokens
        assert tokens is not None
        look = tokens.reload

        def counted() -> tuple[str, ...]:
            nonlocal looks
            looks += 1
            return look()

        tokens.reload = counted  # type: ignore[method-assign]
        errors = await asyncio.gather(*(ask(channel) for _ in range(20)))
        assert {type(error) for error in errors} == {Unauthenticated}
        assert looks == 1
        path.write_text(TOKEN)
        clock.now_s += REFRESH_S
        assert isinstance(await ask(channel), Unauthenticated | None)
        assert await ask(channel) is None
        assert looks <= 2
        await channel.close()


async def test_the_blocking_client_speaks_tls_with_a_token(authority: Authority, own: Issued, tmp_path: Path) -> None:
    path = token_in(tmp_path / "tokens", TOKEN)
    async with running(ServerTls(own.cert, own.key), path) as server:

        def live(tls: ClientTls, token_file: Path | None) -> None:
            with Client(server.address, tls, token_file) as blocking:
                blocking._call("ServerLive", oip.ServerLiveRequest(), PATIENT_S)

        await asyncio.to_thread(live, ClientTls(ca=authority.ca), path)
        with pytest.raises(Unauthenticated, match="a valid bearer token is needed"):
            await asyncio.to_thread(live, ClientTls(ca=authority.ca), None)
        with pytest.raises(Untrusted, match="vouches for the server's certificate"):
            await asyncio.to_thread(live, ClientTls(enabled=True), None)


async def test_http_and_metrics_are_behind_the_same_certificate_and_token(
    authority: Authority, own: Issued, tmp_path: Path
) -> None:
    guard = Guard(ServerTls(own.cert, own.key), token_in(tmp_path / "tokens", TOKEN))
    registry = CollectorRegistry()
    Counter("some_total", "Anything.", registry=registry)
    web, metrics = (take_port("127.0.0.1", 0, "any") for _ in range(2))
    ports = [listener.getsockname()[1] for listener in (web, metrics)]
    pages = {"/status": lambda: Page(200, {}), "/v2/health/live": lambda: Page(200, {"live": True})}
    context = ssl.create_default_context(cafile=str(authority.ca))

    def get(port: int, path: str, token: str | None = None) -> tuple[int, bytes]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"https://localhost:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENT_S, context=context) as page:
                return page.status, page.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    with exporting(metrics, registry, guard.gate, guard.certificates):
        async with answering(web, App(pages, guard.gate), guard.certificates):
            assert (await asyncio.to_thread(get, ports[0], "/v2/health/live"))[0] == 200
            for port, path in ((ports[0], "/status"), (ports[1], "/metrics")):
                assert (await asyncio.to_thread(get, port, path))[0] == 401
                assert (await asyncio.to_thread(get, port, path, OTHER))[0] == 401
                assert (await asyncio.to_thread(get, port, path, TOKEN))[0] == 200
            assert b"some_total 0.0" in (await asyncio.to_thread(get, ports[1], "/metrics", TOKEN))[1]


async def closed_after(port: int, words: list[bytes], pause_s: float) -> float:
    """Seconds until the server closes on a client that says these words, with pauses, and then nothing."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = asyncio.ensure_future(reader.read())

    async def speak() -> None:
        with contextlib.suppress(ConnectionError):
            for word in words:
                writer.write(word)
                await writer.drain()
                await asyncio.sleep(pause_s)

    speaking = asyncio.ensure_future(speak())
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(heard, PATIENT_S)
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    writer.close()
    return loop.time() - began


@pytest.mark.parametrize("encrypted", [True, False])
async def test_who_is_silent_or_says_a_byte_at_a_time_is_closed_within_seconds(own: Issued, encrypted: bool) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    slow = [bytes([byte]) for byte in (b"\x16\x03\x01\x02\x00\x01" * 20 if encrypted else preface + b"\0" * 100)]
    async with running(ServerTls(own.cert, own.key) if encrypted else ServerTls()) as server:
        took = await asyncio.gather(
            closed_after(server.port, [], 0.0),
            closed_after(server.port, slow, 0.2),
            closed_after(server.port, slow, 0.5),
        )
        assert max(took) < PATIENT_S / 2, took
