"""The failure matrix: what every row shares, and the table that comes out of it.

A row is a test: it takes a stage (``on_stage``, or ``stage`` and ``agent_process`` of stage.py for processes of its
own), puts a load on it (``with stage.load() as load``), makes a fault and repairs it while the load goes on, then
has both ledgers judged and the outcome reported:

    with on_stage.load() as load:
        load.more(60)
        on_stage.proxy.stall()
        load.more(100)
        repaired_s = on_stage.heal()
        recovery_s = on_stage.recovery_s(load, repaired_s)
    verdict = on_stage.judge(load)
    report(found_by(verdict, 4, "black hole both ways", load, recovery_s))
    assert verdict.faults == ()

EDGEMUX_FAULTS_REPORT=PREFIX writes the table as PREFIX.json and PREFIX.md too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.faults.ledgers import BUSY_S, GRACE_S
from tests.system.faults.stage import Pictures, Stage, stage
from tests.system.faults.table import Found, lines, write

HERE = Path(__file__).parent
_FOUND = pytest.StashKey[list[Found]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is of the fault suite."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table."""
    found = config.stash.get(_FOUND, [])
    if not found:
        return
    terminalreporter.section("failure matrix")
    for line in lines(found):
        terminalreporter.write_line(line)
    agents, clients = GRACE_S * 1000, (GRACE_S + BUSY_S) * 1000
    terminalreporter.write_line(
        f"late: {agents:g} ms after the deadline by the agent's clock, {clients:g} by the client's"
    )
    if prefix := os.environ.get("EDGEMUX_FAULTS_REPORT"):
        write(found, Path(prefix))


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Callable[[Found], None]:
    """``report(found)`` puts a row into the table."""
    return pytestconfig.stash.setdefault(_FOUND, []).append


@pytest.fixture(scope="session")
def seen(tiny_bundle: Path, pictures: Callable[..., Any]) -> Pictures:
    """What the loads send: about 2 in 100 pictures of the tiny bundle's task are doubtful."""
    return Pictures.of(tiny_bundle, pictures(4000, 5)[0])


@pytest.fixture(scope="session")
def shared_stage(
    tiny_bundle: Path, serving: Any, seen: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """The processes that rows share whose fault lies between agent and cloud."""
    # A shorter ramp, so that rows need not wait five seconds for each other; rows 4 and 32 have the usual one.
    breaker = {"ramp_s": 0.5}
    with stage(serving, tmp_path_factory.mktemp("stage"), tiny_bundle, seen, breaker=breaker) as set_up:
        yield set_up


@pytest.fixture
def on_stage(shared_stage: Stage) -> Iterator[Stage]:
    """The shared stage, well and led to the real cloud, before and after."""
    shared_stage.lead_to_the_real_cloud()
    shared_stage.well()
    yield shared_stage
    shared_stage.proxy.heal()
