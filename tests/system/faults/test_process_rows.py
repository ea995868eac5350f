"""Rows 1 to 3: a cloud that is not there at the start, whose name is gone, or that dies with requests in hand."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.system.faults.ledgers import Entry, waited_after
from tests.system.faults.load import Load
from tests.system.faults.proxy import FaultProxy
from tests.system.faults.rows import BUSY_RECOVERY_S, FAILURES, RECOVERY_S, USUAL, WAITED
from tests.system.faults.stage import Agent, Pictures, Scene, Stage, agent_process, found_by
from tests.system.faults.table import Found

UNREACHABLE = frozenset({"cloud_unreachable", "cloud_timeout"})
NAME = "edgemux-cloud.invalid"


class Alone(Scene):
    """An agent, with nothing that could be mended."""

    def mend(self) -> None:
        """Nothing to do."""


@contextlib.contextmanager
def timed(process: contextlib.AbstractContextManager[Agent]) -> Iterator[tuple[Agent, float]]:
    """An agent and the seconds until it was ready."""
    began_s = time.monotonic()
    with process as agent:
        yield agent, time.monotonic() - began_s


def assert_all_answered_here(scene: Scene, load: Any) -> None:
    """The device has answered everything, and hardly anybody has waited to find out that it must."""
    # Some are still under way, for the load goes on.
    answered = [e for e in list(load.entries) if e.answered]
    assert {e.route for e in answered} == {"edge"}
    assert {e.reason for e in answered} <= UNREACHABLE | USUAL
    assert waited_after(answered, FAILURES, WAITED, 0.0) == []
    doubtful = [e for e in answered if e.picture < scene.pictures.doubtful]
    assert all(e.degraded for e in doubtful)


def test_row_1_an_agent_whose_cloud_is_down_is_ready_as_soon_as_any_and_finds_the_cloud_later(
    on_stage: Stage, serving: Any, tmp_path: Path, tiny_bundle: Path, seen: Pictures, report: Callable[[Found], None]
) -> None:
    with contextlib.ExitStack() as stack:
        proxy = FaultProxy.open(on_stage.backstage, stack)
        proxy.lead_to(on_stage.real)
        (tmp_path / "well").mkdir()
        with timed(agent_process(serving, tmp_path / "well", tiny_bundle, proxy.address)) as (_, usual_s):
            pass
        proxy.refuse()
        agent, ready_s = stack.enter_context(timed(agent_process(serving, tmp_path, tiny_bundle, proxy.address)))
        assert ready_s <= 1.5 * usual_s + 1.0
        assert agent.server.get("/v2/health/ready")[0] == 200
        scene = Alone(on_stage.backstage, agent, seen)
        with scene.load() as load:
            load.more(160)
            assert_all_answered_here(scene, load)
            assert agent.breaker() != 0
            repaired_s = time.monotonic()
            proxy.heal()
            recovery_s = scene.recovery_s(load, repaired_s)
        verdict = scene.judge(load)
        note = f"ready in {ready_s:.1f} s, with a cloud in {usual_s:.1f} s"
        report(found_by(verdict, 1, "cloud down at start", load, recovery_s, note))
        assert verdict.faults + verdict.refused == ()
        assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def test_row_2_a_name_that_nobody_knows_is_as_good_as_a_cloud_that_is_down(
    on_stage: Stage,
    serving: Any,
    tmp_path: Path,
    tiny_bundle: Path,
    seen: Pictures,
    report: Callable[[Found], None],
) -> None:
    with agent_process(serving, tmp_path, tiny_bundle, f"{NAME}:9") as agent:
        assert agent.server.get("/v2/health/ready")[0] == 200
        scene = Alone(on_stage.backstage, agent, seen)
        with scene.load() as load:
            load.more(240)
        verdict = scene.judge(load)
        report(found_by(verdict, 2, "DNS: no such name", load))
        assert verdict.faults + verdict.refused == ()
        assert_all_answered_here(scene, load)
        assert agent.breaker() != 0


def own_hosts(hosts: Path) -> Sequence[str]:
    """What to put before a command so that it takes ``hosts`` for /etc/hosts."""
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")


def cannot_have_own_hosts(hosts: Path) -> bool:
    if shutil.which("unshare") is None:
        return True
    return subprocess.run([*own_hosts(hosts), "true"], capture_output=True, check=False).returncode != 0


def test_row_2_a_name_that_comes_back_is_found_again(
    on_stage: Stage, serving: Any, tmp_path: Path, tiny_bundle: Path, seen: Pictures, report: Callable[[Found], None]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    if cannot_have_own_hosts(hosts):
        pytest.skip("a mount namespace of one's own takes root and unshare")

    def start(*arguments: str) -> Any:
        return serving(*arguments, within=own_hosts(hosts))

    port = on_stage.real.rpartition(":")[2]
    with agent_process(start, tmp_path, tiny_bundle, f"{NAME}:{port}") as agent:
        scene = Alone(on_stage.backstage, agent, seen)
        with scene.load() as load:
            load.more(800)
            assert_all_answered_here(scene, load)
            with hosts.open("a") as file:
                file.write(f"127.0.0.1 {NAME}\n")
            recovery_s = scene.recovery_s(load, time.monotonic(), 60.0)
        verdict = scene.judge(load)
        report(found_by(verdict, 2, "DNS: the name comes back", load, recovery_s))
        assert verdict.faults + verdict.refused == ()
        assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def under_way(load: Load, for_s: float) -> list[Entry]:
    """Requests that have waited for an outcome for longer than that: the device answers sooner."""
    return [e for e in list(load.entries) if not e.outcome and 0 < e.sent_s < time.monotonic() - for_s]


def test_row_3_requests_that_a_dying_cloud_has_in_hand_are_answered_by_the_device(
    on_stage: Stage, serving: Any, tiny_bundle: Path, report: Callable[[Found], None]
) -> None:
    """It is stopped in the middle of its work, and killed when it has certainly some in hand."""
    options = ("cloud", "--bundle", str(tiny_bundle))
    with contextlib.ExitStack() as stack:
        doomed = stack.enter_context(serving(*options))
        on_stage.lead_to(doomed.grpc)
        on_stage.well()
        with on_stage.load() as load:
            load.more(60)
            doomed.popen.send_signal(signal.SIGSTOP)
            load.wait(lambda: len(under_way(load, 0.03)) >= 3)
            doomed.popen.kill()
            killed_s = time.monotonic()
            load.more(120)
            opened = on_stage.agent.breaker() != 0
            revived = stack.enter_context(serving(*options))
            on_stage.proxy.lead_to(revived.grpc)
            repaired_s = time.monotonic()
            recovery_s = on_stage.recovery_s(load, repaired_s)
            load.more(20)
        verdict = on_stage.judge(load)
        report(found_by(verdict, 3, "cloud killed in mid-request", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    in_hand = [e for e in load.entries if e.sent_s < killed_s < e.ended_s and e.reason == "cloud_unreachable"]
    assert in_hand
    during = [e for e in load.entries if e.ended_s > killed_s and e.sent_s < repaired_s]
    assert {e.reason for e in during if e.answered} <= UNREACHABLE | USUAL
    assert opened
    assert waited_after(during, FAILURES, WAITED, killed_s) == []
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S
