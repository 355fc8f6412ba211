"""The name of a rollout in a desired state: `r-1`, and `r-1.2` when a device tries again. Pure.

An agent does not try a release that failed again but for another rollout, so each attempt has a name of its own.
"""

from __future__ import annotations


def attempt_name(rollout: str, attempt: int) -> str:
    """What stands in the desired state and in the device's report. The inverse of `rollout_of`."""
    return rollout if attempt <= 1 else f"{rollout}.{attempt}"


def rollout_of(name: str) -> str:
    """The rollout of an attempt."""
    return name.partition(".")[0]
