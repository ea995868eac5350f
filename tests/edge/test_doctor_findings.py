"""What is made of what the doctor sees: pure, so that every device that is not at hand can be tried."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.edge.budget import RANGES, Readings
from edgemux.edge.doctor.access import FilesSeen, Port, PortSeen, file_findings, port_findings
from edgemux.edge.doctor.link import CallSeen, LinkSeen, bytes_per_s, link_findings, proxy_for
from edgemux.edge.doctor.models import (
    BundleSeen,
    LevelTiming,
    RuntimeSeen,
    Wanted,
    bundle_findings,
    level_findings,
    runtime_findings,
    split_findings,
)
from edgemux.edge.doctor.resources import (
    AGENT_BYTES,
    DESCRIPTORS,
    LEAST_BYTES,
    DiskSeen,
    MemorySeen,
    SensorSeen,
    clock_findings,
    cpu_findings,
    descriptor_findings,
    disk_findings,
    memory_findings,
    power_findings,
    sensor_findings,
    user_findings,
)
from edgemux.edge.heads import Alone
from edgemux.multiplexer.errors import (
    BadAnswer,
    DeadlineExceeded,
    ExecutionError,
    Forbidden,
    Incompatible,
    Overloaded,
    Unauthenticated,
    Unreachable,
    Untrusted,
)
from edgemux.multiplexer.findings import Finding, Grade, can_serve, verdict

PATIENT = settings(deadline=None, max_examples=60)  # machines that are shared
NOW = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)
BYTES = st.floats(0, 1e12)
TEXT = st.text(max_size=12)
READINGS = st.dictionaries(st.sampled_from(sorted(RANGES)), st.just(0.5)).map(
    lambda given: {name: max(RANGES[name][0], 0.5) for name in given}
)
SENSORS = st.builds(
    SensorSeen,
    name=st.sampled_from(["cpu", "memory", "heat", "battery", "mine"]),
    readings=READINGS,
    wrong=st.lists(st.sampled_from(sorted(RANGES)), max_size=2, unique=True).map(tuple),
    trouble=st.sampled_from(["", "cannot be read"]),
)
MAYBE_DATE = st.none() | st.datetimes(
    datetime.datetime(2020, 1, 1), datetime.datetime(2035, 1, 1), timezones=st.just(datetime.UTC)
)
CAUSES = (
    None,
    *(
        kind("why")
        for kind in (
            BadAnswer,
            DeadlineExceeded,
            ExecutionError,
            Forbidden,
            Incompatible,
            Overloaded,
            Unauthenticated,
            Unreachable,
            Untrusted,
        )
    ),
)
CALLS = st.builds(CallSeen, st.integers(1, 64), st.integers(1, 10**7), st.floats(0, 10), st.floats(0, 10))
LINKS = st.builds(
    LinkSeen,
    address=st.sampled_from(["127.0.0.1:8001", "cloud:8001", "[::1]:8001"]),
    addresses=st.lists(TEXT, max_size=3).map(tuple),
    connect_s=st.none() | st.floats(0, 5),
    tls=st.booleans(),
    tls_error=st.sampled_from(["", "the cloud does not speak TLS there"]),
    peer_until=MAYBE_DATE,
    rtt_s=st.none() | st.floats(0, 5),
    model=st.sampled_from(["", "door"]),
    digest=st.sampled_from(["", "right", "other", "unknown"]),
    calls=st.lists(CALLS, max_size=2).map(tuple),
    step=st.sampled_from(["", "resolve", "connect", "gRPC", "model"]),
    error=st.sampled_from(["", "no such name"]),
    cause=st.sampled_from(CAUSES),
)


def one(findings: Sequence[Finding], about: str) -> Finding:
    (found,) = [finding for finding in findings if finding.about == about]
    return found


def worst(findings: Sequence[Finding]) -> Grade:
    return max((finding.grade for finding in findings), key=list(Grade).index)


def test_only_a_problem_can_stop_an_agent_and_a_problem_says_how_to_fix_it() -> None:
    with pytest.raises(ValueError, match="only a problem"):
        Finding("a", "b", Grade.NOTE, "c", stops=True)
    with pytest.raises(ValueError, match="fix"):
        Finding("a", "b", Grade.PROBLEM, "c")


@PATIENT
@given(st.lists(st.sampled_from(Grade), max_size=5), st.booleans())
def test_the_verdict_says_whether_it_can_serve(grades: list[Grade], stops: bool) -> None:
    found = [Finding("a", "b", g, "c", "d", stops and g is Grade.PROBLEM) for g in grades]
    assert can_serve(found) == (not stops or Grade.PROBLEM not in grades)
    assert verdict(found).startswith("It can serve" if can_serve(found) else "It cannot serve")


# --- what the device has


@PATIENT
@given(BYTES, BYTES, st.none() | BYTES, BYTES, st.booleans())
def test_more_memory_is_never_worse(
    total: float, available: float, limit: float | None, levels: float, running: bool
) -> None:
    less = memory_findings(MemorySeen(total, available, limit, levels, running))
    doubled = None if limit is None else 2 * limit
    more = memory_findings(MemorySeen(2 * total, 2 * available, doubled, levels, running))
    assert can_serve(more) or not can_serve(less)
    assert list(Grade).index(worst(more)) <= list(Grade).index(worst(less))


def test_an_agent_does_not_start_where_it_cannot_fit_and_says_so_of_a_group_s_limit_too() -> None:
    assert not can_serve(memory_findings(MemorySeen(LEAST_BYTES - 1, 50e6)))
    assert not can_serve(memory_findings(MemorySeen(1e9, 50e6, limit=LEAST_BYTES - 1)))
    assert can_serve(memory_findings(MemorySeen(1e9, 50e6, limit=LEAST_BYTES)))


def test_what_an_agent_that_runs_has_taken_is_not_missed() -> None:
    assert one(memory_findings(MemorySeen(5e8, AGENT_BYTES - 1)), "memory").grade is Grade.PROBLEM
    assert one(memory_findings(MemorySeen(5e8, AGENT_BYTES - 1, running=True)), "memory").grade is Grade.OK


@PATIENT
@given(st.lists(SENSORS, max_size=5), st.booleans())
def test_every_configured_sensor_is_spoken_of_and_none_of_ours_stops_an_agent(
    seen: list[SensorSeen], psi: bool
) -> None:
    found = sensor_findings(seen, psi)
    for sensor in seen:
        assert any(finding.about.startswith(sensor.name) for finding in found)
    assert can_serve(found)


def test_a_sensor_that_is_not_installed_stops_an_agent() -> None:
    found = sensor_findings([SensorSeen("cpux", trouble="no plug-in 'cpux'", unknown=True)])
    assert not can_serve(found)


def test_a_missing_pressure_says_how_to_get_it_only_where_the_kernel_keeps_none() -> None:
    seen = [SensorSeen("cpu", {"cpu_count": 4.0, "cpu_others": 0.1})]
    assert "psi=1" in one(sensor_findings(seen, psi=False), "cpu: waiting for a CPU").fix
    assert one(sensor_findings(seen, psi=True), "cpu: waiting for a CPU").fix == ""


@pytest.mark.parametrize(
    ("name", "readings", "word"),
    [
        ("heat", {"temperature_c": 75.0}, "above 70 C"),
        ("heat", {"temperature_c": 60.0, "throttled": 1.0}, "throttled now"),
        ("battery", {"battery": 0.1, "discharging": 1.0}, "low battery"),
        ("memory", {"memory_available": 1e9, "memory_pressure": 0.2}, "levels are dropped"),
        ("cpu", {"cpu_count": 4.0, "cpu_others": 0.95}, "hardly any CPU"),
    ],
)
def test_a_reading_that_makes_the_agent_do_less_is_noted(name: str, readings: dict[str, float], word: str) -> None:
    found = one(sensor_findings([SensorSeen(name, readings)]), name)
    assert found.grade is Grade.NOTE
    assert word in found.says


@PATIENT
@given(st.integers(0, 2**20 - 1))
def test_the_firmware_s_flags_are_a_problem_now_and_a_note_afterwards(flags: int) -> None:
    found = power_findings(flags)
    assert (worst(found) is Grade.PROBLEM) == bool(flags & 0xF)
    assert (worst(found) is Grade.OK) == (flags & 0xF000F == 0)
    if flags & 1:
        assert any("power supply" in finding.fix for finding in found)


def test_no_firmware_of_a_raspberry_pi_is_nothing_bad() -> None:
    assert worst(power_findings(None)) is Grade.OK


@PATIENT
@given(st.floats(1, 1e6) | st.just(math.inf))
def test_an_agent_needs_some_descriptors(limit: float) -> None:
    assert can_serve(descriptor_findings(limit)) == (limit >= DESCRIPTORS)


def test_root_is_told_that_it_does_not_see_what_the_agent_s_user_may() -> None:
    assert worst(user_findings(True)) is Grade.NOTE
    assert user_findings(False) == []


@PATIENT
@given(st.floats(1, 64), st.none() | st.floats(0.01, 64))
def test_less_than_a_cpu_is_noted(count: float, limit: float | None) -> None:
    assert (worst(cpu_findings(count, limit, 0.5)) is Grade.NOTE) == (limit is not None and limit < 1)


def test_a_full_a_hanging_and_a_forbidden_disk_are_problems_and_budgets_want_a_place() -> None:
    seen = [
        DiskSeen("state_dir", True, 0.0),
        DiskSeen("log.requests", False),
        DiskSeen("more", False, hangs=True),
    ]
    assert [finding.grade for finding in disk_findings(seen, True)] == [Grade.PROBLEM] * 3
    assert one(disk_findings([], True), "state_dir").grade is Grade.NOTE
    assert worst(disk_findings([], False)) is Grade.OK
    assert worst(disk_findings([DiskSeen("state_dir", True, 1e9)], True)) is Grade.OK


@pytest.mark.parametrize(("tls", "grade"), [(True, Grade.PROBLEM), (False, Grade.NOTE)])
def test_a_clock_that_is_at_its_start_breaks_tls(tls: bool, grade: Grade) -> None:
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert worst(clock_findings(start, tls)) is grade
    assert worst(clock_findings(NOW, tls)) is Grade.OK
    assert worst(clock_findings(NOW, tls, newest=NOW + datetime.timedelta(days=1))) is grade


# --- what is served


def test_telemetry_that_is_on_is_a_problem_and_no_cpu_provider_stops() -> None:
    assert worst(runtime_findings(RuntimeSeen("1.32.0", ("CPUExecutionProvider",), True))) is Grade.OK
    assert worst(runtime_findings(RuntimeSeen("1.32.0", ("CPUExecutionProvider",), False))) is Grade.PROBLEM
    assert not can_serve(runtime_findings(RuntimeSeen("1.32.0", (), True)))


@pytest.mark.parametrize("instead", [None, "the previous bundle is served"])
def test_a_damaged_bundle_stops_an_agent_that_has_nothing_instead(instead: str | None) -> None:
    found = bundle_findings(BundleSeen("bundle", trouble="level-1.onnx: missing"), instead)
    assert can_serve(found) == (instead is not None)
    assert worst(found) is Grade.PROBLEM


@pytest.mark.parametrize(
    ("trouble", "fix"),
    [
        ("level1.onnx: its sha256 is not the one in manifest.json", "copy it again"),
        ("level1.onnx: cannot be opened (Permission denied)", "let the agent's user read it"),
        ("DIR: no such bundle directory", "correct the path"),
    ],
)
def test_what_helps_depends_on_what_is_wrong_with_a_bundle(trouble: str, fix: str) -> None:
    (found,) = bundle_findings(BundleSeen("bundle", trouble=trouble))
    assert found.fix.startswith(fix)


def timing_of(median_s: float, level: int = 1, cpu_s: float | None = None) -> LevelTiming:
    return LevelTiming("level", level, 100, median_s, 2 * median_s, median_s if cpu_s is None else cpu_s, 0.001)


@PATIENT
@given(
    st.floats(1e-6, 10),
    st.floats(1e-6, 10),
    st.integers(1, 4),
    st.floats(0.001, 1),
    st.floats(0.001, 10),
    st.floats(0.01, 1),
)
def test_a_quicker_level_is_never_judged_worse(
    median_s: float, cpu_s: float, level: int, latency_s: float, deadline_s: float, share: float
) -> None:
    wanted, readings = Wanted(latency_s, deadline_s, share), Readings(cpu_count=4.0)
    slow = level_findings("m", [timing_of(median_s, level, cpu_s)], wanted, readings)
    quick = level_findings("m", [timing_of(median_s / 2, level, cpu_s / 2)], wanted, readings)
    assert list(Grade).index(worst(quick)) <= list(Grade).index(worst(slow))


def test_a_first_level_later_than_the_deadline_is_a_problem_and_a_higher_one_is_not_used() -> None:
    found = level_findings("m", [timing_of(2.0, 1), timing_of(3.0, 2)], Wanted(0.1, 1.0, 0.5), Readings())
    assert [finding.grade for finding in found] == [Grade.PROBLEM, Grade.NOTE]
    assert "not used" in found[1].says


def test_how_many_inputs_a_level_carries_follows_the_share_and_the_free_cpu() -> None:
    wanted = Wanted(0.1, 1.0, 0.5)
    half = level_findings("m", [timing_of(0.01)], wanted, Readings(cpu_count=1.0, cpu_others=0.5))
    whole = level_findings("m", [timing_of(0.01)], wanted, Readings(cpu_count=1.0, cpu_others=0.0))
    assert "up to 25 inputs/s" in half[0].says
    assert "up to 50 inputs/s" in whole[0].says


# --- who may ask, and where


@PATIENT
@given(st.sampled_from(Port), st.sampled_from(Port), st.sampled_from(Port))
def test_a_taken_port_stops_an_agent_unless_an_agent_has_them(a: Port, b: Port, c: Port) -> None:
    found = port_findings([PortSeen(f"listen.{name}", 1000, state) for name, state in zip("abc", (a, b, c))])  # noqa: B905
    there = {a, b, c} & {Port.READY, Port.NOT_READY, Port.GUARDED}
    in_the_way = {a, b, c} & ({Port.DENIED, Port.NO_ADDRESS} | (set() if there else {Port.TAKEN}))
    assert can_serve(found) == (not in_the_way)


def test_port_0_is_always_free() -> None:
    assert worst(port_findings([PortSeen("listen.grpc_port", 0, Port.FREE)])) is Grade.OK


@PATIENT
@given(MAYBE_DATE, st.booleans(), st.booleans())
def test_a_certificate_is_noted_before_it_ends(until: datetime.datetime | None, tls: bool, token: bool) -> None:
    trouble = "expired" if until is not None and until < NOW else None
    found = file_findings(FilesSeen("listen", tls=tls, token=token, until=until, trouble=trouble), NOW)
    assert can_serve(found)
    if until is not None:
        days = (until - NOW).total_seconds() / 86400
        expected = Grade.PROBLEM if days < 0 else Grade.NOTE if days < 14 else Grade.OK
        assert one(found, "listen.tls.cert").grade is expected


def test_files_that_cannot_be_used_stop_an_agent_and_a_readable_key_is_noted() -> None:
    error = file_findings(FilesSeen("listen", error="listen.token_file: holds no token"), NOW)
    assert not can_serve(error)
    assert (error[0].about, error[0].says) == ("listen.token_file", "holds no token")
    assert (
        one(file_findings(FilesSeen("cloud", open_keys=("cloud.tls.key",)), NOW), "cloud.tls.key").grade is Grade.NOTE
    )


# --- the link


@PATIENT
@given(LINKS, st.floats(0.01, 10), st.booleans())
def test_whatever_becomes_of_the_cloud_the_agent_can_serve(seen: LinkSeen, timeout_s: float, others: bool) -> None:
    found = link_findings(seen, timeout_s, others, NOW)
    assert found
    assert can_serve(found)


@PATIENT
@given(LINKS)
def test_a_step_that_failed_is_a_problem_that_says_what_to_check(seen: LinkSeen) -> None:
    failed = bool(seen.step in ("resolve", "connect") or seen.error or seen.cause or (seen.tls and seen.tls_error))
    found = link_findings(seen, 1.0, True, NOW)
    assert (worst(found) is Grade.PROBLEM) == failed


@pytest.mark.parametrize(
    ("digest", "others", "grade"),
    [
        ("right", False, Grade.OK),
        ("other", False, Grade.PROBLEM),
        ("other", True, Grade.NOTE),
        ("unknown", False, Grade.NOTE),
    ],
)
def test_another_model_is_a_problem_unless_others_are_accepted(digest: str, others: bool, grade: Grade) -> None:
    seen = LinkSeen("127.0.0.1:8001", ("127.0.0.1",), 0.001, rtt_s=0.002, model="door", digest=digest)
    assert one(link_findings(seen, 1.0, others, NOW), "127.0.0.1:8001 model").grade is grade


@PATIENT
@given(st.floats(0, 0.1), st.floats(0.01, 1), st.integers(1000, 10**6), st.floats(1e3, 1e7))
def test_the_bandwidth_is_what_the_larger_call_takes_longer(
    rtt_s: float, server_s: float, small: int, rate: float
) -> None:
    def call(size: int) -> CallSeen:
        return CallSeen(1, size, rtt_s + server_s + size / rate, server_s)

    found = bytes_per_s(LinkSeen("a:1", calls=(call(small), call(9 * small))))
    if found is not None:
        assert found == pytest.approx(rate, rel=1e-3)
    else:
        assert 8 * small / rate < 0.0021
    assert bytes_per_s(LinkSeen("a:1", calls=(call(small),))) is None


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, ""),
        ({"http_proxy": "proxy:3128"}, "http_proxy"),
        ({"http_proxy": "a:1", "grpc_proxy": "b:1"}, "grpc_proxy"),
        ({"https_proxy": "a:1", "no_proxy": "localhost, .example"}, ""),
        ({"https_proxy": "a:1", "no_proxy": "localhost", "no_grpc_proxy": ".com"}, "https_proxy"),
    ],
)
def test_a_proxy_between_agent_and_cloud_is_told_without_its_address(
    environment: dict[str, str], variable: str
) -> None:
    assert proxy_for("cloud.example", environment) == variable
    seen = LinkSeen("cloud.example:8001", ("192.0.2.7",), 0.001, proxy=variable)
    told = [finding.says for finding in link_findings(seen, 1.0, False, NOW) if finding.about.endswith("proxy")]
    assert len(told) == bool(variable)
    assert all(variable in says and "3128" not in says for says in told)


def test_levels_that_have_no_room_are_noted() -> None:
    found = level_findings("m", [timing_of(0.001)], Wanted(0.1, 1.0, 0.5), Readings(), left_out=3)
    assert "the highest 3 of 4" in one(found, "m levels").says


def test_values_of_findings_are_json() -> None:
    found = link_findings(LinkSeen("a:1", step="connect", error="nothing answers"), 1.0, False, NOW)
    assert msgspec.json.decode(msgspec.json.encode(found))[0]["grade"] == "problem"


def test_splits_are_told_and_where_nothing_may_be_sent_it_is_a_problem() -> None:
    assert split_findings("door", [], {}, never_send_raw=False) == []
    lossy = {"b": Alone.LOSS}
    for usable, grades in ((["a"], [Grade.OK, Grade.NOTE]), ([], [Grade.NOTE])):
        found = split_findings("door", usable, lossy, never_send_raw=False)
        assert [each.grade for each in found] == grades
        assert found[-1].about == "door.b" and "loses_too_much" in found[-1].says
    (wrong,) = split_findings("door", [], {"b": Alone.HEAD_WRONG}, never_send_raw=False)
    assert wrong.grade is Grade.PROBLEM and not wrong.stops
    (alone,) = split_findings("door", [], {}, never_send_raw=True)
    assert alone.grade is Grade.PROBLEM and not alone.stops
    kept, _ = split_findings("door", ["a"], lossy, never_send_raw=True)
    assert kept.says == "1 of 2 may be used: a; whole inputs never leave this device"
