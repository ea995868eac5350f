"""How many series an agent and a cloud server can export: a formula of the configuration, and no client's doing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from edgemux.cloud.metrics import Metrics
from edgemux.edge import EdgeConfig
from edgemux.edge.config import CloudSettings
from edgemux.edge.metrics import EdgeMetrics, EnergyProxy
from edgemux.multiplexer.domain import Placement, Reason
from tests import exported

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
# The tiny bundle's, and the forms in which an input may be sent, all of them driven.
LEVELS, FORMS = 4, 14
FORMULA = re.compile(
    r"(\d+) \+ (\d+) a cloud \+ (\d+) a sensor \+ (\d+) a budget \+ (\d+) a kind of budget \+ (\d+) a form of payload "
    r"\+ (\d+) with TLS\s+\+ for each model (\d+) \+ (\d+) x \(its levels \+ 1\), and (\d+) once where"
)


def count(registry: CollectorRegistry) -> int:
    return sum(family.series for family in exported.families(registry).values())


def bound(config: EdgeConfig, forms: int) -> int:
    """The most series that an agent of the tiny bundle can have, by the page's formula, without TLS."""
    found = FORMULA.search(PAGE)
    assert found is not None
    fixed, cloud, sensor, budget, kind, form, _, model, reason, several = map(int, found.groups())
    models = len(config.every_application())
    # The rates of [limits] are budgets too.
    budgets = [each.of for each in config.budgets] + (["offloads", "bytes"] if config.budgets else [])
    return (
        fixed
        + cloud * len(config.cloud.every_address())
        + sensor * len(config.sensors)
        + budget * len(budgets)
        + kind * len(set(budgets))
        + form * forms
        + models * (model + reason * (LEVELS + 1))
        + (several if models > 1 else 0)
    )


@pytest.mark.parametrize(("models", "clouds"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_an_agent_to_which_everything_has_happened_has_as_many_series_as_the_page_says(
    tiny_bundle: Path, models: int, clouds: int
) -> None:
    config = exported.config_of(tiny_bundle, models, clouds)
    assert count(exported.edge(config)) == bound(config, FORMS)


def test_splits_add_as_many_series_as_the_page_says() -> None:
    found = re.search(r"A model with splits that may be used has (\d+) more, and (\d+) for each of them", PAGE)
    assert found is not None
    once, each = map(int, found.groups())
    without = count(exported.splits("model"))
    for names in (("a",), ("a", "b")):
        assert count(exported.splits("model", *names)) == without + once + each * len(names)


def test_the_page_s_example_is_what_its_formula_gives(tiny_bundle: Path) -> None:
    config = EdgeConfig(bundle=tiny_bundle, cloud=CloudSettings(address="127.0.0.1:1"))
    assert f"no budgets that is {bound(config, forms=1)} at most" in PAGE


def test_there_is_a_series_for_every_reason_that_the_page_allows_for() -> None:
    found = FORMULA.search(PAGE)
    assert found is not None and int(found[9]) == len(Reason)


def test_variants_and_models_that_nobody_knows_add_no_more_than_one_series() -> None:
    metrics = EdgeMetrics("m", ("level1", "cloud"), EnergyProxy())
    before = count(metrics.registry)
    for number in range(50):
        metrics.answered(Placement.EDGE, f"made up {number}", Reason.CONFIDENT, 0.5, 0.01)
    assert count(metrics.registry) == before + 1


def test_a_cloud_server_has_as_many_series_as_the_page_says() -> None:
    metrics = Metrics()
    metrics.of("one")
    alone = count(metrics.registry)
    metrics.of("one", "2")  # another version of the same
    assert count(metrics.registry) == alone
    metrics.of("two")
    assert f"has {alone} for one model, and {count(metrics.registry) - alone} for each\nfurther one" in PAGE


def test_no_series_tells_when_another_was_made(tiny_bundle: Path) -> None:
    registry = exported.edge(exported.config_of(tiny_bundle))
    assert not [s.name for family in registry.collect() for s in family.samples if s.name.endswith("_created")]
