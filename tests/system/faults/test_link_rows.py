"""Rows 4 to 15, 19 and 21, as far as they can be made by a proxy: faults of the way to a real cloud."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgemux.wire.channel import KEEPALIVE_TIMEOUT_S
from tests.system.faults.load import Load
from tests.system.faults.rows import RECOVERY_S, Row, check
from tests.system.faults.stage import Stage, found_by
from tests.system.faults.table import Found

TIMEOUT, GONE, BAD = frozenset({"cloud_timeout"}), frozenset({"cloud_unreachable"}), frozenset({"cloud_bad_answer"})
# A stalled link and a dead connection look alike: the deadline runs out, or the channel gives up before.
SILENCE = TIMEOUT | GONE
# The channel notices that nobody is there by a ping that is not answered. A ping goes along with what is sent, so it
# is the ping's patience that counts, and then the usual time to recover.
HALF_OPEN_S = KEEPALIVE_TIMEOUT_S + RECOVERY_S
# So many damaged messages must have come through to be refused.
DAMAGED = 10
STORM_S, STORM_INTERVAL_S = 2.0, 0.03
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
GARBAGE = bytes((i * 193 + 71) % 256 for i in range(4096))


def storm(stage: Stage, load: Load) -> None:
    """Every connection is reset, again and again: each reset may cost a new connection, and no more than one.

    (The library's back-off is for attempts that fail; it starts afresh with each that succeeds, as these do.)
    """
    before, broken, began_s = stage.proxy.accepted, 0, time.monotonic()
    while time.monotonic() < began_s + STORM_S:
        broken += stage.proxy.reset()
        time.sleep(STORM_INTERVAL_S)
    assert broken > 10
    assert stage.proxy.accepted - before <= broken + 1
    load.more(1)


def served(times: float) -> Callable[[Stage, Load], None]:
    """While the fault lasts the cloud works on ``times`` requests or more; the device's answers stay the only ones."""

    def during(stage: Stage, load: Load) -> None:
        before = stage.cloud.scrape()['edgemux_cloud_inputs_total{model="fashion-mnist"}']
        load.more(120)
        load.wait(lambda: stage.cloud.scrape()['edgemux_cloud_inputs_total{model="fashion-mnist"}'] >= before + times)

    return during


def corrupted(share: float) -> Callable[[Stage], None]:
    return lambda stage: stage.proxy.trouble(corrupt=share)


def cleared(stage: Stage) -> None:
    """Both ends of a connection keep tables of headers, and one flipped bit may set them apart for its whole life."""
    stage.proxy.heal()
    stage.proxy.reset()


ROWS: tuple[Row[Stage], ...] = (
    Row(4, "black hole both ways", lambda s: s.proxy.stall(), SILENCE),
    Row(5, "black hole, answers lost", lambda s: s.proxy.stall("mute"), SILENCE, during=served(3)),
    Row(5, "black hole, requests lost", lambda s: s.proxy.stall("deaf"), SILENCE),
    Row(6, "half-open connection", lambda s: s.proxy.strand(), SILENCE, recovery_s=HALF_OPEN_S),
    Row(7, "SYN dropped", lambda s: s.proxy.drop_syns(), SILENCE, requests=200),
    Row(8, "accepts, never speaks", lambda s: s.proxy.greet(b""), SILENCE, requests=200),
    Row(9, "speaks HTTP/1.1", lambda s: s.proxy.greet(HTTP), GONE),
    Row(9, "speaks garbage", lambda s: s.proxy.greet(GARBAGE), GONE),
    Row(10, "RST storm", lambda s: None, GONE, during=storm, opens=False),
    Row(10, "connections refused", lambda s: s.proxy.refuse(), GONE),
    Row(12, "bandwidth falls to 2 KB/s", lambda s: s.proxy.link(bits_per_s=16e3), SILENCE | {"link"},
        opens=False, gated=True, requests=200),
    Row(13, "300 ms more, and jitter", lambda s: s.proxy.link(round_trip_s=0.3, jitter_s=0.2), SILENCE | {"link"},
        opens=False, gated=True, requests=240),
    Row(14, "5 % loss", lambda s: s.proxy.trouble(lose=0.05), SILENCE | {"deferred"}, opens=False, requests=400),
    Row(15, "large packets get stuck", lambda s: s.proxy.trouble(only_small=600), SILENCE,
        repair=lambda s: s.proxy.reset() and None),
    Row(19, "bits flip in every 3rd chunk", corrupted(0.3), BAD | GONE | TIMEOUT | {"cloud_incompatible"},
        opens=False, requests=240, repair=cleared),
    Row(21, "the stream is cut short", lambda s: s.proxy.trouble(truncate_after=20), GONE | BAD, opens=False),
)  # fmt: skip


def test_row_19_a_flipped_bit_in_plaintext_never_becomes_an_answer(
    on_stage: Stage, report: Callable[[Found], None]
) -> None:
    """So seldom that most connections last and most damage is to pixels and probabilities, not to HTTP/2."""
    with on_stage.load(rate_per_s=None, clients=4, order=range(on_stage.pictures.doubtful)) as load:
        load.more(40)
        on_stage.proxy.trouble(corrupt=0.02)
        load.wait(lambda: len(reasons_of(load, BAD)) >= DAMAGED and len(load.entries) >= 1000)
        recovery_s = on_stage.recovery_s(load, on_stage.heal())
    verdict = on_stage.judge(load)
    damaged = reasons_of(load, BAD)
    note = f"{len(damaged)} answers refused, {len(reasons_of(load, GONE))} connections broken"
    report(found_by(verdict, 19, "bits flip in every 50th chunk", load, recovery_s, note))
    assert verdict.faults + verdict.refused == ()


def reasons_of(load: Load, causes: frozenset[str]) -> list[str]:
    return [entry.reason for entry in list(load.entries) if entry.reason in causes]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_accepted_request_gets_one_answer(
    row: Row[Stage], on_stage: Stage, report: Callable[[Found], None]
) -> None:
    check(row, on_stage, report)
