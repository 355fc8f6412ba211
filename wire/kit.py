"""The enrolment kit: what lets one device, or one batch, join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from wire.document import CONTRACT, Document, check_device
from wire.errors import Malformed
from wire.profile import Profile
from wire.units import instant


@dataclass(frozen=True, kw_only=True)
class Claim(Document):
    """What one batch of devices shares to ask for admission: a claim certificate and its key, as PEM."""

    batch: str
    certificate: str
    key: str

    def __post_init__(self) -> None:
        check_device(self.batch, "claim.batch")


@dataclass(frozen=True, kw_only=True)
class EnrolmentKit(Document):
    """The small file that lets one device, or one batch, join.

    `fleet` is the HTTPS address, `broker` host and port, `ca` the fleet's CA certificates as PEM, `trust` maps document
    names (`wire.trust`) to current signed metadata. One device: `device`, and `token`, which works once. A batch:
    `claim`; each device of it names itself and waits until an operator accepts it. Good from `issued` to `expires`.
    """

    LIMIT: ClassVar[int] = 1024 * 1024

    contract: str = CONTRACT
    device: str | None = None
    token: str | None = None
    claim: Claim | None = None
    issued: str
    expires: str
    fleet: str
    broker: str
    ca: str
    trust: Mapping[str, str]
    profile: Profile

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device(self.device, "kit.device")
        if (self.device is None or self.token is None) == (self.claim is None):
            raise Malformed("kit: expected either device and token, or a claim")
        instant(self.issued, where="kit.issued")
        instant(self.expires, where="kit.expires")
