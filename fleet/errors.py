"""The errors of the fleet, by whose fault it is.

    FleetError
    ├── Malformed          a request or setting is not what it must be: the sender's fault
    │   ├── TooLarge       over a limit that a setting names
    │   ├── TooMany        sound, and faster than this sender may ask: `retry_after` says when to try again
    │   │   └── OverBudget of the gateway: a rate, or a budget of tokens or money
    │   └── Blocked        a text that a filter of the gateway does not let through
    ├── Untrusted          well formed, but not signed, listed or known as it must be
    │   ├── Unauthorized   no credential, or a wrong one
    │   └── Forbidden      a good credential, and not for this
    │       └── AnotherKey for the id of a device that has a key of its own: an alarm
    ├── Incompatible       sound, and at odds with what the fleet holds
    │   ├── NotFound       names something that is not there
    │   └── Conflict       names something that is there already, or in another state
    └── Unavailable        the machine, a port, the broker or an upstream: try again after mending it
        ├── StorageFull    no room left on the disk
        ├── Unanswered     the broker was told something and gives no sign: it may heed it later
        ├── UpstreamDown   the cloud tier cannot be reached or broke off
        ├── UpstreamSlow   the cloud tier did not answer in time
        ├── UpstreamShut   the cloud tier failed lately and is left alone: `retry_after` says until when
        └── NotJudged      a filter of the gateway could not look at a text: `retry_after` says when to try again

Each message says what happened, to which path, digest, device or setting, and what to do. The errors of `wire` pass
through; only the HTTP layer turns either into a status.
"""

from __future__ import annotations


class FleetError(Exception):
    """Root of every error that the fleet raises itself."""


class Malformed(FleetError):
    """A request or setting does not say what it must."""


class TooLarge(Malformed):
    """A request is over a limit."""


class TooMany(Malformed):
    """Requests come faster than this sender may send them."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until there is room again."""


class OverBudget(TooMany):
    """A budget or a rate of the gateway has no room for this request."""


class Blocked(Malformed):
    """A filter of the gateway does not let this text through."""


class Untrusted(FleetError):
    """What was sent cannot be believed."""


class Unauthorized(Untrusted):
    """No credential came, or it is wrong, used or expired."""


class Forbidden(Untrusted):
    """The credential is good and does not allow this."""


class AnotherKey(Forbidden):
    """A good credential for the id of a device that is known by another key: noted as a security event."""


class Incompatible(FleetError):
    """A sound request that does not fit what the fleet holds."""


class NotFound(Incompatible):
    """What was named is not there."""


class Conflict(Incompatible):
    """What was named exists already, or is in another state."""


class Unavailable(FleetError):
    """Something that the fleet stands on is missing, taken or down."""


class Unanswered(Unavailable):
    """The broker was told something and gives no sign of life: it may heed it later."""


class StorageFull(Unavailable):
    """There is no room left on the disk."""


class UpstreamDown(Unavailable):
    """The cloud tier cannot be reached."""


class UpstreamSlow(Unavailable):
    """The cloud tier did not answer in time."""


class UpstreamShut(Unavailable):
    """Every upstream for a request failed lately and is left alone for a while."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until one is tried again."""


class NotJudged(Unavailable):
    """What a filter of the gateway asks did not answer, and nothing passes that it did not look at."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until it is worth another try."""
