"""Becomes the compiler: `python -m fleet.builds.child PARENT LIMITS USER PROGRAM ARGUMENT...`.

Gives up the rights of the fleet, takes limits, and has the kernel end the compiler together with the fleet (Linux
`prctl(PR_SET_PDEATHSIG)`, kept across exec). A process of its own because code that runs between fork and exec is not
safe in a threaded parent. Imports nothing of ours, to start fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIMITS = {"cpu": resource.RLIMIT_CPU, "file": resource.RLIMIT_FSIZE, "core": resource.RLIMIT_CORE}


def main(arguments: list[str]) -> None:
    """`LIMITS` is JSON: seconds of processor time, bytes of a file, bytes of a core dump. No user: stay who we are."""
    parent, limits, user, program = int(arguments[0]), json.loads(arguments[1]), arguments[2], arguments[3:]
    for name, kind in _LIMITS.items():
        _, most = resource.getrlimit(kind)
        wanted = int(limits[name])
        value = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(kind, (value, value))
    os.umask(0o077)
    if user:
        known = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(known.pw_gid)
        os.setuid(known.pw_uid)
    if sys.platform == "linux":  # after the change of user, which takes it back
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606  this is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
