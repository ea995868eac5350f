"""The demo's arithmetic: sizes of phases, order of images, summaries. No processes, no clocks."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.cli.children import Ready, lay_out, parse_ready
from edgemux.cli.phases import MIN_REQUESTS, PHASES, kill_after, sizes
from edgemux.cli.report import Known, percentiles, sizes_of, summarise, whole_run
from edgemux.cli.scrape import Sent, counter_in, sent_in
from edgemux.cli.traffic import Outcome, open_loop, sequence

# Ten images of class 0; the device alone is right about the first seven, the cloud alone about the first nine.
KNOWN = Known(
    truth=dict.fromkeys(range(10), 0),
    edge={image: int(image >= 7) for image in range(10)},
    cloud={image: int(image >= 9) for image in range(10)},
)


def answer(image: int, route: str = "edge", label: int = 0, elapsed_s: float = 0.01, late: bool = False) -> Outcome:
    return Outcome(image, elapsed_s, late, label=label, route=route, reason="confident")


def failure(image: int, late: bool = True) -> Outcome:
    return Outcome(image, 0.25, late, error="deadline_exceeded")


@given(st.integers(min_value=MIN_REQUESTS, max_value=10**6))
def test_the_phases_share_all_requests_and_none_is_empty(requests: int) -> None:
    counts = sizes(requests)
    assert sum(counts) == requests
    assert len(counts) == len(PHASES)
    assert min(counts) >= 1


@given(st.integers(min_value=1, max_value=10**6))
def test_the_cloud_is_killed_within_its_phase_and_not_before_it(count: int) -> None:
    assert 1 <= kill_after(count) <= count


def test_the_default_run_gives_every_phase_its_percentage() -> None:
    assert sizes(1500) == [540, 300, 180, 150, 150, 180]


@given(st.integers(0, 500), st.integers(1, 60), st.integers(0, 10))
def test_no_image_is_sent_again_before_all_have_been_sent(count: int, samples: int, seed: int) -> None:
    images = sequence(count, samples, seed)
    assert len(images) == count
    counted = Counter(images)
    assert all(0 <= image < samples for image in images)
    assert max(counted.values(), default=0) - min(counted.get(image, 0) for image in range(samples)) <= 1


def test_the_same_seed_sends_the_same_images() -> None:
    assert sequence(50, 20, 3) == sequence(50, 20, 3)
    assert sequence(50, 20, 3) != sequence(50, 20, 4)


def test_a_summary_counts_what_was_observed() -> None:
    outcomes = [answer(0), answer(1, "cloud"), answer(8, "cloud"), answer(9, label=1, late=True), failure(2)]
    summary = summarise(outcomes, Sent(3, 1, 2400), KNOWN, {"cloud": 1000.0, "split": 400.0})
    assert (summary.requests, summary.answered, summary.errors, summary.late) == (5, 4, 1, 2)
    assert summary.routes == {"edge": 2, "cloud": 2, "split": 0}
    assert summary.reasons == {"confident": 4}
    assert summary.error_kinds == {"deadline_exceeded": 1}
    assert summary.offload_share == pytest.approx(0.5)
    assert summary.cloud_compute_saved == pytest.approx(1 - 3 / 5)
    assert summary.sent_bytes == 2400
    # Images 0, 1, 2 of the five for the device; all but 9 for the cloud; the request without an answer is not right.
    assert summary.accuracy.edge_only == pytest.approx(3 / 5)
    assert summary.accuracy.cloud_only == pytest.approx(4 / 5)
    assert summary.accuracy.multiplexed == pytest.approx(3 / 5)


def test_what_each_route_gave_is_told_with_what_either_model_says_of_the_same_inputs() -> None:
    outcomes = [
        answer(0),
        answer(7, "cloud"),
        answer(8, "split", elapsed_s=0.1),
        answer(9, "split", label=1, elapsed_s=0.3),
    ]
    found = summarise(outcomes, None, KNOWN, {"cloud": 1000.0, "split": 400.0}).by_route
    assert list(found) == ["edge", "cloud", "split"]
    split = found["split"]
    assert (split.answers, split.right, split.edge_only, split.cloud_only) == (2, 0.5, 0.0, 0.5)
    assert (split.latency_ms.p50, split.bytes) == (200.0, 400.0)
    assert (found["edge"].right, found["edge"].bytes) == (1.0, None)
    (nothing,) = (summarise([answer(0)], None, KNOWN).by_route["split"],)
    assert (nothing.answers, nothing.right, nothing.bytes) == (0, None, None)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6), st.integers(1, 2000), st.integers(1, 2000)
)
def test_what_an_input_takes_on_the_way_is_found_from_sums(
    counts: list[tuple[int, int]], whole: int, part: int
) -> None:
    sent = [Sent(inputs + parts, parts, inputs * whole + parts * part) for inputs, parts in counts]
    found = sizes_of(sent)
    assert set(found) <= {"cloud", "split"}
    for route, size in (("cloud", whole), ("split", part)):
        assert found.get(route, size) == pytest.approx(size, abs=0.1)
    if any(inputs for inputs, _ in counts) and not any(parts for _, parts in counts):
        assert set(found) == {"cloud"}


def test_sizes_that_sums_do_not_tell_are_not_told() -> None:
    assert sizes_of([]) == {}
    assert sizes_of([Sent(2, 1, 1400), Sent(4, 2, 2800)]) == {}
    assert sizes_of([Sent(2, 1, 1400), Sent(3, 3, 1200)]) == {"cloud": 1000.0, "split": 400.0}


def test_a_phase_without_an_answer_has_no_latency_and_no_offload_share() -> None:
    summary = summarise([failure(0), failure(1, late=False)], None, KNOWN)
    assert summary.latency_ms == percentiles([])
    assert summary.latency_ms.p50 is None
    assert summary.offload_share == 0
    assert summary.late == 1
    assert summary.cloud_compute_saved is None


def test_percentiles_are_in_milliseconds() -> None:
    taken = percentiles([0.001 * number for number in range(1, 102)])
    assert (taken.p50, taken.p95, taken.p99) == (51.0, 96.0, 100.0)


def test_totals_count_everything_but_take_accuracy_and_offload_share_from_the_first_phase() -> None:
    outcomes = {"normal": [answer(0), answer(9, "cloud", 1)], "cloud_killed": [answer(8, label=1), failure(1)]}
    sent = {"normal": Sent(1, 0, 900), "cloud_killed": Sent(2, 0, 1800)}
    totals, phases = whole_run(outcomes, sent, KNOWN)
    assert (totals.requests, totals.answered, totals.errors) == (4, 3, 1)
    assert totals.routes == {"edge": 2, "cloud": 1, "split": 0}
    assert totals.accuracy == phases["normal"].accuracy
    assert totals.offload_share == phases["normal"].offload_share == pytest.approx(0.5)
    assert totals.cloud_compute_saved == pytest.approx(1 - 3 / 4)
    assert phases["cloud_killed"].cloud_compute_saved == pytest.approx(0.0)
    assert totals.sent_bytes == 2700
    assert totals.by_route["cloud"].bytes == phases["normal"].by_route["cloud"].bytes == 900.0


def test_one_phase_without_a_reading_leaves_the_total_unknown() -> None:
    totals, _ = whole_run({"normal": [answer(0)], "slow": [answer(1)]}, {"normal": Sent(0, 0, 0), "slow": None}, KNOWN)
    assert totals.cloud_compute_saved is None


@given(st.lists(st.builds(answer, st.integers(0, 9), st.sampled_from(["edge", "cloud", "split"])), min_size=1))
def test_routes_and_reasons_each_sum_to_the_answers(outcomes: list[Outcome]) -> None:
    summary = summarise(outcomes, Sent(0, 0, 0), KNOWN)
    assert sum(found.answers for found in summary.by_route.values()) == summary.answered
    assert sum(summary.routes.values()) == sum(summary.reasons.values()) == summary.answered == len(outcomes)
    assert 0 <= summary.offload_share <= 1


def test_a_counter_is_the_sum_over_its_labels() -> None:
    text = "\n".join(
        [
            "# HELP sent_total Inputs.",
            "# TYPE sent_total counter",
            'sent_total{model="a b"} 3.0',
            'sent_total{model="c"} 4.0 1700000000',
            "sent_total_other 9.0",
            "# EOF",
        ]
    )
    assert counter_in(text, "sent_total") == 7
    assert counter_in("sent_total 2.0\n", "sent_total") == 2
    assert counter_in(text, "sent") is None


def test_what_has_left_a_device_is_read_with_what_of_it_were_parts() -> None:
    text = "\n".join(
        [
            "edgemux_offload_attempts_total 12.0",
            "edgemux_offload_bytes_total 9000.0",
            'edgemux_offload_payloads_total{model="m",payload="raw"} 7.0',
            'edgemux_offload_payloads_total{model="m",payload="bits4"} 3.0',
            'edgemux_offload_payloads_total{model="m",payload="bits2"} 2.0',
        ]
    )
    assert sent_in(text) == Sent(12, 5, 9000)
    assert sent_in("") is None
    assert Sent(12, 5, 9000).since(Sent(10, 5, 7000)) == Sent(2, 0, 2000)


def test_a_ready_line_is_understood_and_no_other_line_is() -> None:
    line = "edgemux cloud ready model=fashion-mnist grpc=127.0.0.1:8001 http=127.0.0.1:8000 metrics=127.0.0.1:8002\n"
    assert parse_ready(line) == Ready("fashion-mnist", "127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:8002")
    assert parse_ready("edgemux cloud ready model=fashion-mnist") is None
    assert parse_ready("something else") is None


@given(st.frozensets(st.integers(0, 63)))
def test_the_device_has_a_cpu_of_its_own_where_there_is_more_than_one(cpus: frozenset[int]) -> None:
    layout = lay_out(cpus)
    assert layout.device | layout.others == cpus
    if len(cpus) > 1:
        assert len(layout.device) == 1
        assert not layout.device & layout.others


async def test_open_loop_sends_without_waiting_for_answers() -> None:
    asked: list[int] = []
    outcomes: list[Outcome] = []
    all_sent = asyncio.Event()

    async def ask(image: int) -> Outcome:
        asked.append(image)
        await all_sent.wait()
        return answer(image)

    def sent(count: int) -> None:
        assert outcomes == []
        if count == 5:
            all_sent.set()

    await open_loop([4, 3, 2, 1, 0], 1000.0, ask, outcomes, sent)
    assert asked == [4, 3, 2, 1, 0]
    assert sorted(outcome.image for outcome in outcomes) == [0, 1, 2, 3, 4]
