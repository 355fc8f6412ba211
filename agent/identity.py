"""Who this device is: a folder with its key, its certificate, the fleet's CA and what the kit said.

identity = Identity.load(state)
identity.signer()      # signs what the device says of itself
identity.tls()         # a context for mutual TLS 1.3 towards the fleet and the broker
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from agent.errors import Malformed, Unavailable, Untrusted
from wire.document import Document
from wire.errors import WireError
from wire.profile import Profile

FOLDER: Final = "identity"
NO_CHECK_TIME: Final = 0x200000
"""`X509_V_FLAG_NO_CHECK_TIME` of OpenSSL: dates are checked against trusted time, not against a clock at 1970."""


@dataclass(frozen=True, kw_only=True)
class Joined(Document):
    """`device.json`: what stays of the enrolment kit. The token does not."""

    device: str
    fleet: str
    broker: str
    profile: Profile


@dataclass(frozen=True)
class Identity:
    """A device that is enrolled."""

    folder: Path
    joined: Joined

    @classmethod
    def load(cls, state: Path) -> Self:
        """Read it from the state folder. Raises `Unavailable` when the device is not enrolled."""
        folder = state / FOLDER
        try:
            return cls(folder, Joined.from_bytes((folder / "device.json").read_bytes()))
        except FileNotFoundError as e:
            raise Unavailable(f"{state}: not enrolled: run shoal-agent enrol --kit FILE --state {state}") from e
        except (OSError, WireError) as e:
            raise Unavailable(f"{folder}: the identity cannot be read ({e}): enrol again with a new kit") from e

    @property
    def device(self) -> str:
        """The device id."""
        return self.joined.device

    @property
    def profile(self) -> Profile:
        """The profile that the device was enrolled for."""
        return self.joined.profile

    @property
    def broker_host(self) -> str:
        """The broker's host name, as in its certificate."""
        return host_and_port(self.joined.broker, "broker")[0]

    @property
    def broker_port(self) -> int:
        """The broker's port."""
        return host_and_port(self.joined.broker, "broker")[1]

    def signer(self) -> CryptoSigner:
        """The device's key. Raises `Unavailable`."""
        try:
            key = load_pem_private_key((self.folder / "key.pem").read_bytes(), None)
            return CryptoSigner(key)
        except (OSError, ValueError) as e:
            raise Unavailable(f"{self.folder / 'key.pem'}: not readable ({e}): enrol again with a new kit") from e

    def tls(self) -> ssl.SSLContext:
        """Mutual TLS 1.3, verified against the fleet's CA only. Dates: `check_certificate` after connecting."""
        try:
            context = fleet_context((self.folder / "ca.pem").read_text())
            context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        except OSError as e:
            raise Unavailable(f"{self.folder}: certificate or key not readable ({e}): enrol again") from e
        return context


def fleet_context(ca: str) -> ssl.SSLContext:
    """A client context that believes one CA (PEM) and no system store. Raises `Malformed`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= NO_CHECK_TIME
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError) as e:
        raise Malformed(f"CA certificates: not PEM: {e}") from e
    return context


def check_certificate(connection: object, now: datetime) -> None:
    """The peer's certificate has not expired by trusted time. Raises `Untrusted`.

    One that is not valid yet passes: a device whose clock stands behind could never ask the time.
    """
    if not isinstance(connection, ssl.SSLSocket):
        raise Untrusted("the connection is not encrypted, or gone")
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"])), UTC)
    if now >= expires:
        raise Untrusted(f"the server's certificate expired {expires:%Y-%m-%d}: renew it on the fleet, or set the clock")


def host_and_port(address: str, where: str) -> tuple[str, int]:
    """`localhost:8883` in two. Raises `Malformed`."""
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise Malformed(f"{where}: expected host:port, got {address[:200]!r}")
