"""The fault proxy does what the rows rely on, to plain sockets."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.faults.proxy import DOWN, RETRANSMIT_S, UP, Backstage, FaultProxy

WAIT_S = 20.0
# Long enough for anything on loopback to arrive; what must not arrive is waited for so long.
NEVER_S = 0.3


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                connection.sendall(chunk)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield "{}:{}".format(*listener.getsockname()[:2])
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: str) -> Iterator[FaultProxy]:
    with contextlib.ExitStack() as stack:
        backstage = stack.enter_context(contextlib.closing(Backstage()))
        opened = FaultProxy.open(backstage, stack)
        opened.lead_to(echo)
        yield opened


def connect(proxy: FaultProxy, timeout_s: float = WAIT_S) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


def receive(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (chunk := connection.recv(size - len(got))):
        got += chunk
    return got


def echoed(connection: socket.socket, content: bytes) -> bytes:
    connection.sendall(content)
    return receive(connection, len(content))


def silent(connection: socket.socket) -> bool:
    return not select.select([connection], [], [], NEVER_S)[0]


def test_a_healed_proxy_carries_what_it_gets(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, b"ping") == b"ping"


@pytest.mark.parametrize("state", ["stalled", "deaf", "mute"])
def test_a_stall_holds_back_and_gives_back(proxy: FaultProxy, state: str) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, b"one") == b"one"
        proxy.stall(state)  # type: ignore[arg-type]
        connection.sendall(b"two")
        assert silent(connection)
        proxy.heal()
        assert receive(connection, 3) == b"two"


def test_refusing_resets_what_is_open_and_refuses_what_comes_until_healed(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, b"one") == b"one"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as connection:
        assert echoed(connection, b"two") == b"two"


def test_dropped_syns_leave_a_connection_attempt_without_an_answer_until_healed(proxy: FaultProxy) -> None:
    proxy.drop_syns()
    with pytest.raises(TimeoutError):
        connect(proxy, NEVER_S)
    proxy.heal()
    with connect(proxy) as connection:
        assert echoed(connection, b"ping") == b"ping"


def test_a_silent_listener_accepts_and_says_nothing_and_a_chatty_one_says_its_piece(proxy: FaultProxy) -> None:
    with connect(proxy) as before:
        assert echoed(before, b"one") == b"one"
        proxy.greet(b"")
        with pytest.raises(ConnectionResetError):
            before.recv(1)
    with connect(proxy) as connection:
        connection.sendall(b"hello?")
        assert silent(connection)
    proxy.greet(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with connect(proxy) as connection:
        assert receive(connection, 8) == b"HTTP/1.1"


@pytest.mark.parametrize("ways", [(UP,), (DOWN,)])
def test_corruption_flips_one_bit_of_the_chunk_it_is_meant_for(proxy: FaultProxy, ways: tuple[int, ...]) -> None:
    proxy.trouble(corrupt_nth=2, ways=ways)
    with connect(proxy) as connection:
        assert echoed(connection, b"first") == b"first"
        spoilt = echoed(connection, b"second")
        assert sum((a ^ b).bit_count() for a, b in zip(spoilt, b"second", strict=True)) == 1
        assert echoed(connection, b"third") == b"third"


def test_truncation_passes_half_a_chunk_and_ends_the_connection(proxy: FaultProxy) -> None:
    proxy.trouble(truncate_after=1, ways=(DOWN,))
    with connect(proxy) as connection:
        assert echoed(connection, b"first") == b"first"
        connection.sendall(b"second")
        assert receive(connection, 6) == b"sec"


def test_where_only_small_chunks_fit_a_large_one_gets_stuck(proxy: FaultProxy) -> None:
    proxy.trouble(only_small=100)
    with connect(proxy) as connection:
        assert echoed(connection, b"small") == b"small"
        connection.sendall(bytes(200))
        assert silent(connection)


def test_a_stranded_connection_stays_silent_for_good_and_a_new_one_works(proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        assert echoed(old, b"one") == b"one"
        proxy.strand()
        old.sendall(b"two")
        assert silent(old)
        with connect(proxy) as new:
            assert echoed(new, b"three") == b"three"
        proxy.heal()
        assert silent(old)


def test_a_lost_chunk_arrives_a_retransmission_later(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, b"one") == b"one"
        proxy.trouble(lose=1.0, ways=(DOWN,))
        began_s = time.monotonic()
        assert echoed(connection, b"two") == b"two"
        assert time.monotonic() - began_s >= RETRANSMIT_S


def test_a_reset_breaks_what_is_open_and_nothing_else(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, b"one") == b"one"
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError) as caught:
            connection.recv(1)
        assert caught.value.errno == errno.ECONNRESET
    with connect(proxy) as connection:
        assert echoed(connection, b"two") == b"two"
