"""Every error that edgemux raises on purpose.

EdgemuxError
├── ConfigError             the command or its configuration is wrong          (exit code 2)
├── ArtifactError           a bundle or one of its files cannot be trusted
├── InputError              the request itself is wrong; names the field
│   ├── UnknownModel        no such model or version
│   └── TooLarge            more bytes or elements than allowed
├── ExecutionError          a route could not answer
│   ├── DeadlineExceeded    not within the time allowed
│   ├── Overloaded          refused by choice; may say when to come back
│   ├── Unreachable         nobody answered
│   │   └── Untrusted       nobody whose certificate is trusted, or nobody who trusts ours
│   ├── Unauthenticated     asked without a token or certificate that is known
│   ├── Forbidden           known, but may not ask for this
│   ├── BadAnswer           somebody answered, but not what was asked for
│   │   └── NotTogether     somebody does not take several inputs in a call
│   └── Incompatible        somebody answered that it does not serve this, or serves another version
└── PassError               a compression pass could not be applied

Messages may reach clients: they name fields, never paths, modules or the text of foreign exceptions.
gRPC and HTTP codes are in ``edgemux.wire.status`` and nowhere else.
"""

from __future__ import annotations


class EdgemuxError(Exception):
    """Root of the tree; ``str(error)`` is one line fit for a client."""


class ConfigError(EdgemuxError):
    """The command line or the configuration is wrong."""


class ArtifactError(EdgemuxError):
    """A bundle, or a file in it, is missing, damaged or not what its manifest says."""


class InputError(EdgemuxError):
    """A request that can never succeed as it stands. ``field`` names what is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class UnknownModel(InputError):
    """No model of that name, or no such version of it."""


class TooLarge(InputError):
    """More bytes or elements than the server accepts."""


class ExecutionError(EdgemuxError):
    """A route was tried and gave no usable answer."""


class DeadlineExceeded(ExecutionError):
    """The time allowed was over before there was an answer."""


class Overloaded(ExecutionError):
    """Refused by choice. ``retry_after_s`` is a hint, None when there is none."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(ExecutionError):
    """Nobody answered: refused, reset, draining or gone."""


class Untrusted(Unreachable):
    """There is no connection that both sides trust: a certificate is out of date, for another name, or a stranger's."""


class Unauthenticated(ExecutionError):
    """Whoever asks has not shown a token, or a certificate, that is known."""


class Forbidden(ExecutionError):
    """Whoever asks is known, and may not ask for this."""


class BadAnswer(ExecutionError):
    """The other side answered something else than was asked for: shape, dtype, values, identity."""


class NotTogether(BadAnswer):
    """The other side takes one row at a time: nothing is wrong with it, nor with the rows."""


class Incompatible(ExecutionError):
    """The other side lacks the method, the model, or has another one: asking again cannot help until it changes."""


class PassError(EdgemuxError):
    """A compression pass cannot be applied to this model."""
