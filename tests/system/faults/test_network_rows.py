"""Rows 4 to 7, 12, 14 and 15 by the kernel's own packet filter. Each has a twin through the proxy in test_link_rows."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemux.wire.channel import KEEPALIVE_TIMEOUT_S
from tests.system.faults.load import Load
from tests.system.faults.namespaces import CLOUD_ADDRESS, Cable, cable, missing
from tests.system.faults.proxy import Backstage, FaultProxy
from tests.system.faults.rows import BUSY_RECOVERY_S, RECOVERY_S, Row, check
from tests.system.faults.stage import Agent, Pictures, Scene, agent_process, found_by
from tests.system.faults.table import Found

GONE, TIMEOUT = frozenset({"cloud_unreachable"}), frozenset({"cloud_timeout"})
SILENCE = GONE | TIMEOUT
# Long enough for TCP to have doubled its patience several times. By hand it may be longer.
LONG_S = float(os.environ.get("EDGEMUX_FAULTS_OUTAGE_S", "6"))


class Wired(Scene):
    """The agent in one namespace, the cloud in another."""

    def __init__(self, backstage: Backstage, agent: Agent, seen: Pictures, between: Cable, start_cloud: Any) -> None:
        super().__init__(backstage, agent, seen)
        self.cable = between
        self.start_cloud = start_cloud

    def mend(self) -> None:
        """Make the cable whole."""
        self.cable.mend()


@pytest.fixture(scope="module")
def wired(tiny_bundle: Path, serving: Any, seen: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    """Both processes in their namespaces, and windows to look in at the agent's ports."""
    if why := missing():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(cable())
        backstage = stack.enter_context(contextlib.closing(Backstage()))
        clouds = stack.enter_context(contextlib.ExitStack())

        at = ["0"]

        def start_cloud(again: bool = False) -> str:
            """``again``: kill the one that runs; the new one listens where it did."""
            clouds.close()
            options = ("--bundle", str(tiny_bundle), "--host", CLOUD_ADDRESS, "--insecure", "--grpc-port", at[0])
            server = clouds.enter_context(serving("cloud", *options, within=between.cloud.within))
            at[0] = server.grpc.rpartition(":")[2]
            return str(server.grpc)

        def start_agent(*arguments: str) -> Any:
            return serving(*arguments, within=between.edge.within)

        folder = tmp_path_factory.mktemp("wired")
        breaker = {"ramp_s": 0.5}
        agent = stack.enter_context(agent_process(start_agent, folder, tiny_bundle, start_cloud(), breaker=breaker))
        for port in ("grpc", "http", "metrics"):
            window = FaultProxy.open(backstage, stack, open_socket=between.edge.open_socket)
            window.lead_to(getattr(agent.server, port))
            setattr(agent.server, port, window.address)
        yield Wired(backstage, agent, seen, between, start_cloud)


@pytest.fixture
def on_cable(wired: Wired) -> Wired:
    """The same, well."""
    wired.well()
    return wired


ROWS: tuple[Row[Wired], ...] = (
    Row(4, "packets lost both ways", lambda s: s.cable.lose_everything(), SILENCE, requests=160),
    Row(5, "packets lost, answers", lambda s: s.cable.lose_answers(), SILENCE),
    Row(12, "bandwidth falls to 2 KB/s, tc", lambda s: s.cable.limit(16_000), SILENCE | {"link"},
        opens=False, gated=True, requests=200),
    Row(14, "5 % of packets lost", lambda s: s.cable.lose(0.05), SILENCE | {"deferred"}, requests=320, opens=False),
    Row(15, "packets over 576 bytes lost", lambda s: s.cable.lose_large(576), SILENCE),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_accepted_request_gets_one_answer(
    row: Row[Wired], on_cable: Wired, report: Callable[[Found], None]
) -> None:
    check(row, on_cable, report)


def played_by_hand(scene: Wired, begin: Callable[[], None], repair: Callable[[], None]) -> tuple[Load, float]:
    """A load, a fault, a repair, the first cloud answer: its ledger and the seconds from repair to answer."""
    with scene.load() as load:
        load.more(40)
        begin()
        load.more(80)
        repair()
        recovery_s = scene.recovery_s(load, time.monotonic())
        load.more(20)
    return load, recovery_s


def test_row_6_a_peer_that_has_rebooted_and_says_nothing_of_it_is_found_out(
    on_cable: Wired, report: Callable[[Found], None]
) -> None:
    def reboot() -> None:
        on_cable.cable.lose_everything()
        on_cable.start_cloud(again=True)

    def back_without_a_word() -> None:
        on_cable.mend()
        on_cable.cable.lose_resets()

    load, recovery_s = played_by_hand(on_cable, reboot, back_without_a_word)
    verdict = on_cable.judge(load)
    report(found_by(verdict, 6, "peer rebooted, no RST", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    assert recovery_s <= KEEPALIVE_TIMEOUT_S + RECOVERY_S + BUSY_RECOVERY_S


def test_row_7_connection_attempts_that_get_lost_hold_nobody_up(
    on_cable: Wired, report: Callable[[Found], None]
) -> None:
    def restart_behind_a_wall() -> None:
        on_cable.cable.lose_attempts()
        on_cable.start_cloud(again=True)

    load, recovery_s = played_by_hand(on_cable, restart_behind_a_wall, on_cable.mend)
    verdict = on_cable.judge(load)
    report(found_by(verdict, 7, "SYN packets lost", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def test_row_4_after_an_outage_of_seconds_the_cloud_is_back_in_two(
    on_cable: Wired, report: Callable[[Found], None]
) -> None:
    """TCP alone would have doubled its patience meanwhile, and waited as long again as the outage took."""

    def out_for_long() -> None:
        on_cable.cable.lose_everything()
        time.sleep(LONG_S)

    load, recovery_s = played_by_hand(on_cable, out_for_long, on_cable.mend)
    verdict = on_cable.judge(load)
    report(found_by(verdict, 4, f"packets lost for {LONG_S:g} s", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S
