"""The certificate in use, and the renewed one that is tried beside it.

    credentials = Credentials.open(state)
    credentials.signer()                       # goes on signing with the right key after a renewal
    credentials.believe(trust.authorities())   # the authorities that signed metadata names
    offer = credentials.offer()                # what the next connection to the broker shows
    credentials.accepted(offer) or credentials.refused(offer)

A renewed certificate takes over when the broker has accepted it, not before, and nothing is signed with its key until
then. It is given up only when the broker refused it and then accepted the one before it: a device that holds two never
ends with none. Reading is safe from any thread; everything that changes is called on one.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, Key, Signature, Signer

from agent.errors import Malformed, Unavailable
from agent.identity.identity import Identity, Joined
from agent.identity.slots import NEXT, drop_next, promote, recover, store_next
from agent.identity.tls import fleet_context
from wire.profile import Profile

log = logging.getLogger("agent.identity.credentials")

REFUSALS: Final = 3
"""So many refused connections in a row with one certificate, and the other one is shown. A broker that is restarted
in the middle of a handshake looks like a refusal."""


@dataclass(frozen=True)
class Slot:
    """An identity with what is made of its files, read once."""

    identity: Identity
    certificate: x509.Certificate
    signer: CryptoSigner

    @classmethod
    def of(cls, identity: Identity) -> Self:
        """Raises `Unavailable`."""
        return cls(identity, identity.certificate(), identity.signer())


class Credentials:
    """Both slots of a device. Make it with `open`, under the lock of the state folder."""

    def __init__(self, state: Path, current: Slot, renewed: Slot | None) -> None:
        self.state = state
        self._current = current
        self._next = renewed
        self._shows_next = renewed is not None
        self._refusals = 0
        self._gave_up = False
        self.lost_renewed = False
        """Whether the last renewed certificate was given up because the broker refused it."""
        self._authorities: tuple[str, ...] = ()
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
        self._signer = _SlotSigner(self)

    @classmethod
    def open(cls, state: Path) -> Self:
        """Read both slots, after what a crash left half done. Raises `Unavailable`, also when nobody is enrolled."""
        recover(state)
        current = Slot.of(Identity.load(state))
        try:
            renewed = Slot.of(Identity.read(state / NEXT))
        except FileNotFoundError:
            renewed = None
        except Unavailable as e:
            log.warning("the renewed certificate is dropped: %s", e)
            drop_next(state)
            renewed = None
        return cls(state, current, renewed)

    @property
    def joined(self) -> Joined:
        """What stayed of the enrolment kit."""
        return self._current.identity.joined

    @property
    def device(self) -> str:
        """The device id."""
        return self.joined.device

    @property
    def profile(self) -> Profile:
        """The profile that the device was enrolled for."""
        return self.joined.profile

    @property
    def identity(self) -> Identity:
        """The identity in use."""
        return self._current.identity

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate in use."""
        return self._current.certificate

    @property
    def newest(self) -> x509.Certificate:
        """The renewed certificate while one is tried, else the one in use."""
        return (self._next or self._current).certificate

    @property
    def renewed(self) -> bool:
        """Whether a renewed certificate is being tried."""
        return self._next is not None

    def signer(self) -> Signer:
        """Signs with the key of the certificate in use at the time of signing."""
        return self._signer

    def sealing_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that model keys are sealed to. Raises `Unavailable`."""
        return self._current.identity.sealing_key()

    # --- authorities --------------------------------------------------------------------------------------------

    def believe(self, authorities: Sequence[str]) -> bool:
        """Believe these (PEM), and the kit's when there are none. Whether one that was named before is gone.

        Raises `Malformed` and changes nothing when they are not PEM.
        """
        if authorities:
            fleet_context("\n".join(authorities))
        gone = bool(set(self._authorities) - set(authorities))
        self._authorities = tuple(authorities)
        return gone

    def authorities(self) -> str:
        """Those believed now, as PEM. Raises `Unavailable`."""
        try:
            return "\n".join(self._authorities) or (self.identity.folder / "ca.pem").read_text()
        except OSError as e:
            raise Unavailable(f"{self.identity.folder / 'ca.pem'}: not readable ({e}): enrol again") from e

    def tls(self) -> ssl.SSLContext:
        """Mutual TLS by the certificate in use. Raises `Unavailable`."""
        return self.tls_of(self._current)

    def tls_of(self, slot: Slot) -> ssl.SSLContext:
        """Mutual TLS by one slot. Raises `Unavailable`."""
        key = (slot.certificate.serial_number, slot.identity.folder, self._authorities)
        if key not in self._contexts:
            self._contexts = {key: slot.identity.tls(self._authorities)}
        return self._contexts[key]

    def nameless_tls(self) -> ssl.SSLContext:
        """TLS that shows no certificate. Raises `Unavailable`."""
        try:
            return fleet_context(self.authorities())
        except Malformed as e:
            raise Unavailable(f"{self.identity.folder / 'ca.pem'}: {e}: enrol again") from e

    # --- the line -----------------------------------------------------------------------------------------------

    def offer(self) -> Slot:
        """What the next connection to the broker shows."""
        return self._next if self._next is not None and self._shows_next else self._current

    def terms(self) -> tuple[object, ...]:
        """What a connection made now would show and believe; another value means that it should be made again."""
        return self.offer().certificate.serial_number, self._authorities

    def accepted(self, slot: Slot) -> None:
        """The broker accepted a connection that showed this. Raises `Unavailable` when the disk does not follow."""
        self._refusals = 0
        if self._next is None:
            return
        if slot is self._next:
            promote(self.state)
            self._current, self._next = Slot.of(Identity.load(self.state)), None
            log.info("the renewed certificate is in use, until %s", f"{self.certificate.not_valid_after_utc:%Y-%m-%d}")
        elif self._gave_up:
            self._next, self._gave_up, self.lost_renewed = None, False, True
            drop_next(self.state)
            log.warning("the broker refused the renewed certificate: the one before it stays, another is asked for")

    def refused(self, slot: Slot) -> None:
        """The broker hung up before it accepted a connection that showed this."""
        if self._next is None or slot is not self.offer():
            return
        self._refusals += 1
        if self._refusals >= REFUSALS:
            self._gave_up = self._gave_up or self._shows_next
            self._shows_next, self._refusals = not self._shows_next, 0

    def store_renewed(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """A renewed certificate: the next connection shows it. Raises `Unavailable`."""
        store_next(self.state, self.identity, key, certificate)
        self._next = Slot.of(Identity.read(self.state / NEXT))
        self._shows_next, self._refusals, self._gave_up, self.lost_renewed = True, 0, False, False


class _SlotSigner(Signer):
    """Delegates to the slot in use."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def _now(self) -> CryptoSigner:
        return self._credentials._current.signer  # noqa: SLF001  the two are one thing

    @property
    def public_key(self) -> Key:
        """The key of the certificate in use."""
        return self._now().public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: object = None) -> Signer:  # noqa: ARG003
        """A device's key has no URI."""
        raise Malformed(f"{priv_key_uri[:80]}: the key of a device has no URI: it stands in its state folder")

    def sign(self, payload: bytes) -> Signature:
        """A signature by the key in use."""
        return self._now().sign(payload)
