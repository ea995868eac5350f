"""Rows 87 to 91: heads on the device, tails in a cloud that goes away, lacks them, has others, or is hard to reach."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemux.multiplexer.bundle import Bundle, seal, splits_of
from tests.split_stand import with_splits
from tests.system.faults.ledgers import ANSWERED, Entry, Verdict
from tests.system.faults.load import Load
from tests.system.faults.proxy import Backstage, FaultProxy
from tests.system.faults.rows import BUSY_RECOVERY_S, RECOVERY_S, USUAL
from tests.system.faults.stage import Agent, Pictures, Scene, agent_process, found_by
from tests.system.faults.table import Found

# Bits a second: an input, 1 KB with all around it, takes a fifth of a second then, what a head makes a twentieth.
SQUEEZED = 5000.0 * 8
# The whole input is sent for once every 10 s to see whether the link is quick again.
SEEN_AGAIN_S = 25.0


class SplitStage(Scene):
    """Several clouds, of which the proxy leads to one, and an agent that sends what its heads make."""

    away = "split"

    def __init__(self, backstage: Backstage, agent: Agent, seen: Pictures, proxy: FaultProxy) -> None:
        super().__init__(backstage, agent, seen)
        self.proxy = proxy

    def mend(self) -> None:
        """Make the link clear."""
        self.proxy.heal()

    def restart_as(self, server: Any, load: Load) -> float:
        """A cloud that stops, and comes back as ``server``; returns when."""
        self.proxy.refuse()
        load.more(10)
        self.proxy.lead_to(server.grpc)
        return self.heal()


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose tails take as long as its cloud model, and send a fortieth of an input."""
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle")


@pytest.fixture(scope="module")
def seen_split(folder: Path, pictures: Callable[..., Any]) -> Pictures:
    return Pictures.of(folder, pictures(4000, 5)[0])


@pytest.fixture(scope="module")
def cloud(folder: Path, serving: Any) -> Iterator[Any]:
    with serving("cloud", "--bundle", str(folder)) as server:
        yield server


@contextlib.contextmanager
def split_stage(
    serving: Any, where: Path, folder: Path, cloud: Any, seen: Pictures, **split: Any
) -> Iterator[SplitStage]:
    """``split``: that section of the agent's configuration."""
    with contextlib.ExitStack() as stack:
        backstage = stack.enter_context(contextlib.closing(Backstage()))
        proxy = FaultProxy.open(backstage, stack)
        proxy.lead_to(cloud.grpc)
        more = {"split": split, "breaker": {"ramp_s": 0.5}}
        agent = stack.enter_context(agent_process(serving, where, folder, proxy.address, **more))
        yield SplitStage(backstage, agent, seen, proxy)


@pytest.fixture
def on_splits(serving: Any, tmp_path: Path, folder: Path, cloud: Any, seen_split: Pictures) -> Iterator[SplitStage]:
    with split_stage(serving, tmp_path, folder, cloud, seen_split, use="always") as stage:
        stage.well()
        yield stage


def check(verdict: Verdict, load: Load, began_s: float, repaired_s: float, causes: set[str]) -> Sequence[Entry]:
    """Both ledgers, and why what met the fault was answered as it was. Returns what met it."""
    assert verdict.faults + verdict.refused == ()
    during = [e for e in load.entries if e.ended_s > began_s and e.sent_s < repaired_s]
    assert {e.reason for e in during if e.outcome == ANSWERED} <= causes | USUAL
    return during


def test_row_87_a_cloud_that_is_killed_while_it_ends_what_was_begun_costs_no_answer(
    on_splits: SplitStage, serving: Any, folder: Path, report: Callable[[Found], None]
) -> None:
    stage = on_splits
    with serving("cloud", "--bundle", str(folder)) as other, stage.load() as load:
        load.more(10)
        stage.restart_as(other, load)
        load.more(40)
        began_s = load.entries[-1].sent_s
        other.popen.kill()
        load.more(100)
        assert stage.agent.breaker() != 0
        with serving("cloud", "--bundle", str(folder)) as back:
            stage.proxy.lead_to(back.grpc)
            repaired_s = stage.heal()
            recovery_s = stage.recovery_s(load, repaired_s)
            load.more(20)
    verdict = stage.judge(load)
    report(found_by(verdict, 87, "splits: cloud killed, and another", load, recovery_s))
    during = check(verdict, load, began_s, repaired_s, {"cloud_unreachable", "cloud_bad_answer", "cloud_timeout"})
    assert any(e.route == "edge" and e.reason in ("cloud_unreachable", "breaker") for e in during)
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def without_splits(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    seal(copy, msgspec.structs.replace(Bundle.open(copy).manifest, splits=msgspec.UNSET))
    return copy


def with_other_tails(folder: Path, copy: Path) -> Path:
    """Other files, which answer alike."""
    shutil.copytree(folder, copy)
    manifest = Bundle.open(copy).manifest
    for split in splits_of(manifest):
        with (copy / split.tail).open("ab") as file:
            file.write(b"\x1a\x01x")  # the producer's name, once more
    seal(copy, manifest)
    return copy


@pytest.mark.parametrize(
    ("row", "fault", "other"),
    [(88, "splits: the tails are gone", without_splits), (89, "splits: tails of another digest", with_other_tails)],
)
def test_rows_88_and_89_where_the_tails_do_not_fit_the_whole_input_is_sent(
    on_splits: SplitStage,
    serving: Any,
    folder: Path,
    cloud: Any,
    tmp_path: Path,
    report: Callable[[Found], None],
    row: int,
    fault: str,
    other: Callable[[Path, Path], Path],
) -> None:
    stage = on_splits
    with serving("cloud", "--bundle", str(other(folder, tmp_path / "other"))) as misfit, stage.load() as load:
        load.more(40)
        began_s = load.entries[-1].sent_s
        stage.restart_as(misfit, load)
        load.first(lambda entry: entry.route == "cloud", 30.0, began_s)
        load.more(100)
        met = len(load.entries)
        repaired_s = stage.restart_as(cloud, load)
        recovery_s = stage.recovery_s(load, repaired_s)
        load.more(20)
    verdict = stage.judge(load)
    report(found_by(verdict, row, fault, load, recovery_s))
    check(verdict, load, began_s, repaired_s, {"cloud_unreachable", "cloud_incompatible", "cloud_bad_answer"})
    settled = load.entries[met - 50 : met - 10]
    assert {e.route for e in settled if e.reason != "confident"} == {"cloud"}, "as before there were splits"
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def test_row_90_on_a_squeezed_link_splits_are_taken_and_left_when_it_is_quick_again(
    serving: Any, tmp_path: Path, tiny_bundle: Path, cloud: Any, seen_split: Pictures, report: Callable[[Found], None]
) -> None:
    # So slow in the cloud, as its maker says, that nobody wants it on a quick link.
    slow = with_splits(tiny_bundle, tmp_path / "bundle", tail_ms=50.0)
    with split_stage(serving, tmp_path, slow, cloud, seen_split, use="auto") as stage:
        stage.away = "cloud"
        stage.well()
        with stage.load(rate_per_s=8.0, order=range(seen_split.doubtful), timeout_s=2.0) as load:
            load.more(10)
            began_s = load.entries[-1].sent_s
            stage.proxy.link(bits_per_s=SQUEEZED)
            load.first(lambda entry: entry.route == "split", 30.0, began_s)
            load.more(60)
            settled = list(load.entries[-50:-10])
            repaired_s = stage.heal()
            recovery_s = stage.recovery_s(load, repaired_s, SEEN_AGAIN_S)
            load.more(10)
        verdict = stage.judge(load)
    note = f"{sum(e.route == 'split' for e in settled)} of {len(settled)} by splits once it was known"
    report(found_by(verdict, 90, "splits: link squeezed to 5 KB/s, and back", load, recovery_s, note))
    check(verdict, load, began_s, repaired_s, {"cloud_timeout"})
    assert sum(e.route == "split" for e in settled) > len(settled) / 2


def test_row_91_whole_inputs_do_not_leave_the_device_whatever_becomes_of_the_tails(
    serving: Any, tmp_path: Path, folder: Path, seen_split: Pictures, report: Callable[[Found], None]
) -> None:
    with (
        serving("cloud", "--bundle", str(folder)) as cloud,
        serving("cloud", "--bundle", str(without_splits(folder, tmp_path / "other"))) as misfit,
        split_stage(serving, tmp_path, folder, cloud, seen_split, never_send_raw=True) as stage,
    ):
        stage.well()
        with stage.load() as load:
            load.more(20)
            began_s = load.entries[-1].sent_s
            stage.restart_as(misfit, load)
            load.more(60)
            repaired_s = stage.restart_as(cloud, load)
            recovery_s = stage.recovery_s(load, repaired_s)
            load.more(20)
        whole = sum(answered(server, "fashion-mnist") for server in (cloud, misfit))
        verdict = stage.judge(load)
    report(found_by(verdict, 91, "splits: tails gone, inputs must not leave", load, recovery_s))
    during = check(verdict, load, began_s, repaired_s, {"cloud_unreachable", "cloud_incompatible", "cloud_bad_answer"})
    assert "cloud" not in {e.route for e in load.entries}
    assert "cloud_incompatible" in {e.reason for e in during}
    assert whole == 0


def answered(server: Any, model: str) -> float:
    """Requests for a model that a cloud has answered; those for a model that it lacks are counted elsewhere."""
    return float(server.scrape()[f'edgemux_cloud_requests_total{{model="{model}",outcome="answered"}}'])
