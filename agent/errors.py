"""The errors of the agent, by whose fault it is.

    AgentError
    ├── Malformed      a setting, a kit or a request is not what it must be
    │   ├── NotFound   it names something that is not here
    │   ├── TooLong    a prompt leaves a language model no room to answer
    │   └── Unsupported  sound, and no model on this device does it
    ├── Untrusted      a certificate, token, chunk or statement does not hold
    ├── Incompatible   sound, and this device cannot run it
    └── Unavailable    the network, the disk or a process did not do its part: try again, or make room
        ├── Expired    this device's own certificate ran out: it is renewed by a signed request
        ├── Busy       everything that may wait is waiting already
        ├── Damaged    this device's own memory is not what it wrote: what stands beside it is used
        ├── Keyless    the fleet has not sealed a key to this device: a newer desired state brings it
        └── NotEnrolled  nobody enrolled this device, or the fleet wiped it: it takes a kit

What `wire` raises keeps its own tree (`wire.errors`); the update machine turns both into a reason in words.
"""

from __future__ import annotations


class AgentError(Exception):
    """Root of every error that the agent raises itself."""


class Malformed(AgentError):
    """Bad input: the message says where and what was expected."""


class NotFound(Malformed):
    """A model or a request that is not known here."""


class TooLong(Malformed):
    """More `tokens` than the `context` of the model takes."""

    def __init__(self, message: str, tokens: int, context: int) -> None:
        super().__init__(message)
        self.tokens, self.context = tokens, context


class Unsupported(Malformed):
    """A request that is well formed, for what the models here cannot do."""


class Untrusted(AgentError):
    """Refused because it could not be trusted."""


class Incompatible(AgentError):
    """It cannot run, or does not answer as it must, on this device."""


class Unavailable(AgentError):
    """Something that the agent needs is not there now."""


class Expired(Unavailable):
    """The fleet or its broker says that the certificate of this device ran out."""


class Busy(Unavailable):
    """No room to wait in: come back after `retry_after` seconds."""

    retry_after = 1


class Damaged(Unavailable):
    """The file with the agent's state is not what the agent wrote."""


class Keyless(Unavailable):
    """The key of a blob is not here."""


class NotEnrolled(Unavailable):
    """This device has no identity: to try again helps nothing."""
