"""What the lab saves is what the agent runs: the same decisions, at the threshold that was certified."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from edgemux.cli.main import run
from edgemux.multiplexer import plugins
from edgemux.multiplexer.certify import DEFER_ALL, KEEP_ALL
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.lab import saved
from edgemux.multiplexer.lab.certificate import certified, prices
from edgemux.multiplexer.lab.pairs import TEST, SavedLogits, Splits, draw, splits_of
from edgemux.multiplexer.lab.results import Options
from edgemux.multiplexer.lab.routers import FITS, OURS, Scorer
from edgemux.multiplexer.lab.rows import Rows, log_probabilities

SIMPLE = {"max-softmax", "temperature", "margin", "entropy", "static-threshold"}
RUNNABLE = SIMPLE | set(saved.NAMES)
OPTIONS = Options(draws=5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def split(tmp_path: Path, arrays: dict[str, Any]) -> tuple[Splits, np.ndarray]:
    """The splits of a pair, and the float32 probabilities that its device would answer the test rows with."""
    np.savez(tmp_path / "pair.npz", **arrays)
    index, parts = draw(len(arrays["edge_logits"]), 0)
    test = np.exp(log_probabilities(arrays["edge_logits"][index[parts == TEST]]))
    return splits_of(SavedLogits(tmp_path / "pair.npz"), 0, lambda done: None), test


def fitted(rows: Rows) -> dict[str, Scorer]:
    return {name: fit(rows, 0) for name, fit in FITS.items() if name in RUNNABLE}


def rule(text: str) -> Any:
    return plugins.make("edgemux.policies", text, "policy")


@pytest.mark.parametrize(
    ("classes", "sharpness", "cut"),
    [(2, 1.0, None), (10, 1.0, 0.3), (10, 30.0, None), (150, 1.0, None), (150, 4, 0.6)],
)
def test_every_saved_router_defers_for_the_agent_what_the_lab_scores_above_its_price(
    tmp_path: Path, make_pair: Any, classes: int, sharpness: float, cut: float | None
) -> None:
    arrays = make_pair(900, classes)
    arrays["edge_logits"] *= sharpness  # by 30, most of what is surest is exactly 1 in float32
    splits, p = split(tmp_path, arrays)
    scorers = fitted(splits.fit)
    found = prices(splits, scorers, {}, OPTIONS)
    if cut is not None:
        found = {name: float(np.quantile(scorers[name].score(splits.fit), cut)) for name in found}
    texts = saved.save(scorers, found, tmp_path)
    assert set(texts) == RUNNABLE
    for name, text in texts.items():
        wanted = scorers[name].score(splits.test) > found[name]
        policy = rule(text)
        assert np.array_equal(policy.doubts(p), wanted), name
        assert [bool(policy.doubts(row)) for row in p[:40]] == wanted[:40].tolist(), name


@pytest.mark.parametrize(("price", "deferred"), [(KEEP_ALL, False), (DEFER_ALL, True)])
def test_a_price_beyond_all_scores_keeps_all_or_defers_all(
    tmp_path: Path, make_pair: Any, price: float, deferred: bool
) -> None:
    splits, p = split(tmp_path, make_pair(300))
    scorers = fitted(splits.fit)
    p = np.concatenate([p, np.eye(10, dtype=np.float32), np.full((1, 10), 0.1, np.float32)])
    for name, text in saved.save(scorers, dict.fromkeys(scorers, price), tmp_path).items():
        assert (rule(text).doubts(p) == deferred).all(), name
    for scorer in scorers.values():
        assert (np.abs(scorer.score(splits.test)) <= 1.0).all()


def test_a_static_threshold_that_defers_nothing_can_be_written(tmp_path: Path, make_pair: Any) -> None:
    arrays = make_pair(300)
    arrays["cloud_logits"] = -arrays["edge_logits"]
    splits, p = split(tmp_path, arrays)
    assert not rule(saved.policy(FITS["static-threshold"](splits.fit, 0), 0.0, tmp_path)).doubts(p).any()


def test_the_chosen_router_is_saved_at_the_threshold_of_the_certificate(tmp_path: Path, make_pair: Any) -> None:
    splits, _ = split(tmp_path, make_pair(1000))
    scorer = FITS[OURS](splits.fit, 0)
    unseen = np.random.default_rng(0).uniform(-0.5, 0.5, splits.fit.count)
    certificate, _ = certified(splits, scorer, unseen, OURS, OPTIONS)
    assert prices(splits, {OURS: scorer}, {OURS: unseen}, OPTIONS) == {OURS: certificate.threshold}


def test_what_reads_the_inputs_is_not_saved_and_what_was_before_is_gone(tmp_path: Path, make_pair: Any) -> None:
    pair = make_pair(300)
    pair["inputs"] = pair["edge_logits"].reshape(-1, 2, 5)
    splits, _ = split(tmp_path, pair)
    folder = tmp_path / "new" / "routers"
    saved.prepare(folder)
    (folder / "multiplexer.npz").write_bytes(b"of an earlier run")
    saved.prepare(folder)
    scorers = fitted(splits.fit)
    found = prices(splits, scorers, {}, OPTIONS)
    assert set(saved.save(scorers, found, folder)) == SIMPLE | {"logistic", "gain-regression"}
    assert {path.name for path in folder.iterdir()} == {"logistic.npz", "gain-regression.npz"}
    assert "Not saved, since they read the inputs too: appealnet, selective-query, multiplexer." in saved.notes(found)


def test_a_policy_that_defers_everything_for_want_of_a_certificate_is_said_to() -> None:
    assert saved.notes(dict.fromkeys(RUNNABLE, 0.5)) == []
    assert saved.notes(dict.fromkeys(saved.NAMES, 0.5) | {"margin": DEFER_ALL, "entropy": DEFER_ALL}) == [
        "Nothing is certified for margin, entropy: as saved, they defer everything."
    ]


@pytest.mark.parametrize("name", ["notes.txt", "other.npz", "logistic.npz.bak"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "logistic.npz").touch()
    saved.prepare(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"--save: .* holds {name}, which is not the lab's"):
        saved.prepare(tmp_path)


def test_a_folder_that_cannot_be_made_or_written_in_a_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "file", "is no folder"), (tmp_path / "file" / "below", "cannot be made")):
        with pytest.raises(ConfigError, match=f"--save: .* {message}"):
            saved.prepare(path)
    with pytest.raises(ConfigError, match="quotation mark"):
        saved.prepare(tmp_path / 'a"b')


def test_the_command_saves_prints_and_lists_what_an_agent_can_run(
    tmp_path: Path, make_pair: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "pair.npz", **make_pair(300))
    folder = tmp_path / "it's [bold] here"
    arguments = ["lab", "--data", str(tmp_path / "pair.npz"), "--out", str(tmp_path / "lab.html")]
    assert run([*arguments, "--save", str(folder)]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("policy = ")]
    assert run([*arguments, "--save", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [tomllib.loads(line)["policy"] for line in printed] == list(found["policies"].values())
    assert set(found["policies"]) == RUNNABLE
    assert {path.name for path in folder.iterdir()} == {f"{name}.npz" for name in saved.NAMES}
    assert [line.endswith("  # chosen") for line in printed].count(True) == 1
    for text in found["policies"].values():
        assert rule(text).doubts(np.full((3, 10), 0.1, np.float32)).shape == (3,)
    assert run(arguments) == 0
    assert "policy = " not in capsys.readouterr().out
    (folder / "mine").touch()
    assert run([*arguments, "--save", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
