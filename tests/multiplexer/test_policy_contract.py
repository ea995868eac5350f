"""Every policy that is installed keeps the contract of policies; another package's would inherit the same tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemux.multiplexer import plugins
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.features import feature_count
from edgemux.multiplexer.learned import Net, Router
from edgemux.multiplexer.policy import Policy
from edgemux.multiplexer.policy_contract import CLASSES, PolicyContract

GROUP = "edgemux.policies"
TEXTS = [
    "expected-gain",
    "device-only",
    "cloud-only",
    "random(share=0.3, seed=1)",
    "max-softmax(0.9)",
    "static(threshold=0.7)",
    "temperature(0.8, temperature=2.5)",
    "margin(0.5)",
    "entropy(0.4)",
    "sedna-threshold(0.5)",
    "sedna-ibt(0.5)",
    "learned(weights=WEIGHTS, threshold=0.6)",
    "fixed-level(level=2)",
    "round-robin",
    "largest-that-fits",
]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("router") / "router.npz"
    width, rng = feature_count(CLASSES), np.random.default_rng(0)
    net = Net(rng.normal(size=(3, width)), np.zeros(3), rng.normal(size=(1, 3)), np.zeros(1))
    Router(net, "answer", 0.5).write(path)
    return path


class TestInstalled(PolicyContract):
    """Made from its text, as the agent makes it."""

    @pytest.fixture(autouse=True, params=TEXTS)
    def _text(self, request: pytest.FixtureRequest, weights: Path) -> None:
        self.uses = frozenset({Placement.EDGE}) if request.param == "device-only" else frozenset(Placement)
        self.text = request.param.replace("WEIGHTS", f'"{weights}"')

    def make(self) -> Policy:
        return plugins.make(GROUP, self.text, "policy")


def test_every_installed_policy_is_tested() -> None:
    assert {text.partition("(")[0] for text in TEXTS} == set(plugins.names(GROUP))


class Careless(PolicyContract):
    """Runs the first route whatever it costs."""

    def make(self) -> Policy:
        from edgemux.multiplexer.domain import Accept, Run, Shed

        def run_first(case):  # type: ignore[no-untyped-def]
            if case.held is not None:
                return Accept(case.held, case.chosen)
            if not case.candidates:
                return Shed(case.failure)
            return Run(case.candidates[0].route, case.budget.latency_s, case.chosen)

        return run_first


def test_the_contract_notices_a_policy_that_looks_at_no_budget() -> None:
    with pytest.raises(AssertionError):
        Careless().test_it_runs_nothing_that_is_blocked_or_beyond_a_budget()
