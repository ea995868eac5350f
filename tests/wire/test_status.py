"""The one table between errors and status codes is total, both ways."""

from __future__ import annotations

import grpc
import pytest

from edgemux.multiplexer import errors
from edgemux.multiplexer.errors import EdgemuxError, InputError, Overloaded
from edgemux.wire.status import TABLE, from_peer, grpc_code, http_code


def tree(kind: type[EdgemuxError]) -> list[type[EdgemuxError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


def instance(kind: type[EdgemuxError]) -> EdgemuxError:
    return kind("field", "reason") if issubclass(kind, InputError) else kind("reason")


@pytest.mark.parametrize("kind", tree(EdgemuxError))
def test_every_error_has_a_row_of_its_own(kind: type[EdgemuxError]) -> None:
    assert kind in [row[0] for row in TABLE]
    error = instance(kind)
    assert (grpc_code(error), http_code(error)) == next(row[1:] for row in TABLE if row[0] is kind)


def test_a_specific_row_stands_before_the_general_one() -> None:
    for position, (kind, _, _) in enumerate(TABLE):
        assert not any(issubclass(later, kind) for later, _, _ in TABLE[position + 1 :])


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_of_a_peer_becomes_an_execution_error_without_its_text(code: grpc.StatusCode) -> None:
    error = from_peer(code, "Traceback: /srv/secret.py")
    assert isinstance(error, errors.ExecutionError)
    assert "secret" not in str(error)


@pytest.mark.parametrize("text", ["Exceeds maximum queue size", "[request id: 7] Request timeout expired"])
def test_triton_s_busy_is_not_taken_for_gone(text: str) -> None:
    assert isinstance(from_peer(grpc.StatusCode.UNAVAILABLE, text), Overloaded)


def test_a_message_that_is_too_large_is_not_taken_for_busy() -> None:
    text = "CLIENT: Received message larger than max (30000000 vs. 1048576)"
    assert isinstance(from_peer(grpc.StatusCode.RESOURCE_EXHAUSTED, text), errors.BadAnswer)
    assert isinstance(from_peer(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"), Overloaded)


def test_the_tree_in_the_documentation_names_every_error() -> None:
    for kind in tree(EdgemuxError):
        assert kind.__name__ in (errors.__doc__ or "")
