"""Rows 56, 65 to 67 and 71: bundles and state on disk that are damaged, cannot be written, or outlive a kill."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.faults.stage import Agent, Stage, found_by, settings, write_config
from tests.system.faults.table import Found
from tests.system.faults.test_host_rows import tiny_disk

Report = Callable[[Found], None]
# Offloads a month: the bucket is hardly refilled while a test runs.
MONTHLY = 10_000
READY_S, BUSY_READY_S = 5.0, 15.0
MODEL = "level-2.onnx"

pytestmark = pytest.mark.timeout(200)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swapped(path: Path) -> None:
    shutil.copyfile(path.with_name("level-1.onnx"), path)


def missing(path: Path) -> None:
    path.unlink()


DAMAGES = [missing, truncated, zeroed, flipped, swapped]


@pytest.fixture
def damaged(tiny_bundle: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """``damaged(how)``: a bundle of which one level is not what it was."""

    def make(how: Callable[[Path], None]) -> Path:
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / f"bundle-{how.__name__}"))
        how(folder / MODEL)
        return folder

    return make


@contextlib.contextmanager
def keeping(serving: Any, folder: Path, bundle: Path, address: str | None, **top: Path) -> Iterator[Agent]:
    """An agent with ``top`` among its settings, and a monthly budget of offloads where it has a ``state_dir``."""
    log = folder / "requests.jsonl"
    chosen = settings(bundle, address, log) | {name: str(value) for name, value in top.items()}
    config = write_config(folder / "agent.toml", chosen)
    if "state_dir" in top:
        with config.open("a") as file:
            file.write(f'[[budgets]]\nof = "offloads"\namount = {MONTHLY}\nper = "month"\n')
    with serving("edge", "--config", str(config)) as server:
        yield Agent(server, log)


def causes(agent: Agent) -> set[str]:
    """What the agent says is not as it should be."""
    series = agent.server.scrape()
    return {name.partition('cause="')[2].partition('"')[0] for name, value in series.items() if is_so(name, value)}


def is_so(name: str, value: float) -> bool:
    return name.startswith("edgemux_degraded{") and value == 1.0


def answers(
    on_stage: Stage, agent: Agent, row: int, fault: str, report: Report, ready_s: float | None = None, note: str = ""
) -> Any:
    """A load on an agent on which the fault lies already: nothing lost, doubled, late, wrong or refused."""
    with agent.load(on_stage.backstage, on_stage.pictures, rate_per_s=60.0, timeout_s=1.0) as load:
        load.more(60)
    verdict = on_stage.judge_of(agent, load)
    report(found_by(verdict, row, fault, load, ready_s, note))
    assert verdict.faults + verdict.refused == ()
    assert agent.server.popen.poll() is None
    return load


def left(agent: Agent) -> float:
    """Offloads that the budget holds now."""
    series: dict[str, float] = agent.server.scrape()
    return series['edgemux_budget_remaining{budget="offloads"}']


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: how.__name__)
def test_row_56_a_model_that_is_not_what_it_was_has_the_previous_bundle_served_instead(
    on_stage: Stage,
    serving: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    report: Report,
    damaged: Any,
    how: Callable[[Path], None],
) -> None:
    with keeping(serving, tmp_path, damaged(how), on_stage.proxy.address, previous_bundle=tiny_bundle) as agent:
        assert causes(agent) == {"previous_bundle"}
        assert agent.server.get("/status")[1]["fallback"] == "previous_bundle"
        assert agent.server.get("/v2/health/ready")[0] == 200
        load = answers(on_stage, agent, 56, f"model {how.__name__}, previous bundle", report)
        assert {e.route for e in load.entries} >= {"edge"}


def test_row_56_without_any_valid_bundle_the_cloud_answers_everything(
    on_stage: Stage, serving: Any, tmp_path: Path, report: Report, damaged: Any
) -> None:
    new, old = damaged(flipped), damaged(truncated)
    with keeping(serving, tmp_path, new, on_stage.proxy.address, previous_bundle=old) as agent:
        assert causes(agent) == {"no_device_model"}
        assert agent.server.get("/status")[1]["fallback"] == "no_device_model"
        load = answers(on_stage, agent, 56, "no valid model, cloud only", report)
        assert {(e.route, e.reason) for e in load.entries} == {("cloud", "no_model")}


def test_row_65_a_full_disk_under_the_state_costs_the_memory_of_budgets_and_no_answer(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, report: Report
) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        (disk / "state").mkdir()
        with contextlib.suppress(OSError), (disk / "filling").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with keeping(serving, tmp_path, tiny_bundle, on_stage.proxy.address, state_dir=disk / "state") as agent:
            assert causes(agent) == {"no_state"}
            answers(on_stage, agent, 65, "state on a full disk", report)
            assert agent.server.stop() == 0


@pytest.mark.parametrize("where", ["a file", "proc"])
def test_row_66_a_state_folder_that_cannot_be_made_costs_the_memory_of_budgets_and_no_answer(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, report: Report, where: str
) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where the folder should be")
    # /proc takes no file from anybody, not even from root.
    state = occupied if where == "a file" else Path("/proc/state")
    with keeping(serving, tmp_path, tiny_bundle, on_stage.proxy.address, state_dir=state) as agent:
        assert causes(agent) == {"no_state"}
        answers(on_stage, agent, 66, f"state_dir is {where}", report)
        assert agent.server.stop() == 0
    assert occupied.read_text() == "a file where the folder should be"


@pytest.mark.parametrize("how", [truncated, zeroed], ids=lambda how: how.__name__)
def test_row_67_state_and_bundle_that_a_power_loss_has_cut_short_are_caught_at_the_start(
    on_stage: Stage,
    serving: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    report: Report,
    damaged: Any,
    how: Callable[[Path], None],
) -> None:
    state = tmp_path / "state"
    with keeping(serving, tmp_path, tiny_bundle, on_stage.proxy.address, state_dir=state) as agent:
        assert left(agent) > 1.0, "a new budget is full"
        assert agent.server.stop() == 0
    with keeping(serving, tmp_path, tiny_bundle, on_stage.proxy.address, state_dir=state) as agent:
        assert left(agent) > 1.0, "an orderly stop is remembered"
        assert agent.server.stop() == 0
    how(state / "budgets.json")
    bundle = damaged(how)
    with keeping(
        serving, tmp_path, bundle, on_stage.proxy.address, previous_bundle=tiny_bundle, state_dir=state
    ) as agent:
        assert left(agent) < 1.0
        assert causes(agent) == {"previous_bundle"}
        answers(on_stage, agent, 67, f"budgets.json and model {how.__name__}", report)
        assert agent.server.stop() == 0


def test_row_71_after_an_oom_kill_it_is_ready_within_seconds_with_empty_budgets_and_an_intact_bundle(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, report: Report
) -> None:
    state = tmp_path / "state"
    with keeping(serving, tmp_path, tiny_bundle, on_stage.proxy.address, state_dir=state) as agent:
        assert left(agent) > 1.0
        with agent.load(on_stage.backstage, on_stage.pictures) as load:
            load.more(40)
            assert agent.server.stop(signal.SIGKILL) == -signal.SIGKILL
    # Whoever it had in hand hears that it is gone, and waits no longer.
    assert {entry.outcome for entry in load.entries} <= {"answered", "UNAVAILABLE"}
    began_s = time.monotonic()
    with keeping(serving, tmp_path, tiny_bundle, on_stage.proxy.address, state_dir=state) as agent:
        ready_s = time.monotonic() - began_s
        assert left(agent) < 1.0
        assert causes(agent) == set()
        assert (state / "budgets.json").is_file()
        answers(
            on_stage, agent, 71, "OOM kill and restart", report, ready_s, f"ready in {ready_s:.2f} s, budgets empty"
        )
        assert agent.server.stop() == 0
    assert ready_s <= READY_S + BUSY_READY_S
