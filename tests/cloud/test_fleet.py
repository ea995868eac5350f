"""The simulation of a fleet: it keeps count, agrees with queueing theory, and its replicas behave as they must."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.fleet import Figures, Fleet, Link, Service, bursts, day, needed, poisson, simulate

NO_WAY = Link(delay_s=0.0, jitter_s=0.0)


def play(fleet: Fleet, service: Service, replicas: int = 1, duration_s: float = 20.0, link: Link = NO_WAY) -> Figures:
    inputs = poisson(fleet, duration_s, np.random.default_rng(1))
    return simulate(fleet, service, link, replicas, inputs, duration_s)


@given(
    edges=st.integers(1, 200),
    share=st.floats(0.0, 1.0),
    per_row_s=st.floats(1e-4, 0.05),
    replicas=st.integers(1, 5),
    linger_s=st.sampled_from([0.0, 0.01]),
)
@settings(max_examples=40, deadline=None)
def test_every_offload_is_answered_refused_or_late(
    edges: int, share: float, per_row_s: float, replicas: int, linger_s: float
) -> None:
    service = Service(0.001, per_row_s, linger_s=linger_s, admission=AdmissionSettings(max_queue=32))
    figures = play(Fleet(edges, 2.0, share), service, replicas, duration_s=3.0)
    assert figures.refused + figures.late <= figures.offloads <= figures.inputs
    assert 0 <= figures.refused_share <= 1
    assert math.isnan(figures.p99_s) or figures.p50_s <= figures.p99_s <= 1.0


def test_a_single_server_waits_as_pollaczek_and_khinchin_say() -> None:
    # One at a time, always 10 ms, 60 % busy: M/D/1, a mean wait of rho / (2 (1 - rho)) services.
    service = Service(0.0, 0.01, spread=0.0, max_batch=1, admission=AdmissionSettings(max_queue=10_000))
    fleet = Fleet(60, 1.0, timeout_s=60.0)
    inputs = poisson(fleet, 2000.0, np.random.default_rng(3))
    figures = simulate(fleet, service, NO_WAY, 1, inputs, 2000.0)
    assert figures.busy_share == pytest.approx(0.6, rel=0.02)
    assert figures.refused_share == 0
    # The median wait of M/D/1 at 0.6 is 0.29 to 0.30 services: 40 % do not wait at all.
    assert 0.012 < figures.p50_s < 0.0155


def test_an_idle_fleet_is_answered_in_service_and_network_time() -> None:
    figures = play(Fleet(1, 0.5, device_s=0.002), Service(0.003, 0.001, 0.0), link=Link(0.01, 0.0), duration_s=200.0)
    assert figures.p50_s == pytest.approx(0.002 + 0.01 + 0.004 + 0.01)
    assert figures.mean_batch == 1


def test_overload_is_refused_and_what_is_answered_is_in_time() -> None:
    figures = play(Fleet(1000, 1.0, timeout_s=0.5), Service(0.0, 0.01, max_batch=8))
    assert 0.88 < figures.refused_share < 0.95  # 100 a second of 1,000
    assert figures.p99_s <= 0.5
    assert figures.busy_share > 0.95


def test_batches_carry_what_single_requests_could_not() -> None:
    fleet, alone, batched = Fleet(300, 1.0), Service(0.009, 0.001, max_batch=1), Service(0.009, 0.001)
    assert play(fleet, alone).refused_share > 0.5
    assert play(fleet, batched).refused_share == 0


def test_all_at_once_needs_more_replicas_than_one_by_one() -> None:
    fleet, service = Fleet(500, 1.0), Service(0.002, 0.002)

    def enough(arrivals: str) -> int:
        make = {"poisson": poisson, "bursts": bursts}[arrivals]
        inputs = make(fleet, 20.0, np.random.default_rng(2))
        found = needed(lambda n: simulate(fleet, service, NO_WAY, n, inputs, 20.0).meets(0.1, 0.001))
        assert found is not None
        return found

    assert enough("bursts") > enough("poisson")


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    fleet = Fleet(200, 2.0)
    for make in (poisson, bursts):
        times = make(fleet, 50.0, np.random.default_rng(0))
        assert len(times) == pytest.approx(20_000, rel=0.05)
        assert np.all(np.diff(times) >= 0)
        assert times[0] >= 0 and times[-1] < 50.0


def test_a_day_goes_from_its_least_at_midnight_to_its_peak_at_noon() -> None:
    rates = day()
    assert len(rates) == 24
    assert min(rates) == rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[12] == pytest.approx(1.0)


@given(threshold=st.integers(1, 300), most=st.integers(1, 300))
def test_the_smallest_number_that_meets_is_found(threshold: int, most: int) -> None:
    found = needed(lambda n: n >= threshold, most=most)
    assert found == (threshold if threshold <= most else None)
