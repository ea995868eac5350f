"""What the live page is told of inputs: small pictures, the latest ones, and nothing while nobody looks."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemux.edge import gallery as module
from edgemux.edge.gallery import LINES, MOST, POINTS, SIDE, Gallery, PageSettings, picture_of, quantiles, thinned
from edgemux.edge.live import live_of_all
from edgemux.edge.sample import Sample
from edgemux.multiplexer.domain import Placement, Prediction, Reason, Route
from edgemux.wire.process import Listen
from edgemux.wire.security import ServerTls
from tests.edge.conftest import AgentFactory
from tests.simulated_cloud import SimulatedCloud

CLASSES = ("cat", "<img src=x onerror=alert(1)>")
DEVICE = Route("level-2", Placement.EDGE, 2)
CLOUD = Route("cloud", Placement.CLOUD)
EVERY_KIND = st.sampled_from(("uint8", "int16", "int64", "float16", "float32", "float64", "bool"))
SHAPES = st.lists(st.integers(0, 150), max_size=4).map(tuple).filter(lambda s: np.prod(s, dtype=float) < 2e5)


def sample_of(tensor: NDArray[Any]) -> Sample:
    return Sample({"image": tensor[None]}, np.array([[0.6, 0.7, 0.9]], np.float32), 1.0)


def prediction_of(route: Route, label: int = 1, sure: float = 0.8) -> Prediction:
    probabilities = np.full(2, 1 - sure, np.float32)
    probabilities[label] = sure
    return Prediction(route, label, probabilities, sure)


def add(gallery: Gallery, prediction: Prediction | None = None, sample: Sample | None = None, **how: Any) -> None:
    sample = sample or sample_of(np.zeros((28, 28), np.uint8))
    given = {"reason": Reason.CONFIDENT, "degraded": False, "elapsed_s": 0.002} | how
    gallery.add("m", CLASSES, 2, sample, prediction=prediction or prediction_of(DEVICE), **given)


@given(SHAPES, EVERY_KIND, st.integers(0, 2**32 - 1))
def test_whatever_comes_in_is_drawn_small_or_not_at_all(shape: tuple[int, ...], kind: str, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(kind)
    thin = thinned(array)
    if thin is None:
        return
    assert thin.size <= 4 * SIDE * SIDE * 3
    assert not np.shares_memory(thin, array)
    drawn = picture_of(thin)
    values = base64.b64decode(drawn.data)
    assert len(values) == drawn.width * drawn.height * (3 if drawn.kind == "rgb" else 1)
    widest, most_rows = (POINTS, LINES) if drawn.kind == "lines" else (SIDE, SIDE)
    assert 1 <= drawn.width <= widest
    assert 1 <= drawn.height <= most_rows


def test_a_small_picture_is_drawn_as_it_is() -> None:
    pixels = np.arange(28 * 28, dtype=np.uint16).astype(np.uint8).reshape(28, 28)
    drawn = picture_of(thinned(pixels))
    assert (drawn.kind, drawn.width, drawn.height) == ("gray", 28, 28)
    assert base64.b64decode(drawn.data) == pixels.tobytes()


@pytest.mark.parametrize("shape", [(3, 96, 128), (96, 128, 3)])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_colours_may_come_first_or_last(shape: tuple[int, ...], kind: str) -> None:
    red = np.zeros(shape, kind)
    red[(0, ...) if shape[0] == 3 else (..., 0)] = 255
    drawn = picture_of(thinned(red))
    assert (drawn.kind, drawn.width, drawn.height) == ("rgb", 64, 48)
    assert base64.b64decode(drawn.data)[:6] == bytes([255, 0, 0, 255, 0, 0])


def test_numbers_become_lines_from_the_lowest_to_the_highest() -> None:
    drawn = picture_of(thinned(np.linspace(-1, 1, 128, dtype=np.float32)[:, None] * np.ones((1, 6), np.float32)))
    assert (drawn.kind, drawn.width, drawn.height) == ("lines", POINTS, LINES)
    values = base64.b64decode(drawn.data)
    assert values[0] == 0
    assert values[POINTS - 1] >= 250


def test_what_is_no_number_does_not_keep_the_rest_from_being_drawn() -> None:
    drawn = picture_of(thinned(np.array([np.nan, 0.0, np.inf, 1.0], np.float32)))
    assert base64.b64decode(drawn.data) == bytes([0, 0, 0, 255])


async def test_the_last_inputs_are_kept_and_told_once() -> None:
    gallery = Gallery("pictures")
    gallery.look()
    for _ in range(MOST + 5):
        add(gallery)
    told = gallery.after(0)
    assert [entry.number for entry in told] == list(range(6, MOST + 6))
    assert gallery.after(MOST + 3) == told[-2:]
    assert gallery.after(MOST + 5) == []
    # A page from before the agent was started anew has other numbers.
    assert gallery.after(10_000) == told
    gallery.close()


async def test_nothing_is_kept_once_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKED_S", 0.02)
    gallery = Gallery("pictures")
    assert not gallery.open
    gallery.look()
    assert gallery.open
    add(gallery)
    async with asyncio.timeout(30):
        while gallery.open:  # noqa: ASYNC110 - what is waited for is a timer
            await asyncio.sleep(0.005)
    assert gallery.after(0) == []
    assert gallery.times("m") == {}


async def test_whoever_looks_again_keeps_it_open() -> None:
    gallery = Gallery("rows")
    gallery.look()
    first = gallery._closing
    gallery.look()
    assert first is not None
    assert first.cancelled()
    gallery.close()


async def test_an_entry_says_what_was_decided_and_why() -> None:
    gallery = Gallery("pictures", clock=lambda: 5.0, wall=lambda: 1e9)
    gallery.look()
    sample = sample_of(np.zeros((28, 28), np.uint8))
    sample.answer = prediction_of(DEVICE, label=0, sure=0.55)
    add(gallery, prediction_of(CLOUD), sample, reason=Reason.DEFERRED, elapsed_s=0.0301)
    (entry,) = gallery.after(0)
    assert entry.label == CLASSES[1]
    assert (entry.route, entry.variant, entry.level, entry.reason) == ("cloud", "cloud", 0, "deferred")
    assert (entry.device_before, entry.cloud_before, entry.after) == (0.7, 0.9, 0.8)
    assert (entry.device_label, entry.device_sure) == ("cat", 0.55)
    assert (entry.elapsed_ms, entry.time_s) == (30.1, 1e9)
    assert entry.picture is not None
    gallery.close()


async def test_a_refused_input_has_a_reason_and_no_answer() -> None:
    gallery = Gallery("rows")
    gallery.look()
    gallery.add("m", CLASSES, 1, sample_of(np.zeros(4)), Reason.EXPIRED, None, False, 0.5)
    (entry,) = gallery.after(0)
    assert (entry.label, entry.route, entry.after, entry.reason) == (None, "", None, "expired")
    assert gallery.times("m") == {}
    gallery.close()


@pytest.mark.parametrize(("shown", "rows", "pictures"), [("pictures", 1, 1), ("rows", 1, 0), ("none", 0, 0)])
async def test_what_is_private_is_not_kept(shown: Any, rows: int, pictures: int) -> None:
    gallery = Gallery(shown)
    gallery.look()
    add(gallery)
    told = gallery.after(0)
    assert len(told) == rows
    assert sum(entry.picture is not None for entry in told) == pictures
    # How long answers took says nothing about inputs.
    assert gallery.times("m")["edge"]["n"] == 1
    gallery.close()


CERTS = ServerTls(Path("c"), Path("k"), Path("a"))


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ({}, "pictures"),
        ({"host": "::1"}, "pictures"),
        ({"host": "0.0.0.0", "insecure": True}, "rows"),
        ({"host": "0.0.0.0", "token_file": Path("tokens"), "insecure": True}, "pictures"),
        ({"host": "0.0.0.0", "tls": CERTS}, "pictures"),
    ],
)
def test_pictures_are_shown_by_default_only_where_strangers_cannot_look(how: dict[str, Any], shown: str) -> None:
    listen = Listen(grpc_port=1, http_port=2, metrics_port=3, **how)
    assert PageSettings().shown(listen) == shown
    for chosen in ("pictures", "rows", "none"):
        assert PageSettings(chosen).shown(listen) == chosen  # type: ignore[arg-type]


def test_quantiles_are_by_route_and_in_milliseconds() -> None:
    found = quantiles([("edge", 0.001 * (i + 1)) for i in range(101)] + [("cloud", 0.02)])
    assert found == {
        "edge": {"n": 101, "p50_ms": 51.0, "p99_ms": 100.0},
        "cloud": {"n": 1, "p50_ms": 20.0, "p99_ms": 20.0},
    }


async def test_an_agent_tells_its_last_inputs_only_to_whoever_looks(
    agent_of: AgentFactory, cloud: SimulatedCloud, pictures: Any
) -> None:
    images, _ = pictures(6, 3)
    async with agent_of(cloud.address) as agent:
        agent.gallery = gallery = Gallery("pictures")
        await agent.infer({"image": images})
        assert gallery.after(0) == []
        gallery.look()
        answers = await agent.infer({"image": images})
        name = agent.manifest.name
        told = live_of_all({name: agent}, gallery, after=0)
        gallery.close()
    rows = told["inputs"]
    # Rows of a request are answered side by side: whichever is first is told first.
    key = lambda row: (row["label"], row["route"], row["reason"])  # noqa: E731
    classes = agent.manifest.classes
    assert sorted(map(key, rows)) == sorted(
        (classes[a.prediction.label], a.prediction.route.placement.value, a.reason.value) for a in answers
    )
    assert all(row["picture"]["kind"] == "gray" for row in rows)
    one = told["applications"][name]
    assert sum(each["count"] for each in one["answers"]) == 12
    assert sum(each["n"] for each in one["times"].values()) == 6
    assert [level["name"] for level in one["levels"]] == ["level-1", "level-2", "level-3", "level-4"]
    assert b"Infinity" not in msgspec.json.encode(told)


async def test_every_budget_is_told_by_itself(agent_of: AgentFactory) -> None:
    from edgemux.edge.config import LimitSettings
    from edgemux.edge.purse import BudgetSettings

    budgets = (BudgetSettings("bytes", 1e6, "day"), BudgetSettings("joules", 10.0, "hour"))
    async with agent_of(None, limits=LimitSettings(offloads_per_s=2.0), budgets=budgets) as agent:
        told = live_of_all({"m": agent}, Gallery("none"), 0)["device"]["held"]
    assert [(each["of"], each["per"], each["holds"]) for each in told] == [
        ("offloads", "rate", 20.0),
        ("bytes", "day", 1e5),
        ("joules", "hour", 1.0),
    ]
