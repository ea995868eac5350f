"""``python -m edgemux.cli.attached PARENT COMMAND...``: a command that does not outlive the process that started it.

Without this, a demo that is killed with SIGKILL would leave its servers and its CPU load behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone. Linux only; elsewhere the parent's own end counts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def spin() -> None:
    """Use all of a CPU, for ever."""
    while True:
        pass


def main(arguments: list[str]) -> int:
    """Run ``spin`` or a command of edgemux, attached to the parent."""
    die_with(int(arguments[0]))
    if arguments[1:] == ["spin"]:
        spin()
    from edgemux.cli.main import run

    return run(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
