"""How a device stays in: the next certificate, asked for with the one it has, or with its key when that one ran out.

TLS refuses a certificate that ran out before anybody can say a word. So a device that was off for long signs its
request with the old key instead; that is allowed for the certificate it has now, and never for a replaced or revoked
one.

A certificate that a restored fleet has forgotten is taken in here, and nowhere else (`fleet.trust.adoption`): over TLS
by the gate before the request gets in, else by the statement.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SSlibKey
from sqlmodel import Session

from fleet.errors import Forbidden, Malformed
from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.trust.adoption import adopt
from fleet.trust.ca import Authority, load_certificate, read_request
from fleet.trust.certificates import Certificates
from fleet.trust.identity import device_of
from wire.dsse import open_by_key, read_unverified
from wire.messages import Renewal


@dataclass(frozen=True)
class Renewals:
    """Gives next certificates. Repeated with the same key, a request gives the same certificate."""

    database: Database
    authority: Authority
    certificates: Certificates

    def by_certificate(self, pem: str, request: bytes) -> x509.Certificate:
        """EST simplereenroll: `pem` is what the connection showed, `request` PKCS#10 in DER for the same name.

        Raises `Forbidden` for a certificate or device that is out, `Malformed` or `Untrusted` for the request.
        """
        with self.database.transaction() as session:
            device = device_of(session, pem)
            return self.certificates.following(session, device, read_request(request, device.id))

    def by_statement(self, envelope: bytes) -> x509.Certificate:
        """The same after the certificate ran out: a `Renewal` signed by its key.

        Raises as `by_certificate` does, and wire's errors for the envelope.
        """
        said = read_unverified(envelope, Renewal)
        shown = load_certificate(said.certificate.encode())
        self._check_ours(shown, said.device)
        renewal = open_by_key(envelope, Renewal, SSlibKey.from_crypto(_key(shown)))
        with self.database.transaction() as session:
            device = self._device(session, renewal)
            return self.certificates.following(session, device, read_request(_request(renewal), device.id))

    def _check_ours(self, certificate: x509.Certificate, device: str) -> None:
        # TLS did not look at it here: an authority that is not believed any more must not renew what it once signed.
        if self.authority.issuer_of(certificate) is None:
            raise Forbidden(
                f"renewal of {device}: its certificate is not by an authority of this fleet: enrol it again"
            )

    def _device(self, session: Session, renewal: Renewal) -> Device:
        adopt(session, self.authority, load_certificate(renewal.certificate.encode()), self.certificates.clock())
        device = device_of(session, renewal.certificate)
        if device.id != renewal.device:
            raise Forbidden(f"renewal of {renewal.device}: the certificate is that of {device.id}")
        return device


def _key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # our authorities sign nothing else
    return key


def _request(renewal: Renewal) -> bytes:
    try:
        return base64.b64decode(renewal.request, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Malformed(f"renewal of {renewal.device}: the certificate request is not base64") from e
