"""Certificates from the fleet: the client's side of EST (RFC 7030), and of the renewal that EST cannot do.

    est = Est(Https(...))
    est.enrol(request, token_of("kitchen-1", "secret"))     # a certificate, or `Wait` until an operator accepts
    est.renew(request)                                      # over mutual TLS, with the certificate that is renewed
    est.renew_expired(seal(Renewal(...), signer))           # TLS would refuse that one: its key signs the request

Every method blocks. Each raises `Untrusted` or `Malformed` when the fleet refuses for good, `Unavailable` when it may
answer later, and what `agent.identity.tls.Https` raises.
"""

from __future__ import annotations

import base64
import binascii
import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from agent.errors import AgentError, Malformed, Unavailable, Untrusted
from agent.identity.tls import Https
from wire.document import parse_json
from wire.errors import WireError

TIMEOUT: Final = 20.0
"""Longest silence of the fleet in seconds."""
ANSWER_LIMIT: Final = 256 * 1024
ASK_AGAIN: Final = (1.0, 30.0, 300.0)
"""Shortest pause, the usual one, and the longest, in seconds. The fleet may name its own (RFC 7030 4.2.3)."""
_ENROL: Final = "/.well-known/est/simpleenroll"
_REENROL: Final = "/.well-known/est/simplereenroll"
_RENEWALS: Final = "/api/v1/renewals"
_LATER: Final = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
_DIGITS: Final = 10
_REQUEST: Final = {"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "base64"}


@dataclass(frozen=True)
class Wait:
    """Nothing yet: ask again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Est:
    """What the fleet's HTTPS port gives out."""

    https: Https

    def enrol(self, request: bytes, headers: Mapping[str, str]) -> x509.Certificate | Wait:
        """Section 4.2.1: a request (DER) in, a certificate out, or a pause while an operator decides."""
        return self._ask(_ENROL, base64.b64encode(request), {**_REQUEST, **headers})

    def renew(self, request: bytes) -> x509.Certificate:
        """Section 4.2.2: the same under mutual TLS by the certificate that is renewed."""
        return self._certificate(_REENROL, base64.b64encode(request), _REQUEST)

    def renew_expired(self, statement: bytes) -> x509.Certificate:
        """A `wire.messages.Renewal` in its envelope, signed by the key of the certificate that ran out."""
        return self._certificate(_RENEWALS, statement, {"Content-Type": "application/json"})

    def _certificate(self, path: str, body: bytes, headers: Mapping[str, str]) -> x509.Certificate:
        answer = self._ask(path, body, headers)
        if isinstance(answer, Wait):
            raise Unavailable(f"{self.https.address}{path}: put off for {answer.seconds:.0f} s")
        return answer

    def _ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> x509.Certificate | Wait:
        connection, response = self.https.post(path, body, dict(headers))
        try:
            data = response.read(ANSWER_LIMIT)
        except (OSError, http.client.HTTPException) as e:
            raise Unavailable(f"{self.https.address}{path}: broke off its answer: {e or type(e).__name__}") from e
        finally:
            connection.close()
        if response.status == http.client.ACCEPTED:
            return Wait(_pause(response.getheader("Retry-After", "")))
        if response.status != http.client.OK:
            raise self._refused(path, response.status, data)
        return self._parsed(path, data)

    def _parsed(self, path: str, data: bytes) -> x509.Certificate:
        try:
            (certificate, *_) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(data))
        except (ValueError, binascii.Error) as e:
            raise Unavailable(f"{self.https.address}{path}: the answer is not a PKCS#7 certificate: {e}") from e
        return certificate

    def _refused(self, path: str, status: int, data: bytes) -> AgentError:
        try:
            said = parse_json(data, what="answer", limit=ANSWER_LIMIT)["error"]["message"]
        except (WireError, KeyError, TypeError):
            said = f"status {status}"
        text = f"{self.https.address} refused {path.rpartition('/')[2]}: {said}"
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            return Untrusted(text)
        final = http.client.BAD_REQUEST <= status < http.client.INTERNAL_SERVER_ERROR and status not in _LATER
        return Malformed(text) if final else Unavailable(text)


def token_of(device: str, token: str) -> dict[str, str]:
    """The header for a one-time token: HTTP Basic (RFC 7030 3.2.3)."""
    return {"Authorization": "Basic " + base64.b64encode(f"{device}:{token}".encode()).decode()}


def certificate_request(device: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#10 in DER: the device id, and the proof that it holds the key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def check_answer(certificate: x509.Certificate, device: str, key: ec.EllipticCurvePrivateKey, fleet: str) -> None:
    """The certificate is for our key and name. Raises `Untrusted`.

    Who signed it is not asked: it came from a server that the believed authorities vouch for, and a device that was
    away while they changed does not know the new ones yet. Whether it is good, the broker says.
    """
    names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if certificate.public_key() != key.public_key() or names != [device]:
        raise Untrusted(f"{fleet} sent a certificate for another key or device ({', '.join(names)[:200]})")


def _pause(text: str) -> float:
    shortest, usual, longest = ASK_AGAIN
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else usual
    return min(max(seconds, shortest), longest)
