"""When a cloud that did not serve what was wanted is asked whether it does by now: values in, a decision out."""

from __future__ import annotations

from edgemux.edge.agreement import INCOMPATIBLE_IN_A_ROW, RECHECK_S, Agreement
from edgemux.multiplexer.errors import DeadlineExceeded, Incompatible, Unreachable


def broken(model: str, beside: Agreement | None = None) -> Agreement:
    agreement = Agreement(0, model, None if beside is None else beside.breaks)
    for _ in range(INCOMPATIBLE_IN_A_ROW):
        agreement.heard(Incompatible("no such model"), 0.0)
    assert agreement.broken
    return agreement


def test_a_cloud_is_asked_again_after_half_a_minute_or_once_the_connection_was_gone() -> None:
    agreement = broken("tail")
    assert not agreement.may_ask(True, 1.0)
    assert agreement.may_ask(True, RECHECK_S)
    assert not agreement.may_ask(False, 2.0)
    assert agreement.may_ask(True, 3.0)
    agreement.asked(False, 3.0)
    assert not agreement.may_ask(True, 4.0)


def test_a_connection_that_broke_under_another_models_call_counts_for_all_that_wait() -> None:
    """While inputs are sent, it is there again before anybody looks."""
    whole = Agreement(0, "whole")
    tails = broken("one", whole), broken("other", whole)
    whole.heard(DeadlineExceeded("slow"), 1.0)
    assert not any(tail.may_ask(True, 1.0) for tail in tails)
    whole.heard(Unreachable("gone"), 2.0)
    assert all(tail.may_ask(True, 2.0) for tail in tails)
    tails[0].asked(False, 2.0)
    tails[1].asked(True, 2.0)
    assert not tails[0].may_ask(True, 3.0)
    assert not tails[1].broken
    assert not broken("late", whole).may_ask(True, 3.0), "it broke before"
