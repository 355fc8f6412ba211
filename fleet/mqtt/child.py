"""Runs a program that ends when its parent does: `python -m fleet.mqtt.child PARENT PROGRAM ARGUMENT...`.

A fleet that is killed cannot stop its broker, so the kernel does (Linux `prctl(PR_SET_PDEATHSIG)`, kept across exec).
On systems without it, the next start ends what was left behind. A process of its own because code that runs between
fork and exec is not safe in a threaded parent. Imports nothing of ours, to start fast.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Arrange for the signal and for as many open files as are allowed, then become the program."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is one, and 1024 is a common limit
    os.execv(program[0], program)  # noqa: S606  this is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
