"""The whole lab on made-up pairs whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from edgemux.multiplexer.certify import rows_needed
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.lab.certificate import naive_threshold
from edgemux.multiplexer.lab.page import page
from edgemux.multiplexer.lab.pairs import SavedLogits, splits_of
from edgemux.multiplexer.lab.pictures import Pictures
from edgemux.multiplexer.lab.results import Options, Study
from edgemux.multiplexer.lab.study import study
from edgemux.multiplexer.lab.table import HEADERS, figures_of, sentences

QUICK = Options(draws=30)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def look(tmp_path: Path, arrays: dict, options: Options = QUICK) -> tuple[Study, Pictures]:
    np.savez(tmp_path / "a.npz", **arrays)
    return study(
        splits_of(SavedLogits(tmp_path / "a.npz"), options.seed, lambda done: None), options, lambda done: None
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, make_pair) -> tuple[Study, Pictures]:
    return look(tmp_path_factory.mktemp("lab"), make_pair(3000))


def test_every_baseline_is_judged_and_none_beats_the_oracle(plain) -> None:
    found, _ = plain
    wanted = {"device-only", "cloud-only", "random", "max-softmax", "temperature", "margin", "entropy", "logistic"}
    wanted |= {"static-threshold", "appealnet", "selective-query", "gain-regression", "multiplexer"}
    assert set(found.routers) == wanted
    for name, judged in found.routers.items():
        assert judged.auc <= found.oracle + 1e-9, name
        assert judged.auc_interval[0] <= judged.auc <= judged.auc_interval[1], name
        assert set(judged.accuracy_at) == {"0.1", "0.2", "0.3"}
    assert found.routers["random"].oracle_gap_closed == 0.0
    assert found.routers["max-softmax"].difference == 0.0
    assert found.routers["max-softmax"].auc > found.random + 0.01


def test_the_certificate_is_kept_on_rows_it_has_not_seen(plain) -> None:
    found, _ = plain
    certificate = found.certificate
    assert certificate.n == 900
    assert certificate.threshold is not None
    assert certificate.bound <= certificate.alpha
    # One draw: the risk on 900 test rows may be above alpha by its own noise, of about 0.7 points.
    assert certificate.risk <= certificate.alpha + 0.025
    assert certificate.offload >= certificate.naive.offload


def test_a_cloud_with_blind_spots_is_seen_through(tmp_path: Path, make_pair) -> None:
    found, _ = look(tmp_path, make_pair(4000, blind=(3, 4)))
    assert found.routers["multiplexer"].difference > 0.02
    assert found.routers["multiplexer"].difference_interval[0] > 0.0


def test_a_worse_cloud_leaves_everything_on_the_device_and_is_told(tmp_path: Path, make_pair) -> None:
    pair = make_pair(1000)
    pair["edge_logits"], pair["cloud_logits"] = pair["cloud_logits"], pair["edge_logits"]
    found, pictures = look(tmp_path, pair)
    assert found.chosen == "device-only"
    assert found.certificate.offload == 0.0
    assert found.certificate.threshold is None
    assert any("answers stay on the device" in note for note in found.notes)
    assert page(found, pictures, "worse")


def test_without_labels_right_means_what_the_cloud_says(tmp_path: Path, make_pair) -> None:
    pair = make_pair(1000)
    del pair["labels"]
    found, _ = look(tmp_path, pair)
    assert not found.labelled
    assert found.cloud_accuracy == 1.0
    assert "the cloud's answers, there being no labels" in sentences(found)[0]


def test_a_certificate_that_needs_more_rows_says_how_many(tmp_path: Path, make_pair) -> None:
    found, _ = look(tmp_path, make_pair(200), Options(alpha=0.01, delta=0.05, draws=5))
    assert rows_needed(0.01, 0.05) == 299
    assert found.certificate.threshold is None
    assert found.certificate.offload == 1.0
    assert any("needs at least 299 rows in the certificate split, which has 60: bring 997" in n for n in found.notes)


def test_models_that_always_agree_leave_nothing_to_choose(tmp_path: Path, make_pair) -> None:
    pair = make_pair(400)
    pair["cloud_logits"] = pair["edge_logits"]
    del pair["labels"]
    found, pictures = look(tmp_path, pair)
    assert found.routers["multiplexer"].oracle_gap_closed is None
    assert found.certificate.offload == 0.0
    assert page(found, pictures, "the same")


def test_inputs_give_a_pre_gate(tmp_path: Path, make_pair) -> None:
    pair = make_pair(2000)
    pair["inputs"] = pair["edge_logits"].reshape(-1, 2, 5)
    found, _ = look(tmp_path, pair)
    assert found.routers["pre-gate"].auc > found.random


def test_thousands_of_classes_work(tmp_path: Path, make_pair) -> None:
    found, _ = look(tmp_path, make_pair(600, classes=2000))
    assert found.classes == 2000
    assert found.routers["multiplexer"].auc > found.random


def test_two_classes_work(tmp_path: Path, make_pair) -> None:
    found, _ = look(tmp_path, make_pair(600, classes=2))
    assert found.routers["margin"].auc == pytest.approx(found.routers["max-softmax"].auc)


def test_what_cannot_be_certified_is_refused(tmp_path: Path, make_pair) -> None:
    pair = make_pair(300)
    with pytest.raises(ConfigError, match="--alpha: must be between 0 and 1, not 1"):
        look(tmp_path, pair, Options(alpha=1.0))
    del pair["labels"]
    with pytest.raises(ConfigError, match="--certify: labels are wanted"):
        look(tmp_path, pair, Options(against_labels=True))


def test_a_certificate_can_be_about_labels(tmp_path: Path, make_pair) -> None:
    pair = make_pair(2000)
    agreed, _ = look(tmp_path, pair)
    right, _ = look(tmp_path, pair, Options(against_labels=True, draws=30))
    assert right.certificate.offload <= agreed.certificate.offload


def test_the_naive_threshold_is_the_highest_that_meets_alpha() -> None:
    gain = np.array([0.1, 0.2, 0.3, 0.4])
    wrong = np.array([False, True, False, True])
    assert naive_threshold(gain, wrong, 0.25) == 0.3
    assert naive_threshold(gain, wrong, 0.5) == 2.0
    assert naive_threshold(np.array([0.1, 0.1]), np.array([False, True]), 0.25) == -2.0


def test_the_page_needs_nothing_from_elsewhere(plain) -> None:
    html = page(*plain, "a <title>")
    assert html.count("<svg") == 5
    assert "a &lt;title&gt;" in html
    for foreign in ("<script", "src=", "href=", "url(", "@import"):
        assert foreign not in html
    for name in plain[0].routers:
        assert f"<td>{name}</td>" in html


def test_every_router_has_a_cell_for_each_column(plain) -> None:
    for name, judged in plain[0].routers.items():
        assert len(figures_of(name, judged)) == len(HEADERS)


def test_what_no_certificate_split_could_hold_is_said_instead_of_a_number_of_rows(tmp_path: Path, make_pair) -> None:
    found, _ = look(tmp_path, make_pair(300), Options(alpha=1e-6, draws=5))
    assert any("2302584 rows in the certificate split, which takes 100000 at most" in note for note in found.notes)
