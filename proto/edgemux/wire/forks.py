"""A process that serves, and its forks: a child shares the parent's sockets, and has none of its threads.

Fork before anything is made, or start a new interpreter (``multiprocessing``'s "spawn", ``subprocess``). A child that
was forked later is kept from harming its parent, and told so when it uses what the parent made.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from edgemux.multiplexer.errors import ConfigError

# Forks that this process is away from the one that imported this.
_forks = 0
_serving = False
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _in_child() -> None:
    global _forks, _serving  # noqa: PLW0603 - the whole point: one number of the process
    _forks += 1
    if _serving:
        _serving = False
        # A signal to the child would be written to the parent's event loop, which would then stop.
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)


@contextlib.contextmanager
def served() -> Iterator[None]:
    """While the process serves, its children give up its signals."""
    global _serving  # noqa: PLW0603
    _serving = True
    try:
        yield
    finally:
        _serving = False


class Home:
    """The process in which something was made, for it to check that it still is there."""

    def __init__(self) -> None:
        self._forks = _forks

    def check(self) -> None:
        """Raises ConfigError in a child that was forked since."""
        if self._forks != _forks:
            raise ConfigError("made before a fork: its threads and connections are the parent's; make it in the child")
