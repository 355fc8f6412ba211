"""The key of a device, as its certificate gives it: what its statements are verified with."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import Key, SSlibKey

from fleet.errors import Untrusted
from fleet.store.tables import Device
from fleet.trust.ca import load_certificate


def key_of(device: Device) -> Key:
    """The public key in the newest certificate of a device. Raises `Untrusted` when it has none yet."""
    if not device.certificate:
        raise Untrusted(f"device {device.id}: has not enrolled, so nothing it says can be verified")
    public = load_certificate(device.certificate.encode()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)  # enrolment admits P-256 only
    return SSlibKey.from_crypto(public)
