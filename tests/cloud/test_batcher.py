"""The batcher: what comes out, in which order, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.cloud.batcher import Batch, Batcher, Expired, Item, Wait


@dataclass
class Linear:
    """A batch of n rows takes exactly this long."""

    per_row_s: float = 0.001
    fixed_s: float = 0.004
    best_rows: int = 1024

    def expected_s(self, rows: int) -> float:
        return self.fixed_s + self.per_row_s * rows


def item(rows: int = 1, deadline_s: float = math.inf) -> Item:
    return Item(rows, deadline_s)


def test_an_idle_worker_gets_a_lone_item_at_once() -> None:
    batcher, lone = Batcher(8, 0.0, Linear()), item()
    batcher.add(lone, 1.0)
    assert batcher.poll(1.0) == Batch((lone,), 1)
    assert batcher.poll(1.0) == Wait(math.inf)


def test_what_arrives_while_the_worker_is_busy_becomes_the_next_batch() -> None:
    batcher, items = Batcher(8, 0.0, Linear()), [item() for _ in range(4)]
    batcher.add(items[0], 0.0)
    assert isinstance(batcher.poll(0.0), Batch)
    for later in items[1:]:
        batcher.add(later, 0.001)
        assert batcher.poll(0.001) == Wait(math.inf)
    batcher.finished()
    assert batcher.poll(0.005) == Batch(tuple(items[1:]), 3)


def test_a_batch_never_splits_an_item_and_never_skips_one() -> None:
    batcher = Batcher(4, 0.0, Linear())
    first, second, third = item(3), item(2), item(1)
    for each in (first, second, third):
        batcher.add(each, 0.0)
    assert batcher.poll(0.0) == Batch((first,), 3)
    batcher.finished()
    assert batcher.poll(0.0) == Batch((second, third), 3)


def test_with_a_linger_the_first_item_waits_for_company_but_no_longer() -> None:
    batcher, items = Batcher(8, 0.010, Linear()), [item(), item()]
    batcher.add(items[0], 1.0)
    assert batcher.poll(1.0) == Wait(1.010)
    batcher.add(items[1], 1.004)
    assert batcher.poll(1.004) == Wait(1.010)
    assert batcher.poll(1.010) == Batch(tuple(items), 2)


def test_a_full_batch_does_not_linger() -> None:
    batcher, items = Batcher(2, 1.0, Linear()), [item(), item()]
    batcher.add(items[0], 0.0)
    batcher.add(items[1], 0.0)
    assert batcher.poll(0.0) == Batch(tuple(items), 2)


def test_a_linger_ends_when_the_slack_does() -> None:
    batcher, urgent = Batcher(8, 1.0, Linear(per_row_s=0.001, fixed_s=0.004)), item(deadline_s=0.105)
    batcher.add(urgent, 0.0)
    step = batcher.poll(0.0)
    assert isinstance(step, Wait)
    assert step.until_s == pytest.approx(0.100)
    assert batcher.poll(step.until_s) == Batch((urgent,), 1)


def test_an_item_expires_while_a_batch_runs_not_at_its_end() -> None:
    batcher, running, waiting = Batcher(1, 0.0, Linear()), item(), item(deadline_s=0.5)
    batcher.add(running, 0.0)
    assert isinstance(batcher.poll(0.0), Batch)
    batcher.add(waiting, 0.0)
    assert batcher.poll(0.0) == Wait(0.5)
    assert batcher.poll(0.5) == Expired((waiting,))
    assert len(batcher) == 0


def test_a_discarded_item_never_comes_out() -> None:
    batcher, items = Batcher(1, 0.0, Linear()), [item(deadline_s=9.0), item(deadline_s=1.0), item()]
    for each in items:
        batcher.add(each, 0.0)
    assert batcher.poll(0.0) == Batch((items[0],), 1)
    assert batcher.discard(items[1]) is True
    assert batcher.discard(items[1]) is False
    assert batcher.discard(items[0]) is False
    assert batcher.queued_rows == 1
    assert batcher.poll(2.0) == Wait(math.inf)
    batcher.finished()
    assert batcher.poll(2.0) == Batch((items[2],), 1)


@pytest.mark.parametrize("rows", [0, 5])
def test_an_item_that_fits_no_batch_is_a_mistake_of_the_caller(rows: int) -> None:
    with pytest.raises(ValueError, match="must fit"):
        Batcher(4, 0.0, Linear()).add(item(rows), 0.0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6), st.floats(0.001, 1.0), st.sampled_from("ab"), st.integers(1, 3)),
        st.tuples(st.just("pass"), st.floats(0.0, 0.3)),
        st.tuples(st.just("finish")),
        st.tuples(st.just("discard"), st.integers(0, 30)),
    ),
    max_size=60,
)


class Simulation:
    """Drives a batcher as the engine does, and checks what it promises at every step."""

    def __init__(self, max_batch: int, linger_s: float) -> None:
        self.timing, self.linger_s, self.max_batch = Linear(), linger_s, max_batch
        self.batcher = Batcher(max_batch, linger_s, self.timing)
        self.now_s = 0.0
        self.added: list[Item] = []
        self.ran: list[Item] = []
        self.gone: list[Item] = []

    def take(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("add", rows, timeout_s, key, priority):
                self.added.append(Item(rows, self.now_s + timeout_s, key=key, priority=priority))
                self.batcher.add(self.added[-1], self.now_s)
            case ("pass", seconds):
                self.now_s += seconds
            case ("finish",):
                self.batcher.finished()
            case ("discard", index) if index < len(self.added):
                if self.batcher.discard(self.added[index]):
                    self.gone.append(self.added[index])
        self.drive()

    def drive(self) -> None:
        while not isinstance(step := self.batcher.poll(self.now_s), Wait):
            if isinstance(step, Expired):
                assert all(each.deadline_s <= self.now_s for each in step.items)
                self.gone.extend(step.items)
            else:
                assert step.rows == sum(each.rows for each in step.items) <= self.max_batch
                assert all(each.deadline_s > self.now_s for each in step.items)
                assert len({each.key for each in step.items}) == 1
                self.check_order(step)
                self.ran.extend(step.items)
        self.check_wait(step)

    def check_order(self, batch: Batch) -> None:
        """What was passed over is of another key, no more urgent, or did not fit any more."""
        first = batch.items[0]
        for each in self.added:
            if each in self.ran or each in self.gone or each in batch.items:
                continue
            same = each.key == first.key and each.priority == first.priority
            earlier = self.added.index(each) < self.added.index(first)
            late_s = self.now_s + 3 * self.timing.expected_s(self.max_batch)
            assert not (same and earlier) or first.deadline_s < late_s
            assert each.priority >= first.priority or first.deadline_s < late_s

    def check_wait(self, wait: Wait) -> None:
        """Asked again in time for every deadline, and nothing is kept from an idle worker past its slack."""
        waiting = [each for each in self.added if each not in self.ran and each not in self.gone]
        assert len(self.batcher) == len(waiting)
        assert self.batcher.queued_rows == sum(each.rows for each in waiting)
        assert wait.until_s > self.now_s
        if waiting:
            earliest_s = min(each.deadline_s for each in waiting)
            assert wait.until_s <= earliest_s
            if not self.batcher.busy:
                assert self.linger_s > 0
                slack_ends_s = earliest_s - self.timing.expected_s(self.batcher.queued_rows)
                assert wait.until_s <= min(slack_ends_s, waiting[0].arrived_s + self.linger_s)

    def finish(self) -> None:
        while len(self.batcher):
            self.batcher.finished()
            self.drive()
            self.now_s += 0.5


@given(steps=STEPS, max_batch=st.integers(6, 12), linger_s=st.sampled_from([0.0, 0.01, 0.5]))
def test_every_item_comes_out_exactly_once_in_its_turn_in_time_and_in_bounds(
    steps: list[tuple[Any, ...]], max_batch: int, linger_s: float
) -> None:
    simulation = Simulation(max_batch, linger_s)
    for step in steps:
        simulation.take(step)
    simulation.finish()
    assert sorted(map(id, simulation.ran + simulation.gone)) == sorted(map(id, simulation.added))
    alike = len({(each.key, each.priority) for each in simulation.added}) == 1
    positions = [simulation.added.index(each) for each in simulation.ran]
    assert positions == sorted(positions) or not alike


def test_items_of_different_keys_never_share_a_batch_and_keep_their_turn() -> None:
    batcher = Batcher(8, 0.0, Linear())
    items = [Item(1, math.inf, key=key) for key in "abab"]
    for each in items:
        batcher.add(each, 0.0)
    assert batcher.poll(0.0) == Batch((items[0], items[2]), 2)
    batcher.finished()
    assert batcher.poll(0.0) == Batch((items[1], items[3]), 2)


def test_a_higher_priority_goes_first_and_within_one_whoever_came_first() -> None:
    batcher = Batcher(2, 0.0, Linear())
    items = [Item(1, math.inf, priority=priority) for priority in (3, 2, 1, 2, 1)]
    for each in items:
        batcher.add(each, 0.0)
    order = []
    while len(batcher):
        step = batcher.poll(0.0)
        assert isinstance(step, Batch)
        order += [items.index(each) for each in step.items]
        batcher.finished()
    assert order == [2, 4, 1, 3, 0]


def test_a_low_priority_is_not_starved_past_its_deadline() -> None:
    """New items of the highest priority keep the worker busy for ever; the one that was taken in is run in time."""
    batcher, now_s = Batcher(1, 0.0, Linear()), 0.0
    low = Item(1, 0.1, priority=3)
    batcher.add(low, now_s)
    while True:
        batcher.add(Item(1, math.inf, priority=1), now_s)
        step = batcher.poll(now_s)
        assert isinstance(step, Batch)
        if low in step.items:
            break
        now_s += Linear().expected_s(1)
        batcher.finished()
    assert 0.05 < now_s <= low.deadline_s - Linear().expected_s(1)


def test_rows_before_a_priority_are_those_that_go_first() -> None:
    batcher = Batcher(8, 0.0, Linear())
    for priority, rows in ((1, 2), (3, 4)):
        batcher.add(Item(rows, math.inf, priority=priority), 0.0)
    assert [batcher.rows_before(priority) for priority in (1, 2, 3)] == [2, 2, 6]


def test_a_batch_grows_no_further_than_its_rows_are_cheapest() -> None:
    batcher = Batcher(32, 0.0, Linear(best_rows=4))
    for _ in range(6):
        batcher.add(item(), 0.0)
    step = batcher.poll(0.0)
    assert isinstance(step, Batch)
    assert step.rows == 4
    batcher.finished()
    step = batcher.poll(0.0)
    assert isinstance(step, Batch)
    assert step.rows == 2


def test_an_item_of_more_rows_than_are_cheapest_runs_alone() -> None:
    batcher, large = Batcher(32, 0.0, Linear(best_rows=4)), item(rows=9)
    batcher.add(large, 0.0)
    batcher.add(item(), 0.0)
    assert batcher.poll(0.0) == Batch((large,), 9)


def test_a_batch_is_not_grown_so_that_it_would_be_late() -> None:
    batcher = Batcher(32, 0.0, Linear(per_row_s=0.010, fixed_s=0.0))
    urgent, patient = item(rows=2, deadline_s=0.025), item(rows=2)
    batcher.add(urgent, 0.0)
    batcher.add(patient, 0.0)
    assert batcher.poll(0.0) == Batch((urgent,), 2)


def test_a_crowd_that_was_just_served_is_waited_for_where_a_batch_is_dear_whatever_its_rows() -> None:
    batcher = Batcher(8, 0.0, Linear(per_row_s=0.0001, fixed_s=0.010))
    for _ in range(4):
        batcher.add(item(), 0.0)
    assert isinstance(batcher.poll(0.0), Batch)
    batcher.finished(0.010)
    batcher.add(item(), 0.011)
    assert batcher.poll(0.011) == Wait(0.015)
    batcher.add(item(rows=2), 0.012)
    step = batcher.poll(0.012)
    assert isinstance(step, Batch)
    assert step.rows == 3


def test_a_lone_client_is_never_held() -> None:
    batcher, now_s = Batcher(8, 0.0, Linear(per_row_s=0.0001, fixed_s=0.010)), 0.0
    for _ in range(5):
        batcher.add(item(), now_s)
        assert isinstance(batcher.poll(now_s), Batch)
        now_s += 0.0101
        batcher.finished(now_s)
