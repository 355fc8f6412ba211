"""An EST server on real TLS that can be bent by a test: what it signs, whom it lets wait, and what it answers.

with est.running() as url:
    enrol(kit_file(url), state)
est.accepted.add("hall-1")        # an operator accepts a device that waits
"""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from cryptography.x509.oid import NameOID
from securesystemslib.signer import SSlibKey

from wire.dsse import open_by_key, read_unverified
from wire.messages import Renewal


class Est:
    """`name`, `key` and `expires` replace those of what it signs; `answers` come before anything else."""

    def __init__(self, authority) -> None:
        self.authority = authority
        self.tokens = {"kitchen-1": "secret"}
        self.batches = {"hall"}
        self.accepted: set[str] = set()
        self.rejected: set[str] = set()
        self.keys: dict[str, bytes] = {}
        self.answers: list[tuple[int, bytes]] = []
        self.lose = 0
        """So many certificates are signed and not sent."""
        self.name: str | None = None
        self.key = None
        self.expires: datetime | None = None
        self.requests: list[x509.CertificateSigningRequest] = []
        self.signed: set[bytes] = set()
        self.paths: list[str] = []

    def answer(self, path: str, authorization: str, body: bytes, peer: x509.Certificate | None) -> tuple[int, bytes]:
        self.paths.append(path.rpartition("/")[2])
        if self.answers:
            return self.answers.pop(0)
        match self.paths[-1]:
            case "simpleenroll" if peer is not None and _name(peer.subject) in self.batches:
                return self._admit(x509.load_der_x509_csr(base64.b64decode(body)))
            case "simpleenroll":
                return self._enrol(authorization, x509.load_der_x509_csr(base64.b64decode(body)))
            case "simplereenroll" if peer is not None:
                request = x509.load_der_x509_csr(base64.b64decode(body))
                assert _name(request.subject) == _name(peer.subject)
                return self._sign(request)
            case "renewals":
                return self._renew(body)
        return _error(401, "no certificate shown")

    def _enrol(self, authorization: str, request: x509.CertificateSigningRequest) -> tuple[int, bytes]:
        device, _, token = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        used = self.tokens.pop(device, None) != token
        if used and self.keys.get(device) != _key(request):
            return _error(401, "token used or wrong")
        self.keys[device] = _key(request)  # it admits this key again: the answer may have been lost
        return self._sign(request)

    def _admit(self, request: x509.CertificateSigningRequest) -> tuple[int, bytes]:
        device = _name(request.subject)
        if self.keys.setdefault(device, _key(request)) != _key(request):
            return _error(409, "another key asked for this id")
        if device in self.rejected:
            return _error(403, "an operator rejected it")
        return self._sign(request) if device in self.accepted else (202, b"")

    def _renew(self, body: bytes) -> tuple[int, bytes]:
        shown = x509.load_pem_x509_certificate(read_unverified(body, Renewal).certificate.encode())
        renewal = open_by_key(body, Renewal, SSlibKey.from_crypto(shown.public_key()))
        assert _name(shown.subject) == renewal.device
        shown.verify_directly_issued_by(self.authority.certificate)
        return self._sign(x509.load_der_x509_csr(base64.b64decode(renewal.request)))

    def _sign(self, request: x509.CertificateSigningRequest) -> tuple[int, bytes]:
        assert request.is_signature_valid
        self.requests.append(request)
        self.signed.add(_key(request))
        name, key = self.name or _name(request.subject), self.key or request.public_key()
        certificate = self.authority.issue(name, key, self.expires)
        return 200, base64.b64encode(pkcs7.serialize_certificates([certificate], Encoding.DER))

    @contextmanager
    def running(self, expires: datetime | None = None, port: int = 0) -> Iterator[str]:
        """Serve on localhost; `expires` is the end of the server's own certificate."""
        est = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                der = self.connection.getpeercert(binary_form=True)
                peer = x509.load_der_x509_certificate(der) if der else None
                status, answer = est.answer(self.path, self.headers.get("Authorization", ""), body, peer)
                if est.lose and status == 200:
                    est.lose -= 1
                    return
                self.send_response(status)
                if status == 202:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_words: object) -> None:
                """Quiet."""

        class Server(http.server.HTTPServer):
            def handle_error(self, *_where: object) -> None:
                """A client that does not trust us breaks off."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.authority.files("localhost", expires))
        context.load_verify_locations(cadata=self.authority.pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        server = Server(("localhost", port), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def another(authority, folder: Path):
    """An authority of another name: by one name OpenSSL takes two for the same."""
    folder.mkdir()
    other = type(authority)(folder)
    other.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another CA")])
    other.certificate = other._certificate(other.name, other.key.public_key(), ca=True)
    other.pem = other.certificate.public_bytes(Encoding.PEM).decode()
    return other


def _name(subject: x509.Name) -> str:
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _key(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _error(status: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"code": "refused", "message": message}}).encode()
