"""Who this device is: a folder with its keys, its certificate, the fleet's CA and what the kit said.

    key.pem       made here, never sent: the key of the certificate; it signs what the device says
    sealing.pem   made here, never sent: what the fleet seals model keys to (`wire.secrecy`)
    cert.pem      the certificate that the fleet gave
    ca.pem        the kit's authorities, believed until trusted metadata names others
    device.json   `Joined`

identity = Identity.load(state)
identity.signer()      # signs what the device says of itself
identity.tls()         # a context for mutual TLS 1.3 towards the fleet and the broker
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner

from agent.errors import Malformed, NotEnrolled, Unavailable
from agent.identity.keys import key_of, load_key
from agent.identity.tls import fleet_context, host_and_port
from wire.document import Document
from wire.errors import WireError
from wire.profile import Profile

FOLDER: Final = "identity"


@dataclass(frozen=True, kw_only=True)
class Joined(Document):
    """`device.json`: what stays of the enrolment kit. Token and claim do not."""

    device: str
    fleet: str
    broker: str
    profile: Profile


@dataclass(frozen=True)
class Identity:
    """A device that is enrolled, by one certificate."""

    folder: Path
    joined: Joined

    @classmethod
    def load(cls, state: Path) -> Self:
        """Read it from the state folder. Raises `NotEnrolled`, and `Unavailable` for damage."""
        try:
            return cls.read(state / FOLDER)
        except FileNotFoundError as e:
            raise NotEnrolled(f"{state}: not enrolled: run shoal-agent enrol --kit FILE --state {state}") from e

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from its own folder. Raises `FileNotFoundError` when it is not there, `Unavailable` for damage."""
        try:
            return cls(folder, Joined.from_bytes((folder / "device.json").read_bytes()))
        except FileNotFoundError:
            raise
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

    def certificate(self) -> x509.Certificate:
        """The certificate that names this device. Raises `Unavailable`."""
        try:
            return x509.load_pem_x509_certificate((self.folder / "cert.pem").read_bytes())
        except (OSError, ValueError) as e:
            raise Unavailable(f"{self.folder / 'cert.pem'}: not readable ({e}): enrol again with a new kit") from e

    def signer(self) -> CryptoSigner:
        """The device's key. Raises `Unavailable`."""
        try:
            return CryptoSigner(load_key((self.folder / "key.pem").read_bytes()))
        except (OSError, ValueError) as e:
            raise Unavailable(f"{self.folder / 'key.pem'}: not readable ({e}): enrol again with a new kit") from e

    def sealing_key(self) -> ec.EllipticCurvePrivateKey:
        """What model keys are sealed to; made on first use where an older agent enrolled. Raises `Unavailable`."""
        path = self.folder / "sealing.pem"
        try:
            return key_of(path)
        except (OSError, ValueError) as e:
            raise Unavailable(f"{path}: not readable ({e}): remove it, and the next start makes another") from e

    def tls(self, authorities: Sequence[str] = ()) -> ssl.SSLContext:
        """Mutual TLS 1.3; believes `authorities` (PEM), or the kit's when there are none. Raises `Unavailable`.

        Dates: `agent.identity.tls.check_certificate` after connecting.
        """
        try:
            context = fleet_context("\n".join(authorities) or (self.folder / "ca.pem").read_text())
            context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        except (OSError, Malformed) as e:
            raise Unavailable(f"{self.folder}: certificate or key not readable ({e}): enrol again") from e
        return context
