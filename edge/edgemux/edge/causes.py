"""Why a route failed, as a reason, and why a request is refused, as an error. Pure."""

from __future__ import annotations

from edgemux.multiplexer.domain import Placement, Reason, Route
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


def cause_of(route: Route, error: ExecutionError) -> Reason:
    """The reason that stands for a failed route."""
    if route.placement is Placement.EDGE:
        return Reason.DEVICE_FAILED
    match error:
        case DeadlineExceeded():
            return Reason.CLOUD_TIMEOUT
        case Overloaded():
            return Reason.CLOUD_OVERLOADED
        case Untrusted():
            return Reason.CLOUD_TLS
        case Unreachable():
            return Reason.CLOUD_UNREACHABLE
        case Unauthenticated() | Forbidden():
            return Reason.CLOUD_DENIED
        case Incompatible():
            return Reason.CLOUD_INCOMPATIBLE
        case BadAnswer():
            return Reason.CLOUD_BAD_ANSWER
        case _:  # of a split only the head fails like this
            return Reason.DEVICE_FAILED if route.placement is Placement.SPLIT else Reason.CLOUD_BAD_ANSWER


def refusal(reason: Reason, wait_s: float) -> ExecutionError:
    """The error of a request that is refused; wait_s: until the device has done what waits."""
    if reason is Reason.NO_MODEL:
        return Unreachable("no model can be run on this device, and the cloud cannot be asked")
    if reason is Reason.OVERLOADED:
        return Overloaded("the device is busy for longer than the deadline allows", retry_after_s=wait_s)
    if reason is Reason.EXPIRED:
        return DeadlineExceeded("deadline: over before anything could run")
    return Unreachable("no route could answer")
