"""The fleet's own certificate authorities: the one in use vouches for server, fleet and devices, made on first start.

authority = Authority.open(data / "ca", now)
authority.issue_device("kitchen-1", public_key, lifetime=timedelta(days=365), now=now)

Others beside it are prepared (`next`) or were in use before (`old`); certificates of all of them are believed, and a
change from one to another is one rename: killed at any point, the folder opens with either.

| file in the folder | what |
| --- | --- |
| ca.pem, ca.key | the authority in use |
| next/FINGERPRINT.pem, old/FINGERPRINT.pem | key and certificate of another one |
| believed.pem | every certificate, for who checks clients |
| server.pem, server.key | the server's certificate with its chain |
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fleet.errors import Conflict, Malformed, NotFound, Untrusted
from fleet.store.files import UNFINISHED, private_folder, write
from fleet.trust.issuer import CLAIM_UNIT, CLIENT, SERVER, Issuer, key_to_pem, to_pem

SERVER_LIFETIME = timedelta(days=397)
NEXT, OLD = "next", "old"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyPair:
    """Paths of a PEM certificate, with the chain above it if it has one, and its PEM key."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates. No key leaves the folder, which only this user may read. Used by one thread at a time."""

    def __init__(
        self, folder: Path, current: Issuer, others: Mapping[str, Iterable[Issuer]], lifetime: timedelta
    ) -> None:
        self.folder = folder
        self.server_lifetime = lifetime
        self.certificate_path = folder / "ca.pem"
        self.believed_path = folder / "believed.pem"
        self.current = current
        self.next, self.old = _by_fingerprint(others[NEXT]), _by_fingerprint(others[OLD])
        self._write_believed()

    @classmethod
    def open(cls, folder: Path, now: datetime, server_lifetime: timedelta = SERVER_LIFETIME) -> Authority:
        """Load the authorities of a folder, or make the first one there."""
        for each in (folder, folder / NEXT, folder / OLD):
            private_folder(each)
        if not (folder / "ca.pem").exists():
            _write_current(folder, Issuer.new(now))
        others = {kind: [_load_issuer(path) for path in sorted((folder / kind).glob("*.pem"))] for kind in (NEXT, OLD)}
        current = _load_current(folder, [*others[NEXT], *others[OLD]])
        for kind, found in others.items():
            others[kind] = [issuer for issuer in found if issuer.fingerprint != current.fingerprint]
            (folder / kind / f"{current.fingerprint}.pem").unlink(missing_ok=True)  # a change was cut off before this
        return cls(folder, current, others, server_lifetime)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate of the authority in use."""
        return self.current.certificate

    @property
    def pem(self) -> str:
        """The same as PEM."""
        return self.current.pem

    def issuers(self) -> tuple[Issuer, ...]:
        """Every authority whose certificates are believed: the one in use first, then prepared and old ones."""
        return (self.current, *self.next.values(), *self.old.values())

    def pems(self) -> list[str]:
        """Their certificates as PEM, in the same order."""
        return [issuer.pem for issuer in self.issuers()]

    def issuer_of(self, certificate: x509.Certificate) -> Issuer | None:
        """The authority that signed a certificate; None for a stranger's, or one that was removed."""
        return next((issuer for issuer in self.issuers() if _signed_by(certificate, issuer)), None)

    def state_of(self, issuer: Issuer) -> str:
        """`in use`, `next` or `old`."""
        if issuer.fingerprint == self.current.fingerprint:
            return "in use"
        return NEXT if issuer.fingerprint in self.next else OLD

    def find(self, chosen: str) -> Issuer:
        """The authority with a fingerprint. Raises `NotFound`."""
        for issuer in self.issuers():
            if issuer.fingerprint == chosen:
                return issuer
        raise NotFound(f"authority {chosen[:64]}: there is none: see `shoal authority list`")

    def server(self, names: Sequence[str], now: datetime) -> KeyPair:
        """The certificate of HTTPS port and broker, and its chain.

        Made again for other names, by another authority, or when a third of its life is left. The chain leads from the
        authority in use back to older ones, so that a device that knows only one of those still gets in.
        """
        pair = KeyPair(self.folder / "server.pem", self.folder / "server.key")
        wanted = x509.SubjectAlternativeName([_general_name(n) for n in dict.fromkeys(names)])
        if not (pair.certificate.exists() and self._still_serves(pair, wanted, now)):
            key = ec.generate_private_key(ec.SECP256R1())
            leaf = self.current.issue(
                "shoal fleet", key.public_key(), usage=SERVER, lifetime=self.server_lifetime, now=now, names=wanted
            )
            _write_pair(pair, [leaf, *self._chain(now)], key)
        return pair

    def client(self, name: str, now: datetime) -> KeyPair:
        """A client certificate of the fleet itself, made again whenever it is asked for."""
        pair = KeyPair(self.folder / "client.pem", self.folder / "client.key")
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.current.issue(name, key.public_key(), usage=CLIENT, lifetime=self.server_lifetime, now=now)
        _write_pair(pair, [leaf], key)
        return pair

    @contextmanager
    def passing(self, name: str, lifetime: timedelta, now: datetime) -> Iterator[KeyPair]:
        """A client certificate for one connection: its files are gone when the block ends."""
        key = ec.generate_private_key(ec.SECP256R1())
        with TemporaryDirectory(dir=self.folder, prefix=UNFINISHED) as folder:
            pair = KeyPair(Path(folder) / "client.pem", Path(folder) / "client.key")
            leaf = self.current.issue(name, key.public_key(), usage=CLIENT, lifetime=lifetime, now=now)
            _write_pair(pair, [leaf], key)
            yield pair

    def wants_renewal(self, pair: KeyPair, now: datetime) -> bool:
        """Whether a pair of the fleet's own comes from another authority, or has a third of its life left."""
        leaf = _load_own(pair.certificate)
        return not _signed_by(leaf, self.current) or leaf.not_valid_after_utc - now <= self.server_lifetime / 3

    def issue_device(
        self, device: str, key: ec.EllipticCurvePublicKey, *, lifetime: timedelta, now: datetime
    ) -> x509.Certificate:
        """A device's certificate: its common name is the device id."""
        return self.current.issue(device, key, usage=CLIENT, lifetime=lifetime, now=now)

    def issue_claim(
        self, batch: str, key: ec.EllipticCurvePublicKey, *, lifetime: timedelta, now: datetime
    ) -> x509.Certificate:
        """The claim certificate of a batch: its common name is the batch, its organizational unit says what it is."""
        return self.current.issue(batch, key, usage=CLIENT, lifetime=lifetime, now=now, unit=CLAIM_UNIT)

    def prepare(self, now: datetime) -> Issuer:
        """Make the next authority; the one that is prepared already, if there is one."""
        for prepared in self.next.values():
            return prepared
        issuer = Issuer.new(now, after=max(_made(known) for known in self.issuers()))
        _write_issuer(self.folder / NEXT, issuer)
        self.next[issuer.fingerprint] = issuer
        self._write_believed()
        return issuer

    def use(self, chosen: str) -> None:
        """Issue from another authority from now on; the one in use becomes an old one. Raises `NotFound`."""
        if chosen == self.current.fingerprint:
            return
        issuer = self.find(chosen)
        _write_issuer(self.folder / OLD, self.current)
        _write_current(self.folder, issuer)
        self.old[self.current.fingerprint] = self.current
        self.current = issuer
        self._forget(chosen)

    def remove(self, chosen: str) -> None:
        """Believe an authority no longer. Raises `NotFound`, or `Conflict` for the one in use."""
        if chosen == self.current.fingerprint:
            raise Conflict(f"authority {chosen[:16]}: it is in use: use another one first")
        self.find(chosen)
        self._forget(chosen)

    def _forget(self, chosen: str) -> None:
        for kind, issuers in ((NEXT, self.next), (OLD, self.old)):
            (self.folder / kind / f"{chosen}.pem").unlink(missing_ok=True)
            issuers.pop(chosen, None)
        self._write_believed()

    def _write_believed(self) -> None:
        write(self.believed_path, "".join(self.pems()).encode(), mode=0o644)

    def _chain(self, now: datetime) -> Iterator[x509.Certificate]:
        """From the authority in use, step by step back: each one vouched for by the one that was made before it."""
        above = self.current
        for older in sorted(self.old.values(), key=_made, reverse=True):
            if _made(older) < _made(above):
                yield older.cross(above.certificate, now)
                above = older

    def _still_serves(self, pair: KeyPair, wanted: x509.SubjectAlternativeName, now: datetime) -> bool:
        leaf = _load_own(pair.certificate)
        if not pair.key.exists() or load_key(pair.key).public_key() != leaf.public_key():
            return False  # a start was killed between the two files
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        chained = x509.load_pem_x509_certificates(pair.certificate.read_bytes())[1:]
        crossed = [(c.issuer, c.subject) for c in chained] == [(c.issuer, c.subject) for c in self._chain(now)]
        return names == wanted and crossed and not self.wants_renewal(pair, now)


def read_request(data: bytes, device: str) -> ec.EllipticCurvePublicKey:
    """The key of a PKCS#10 request in DER. Raises `Malformed`, and `Untrusted` for another name or a bad signature."""
    try:
        request = x509.load_der_x509_csr(data)
        signed, key, name = request.is_signature_valid, request.public_key(), common_name(request.subject)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise Malformed(f"certificate request of {device}: not a PKCS#10 request in DER: {e}") from e
    if not signed:
        raise Untrusted(f"certificate request of {device}: not signed by the key it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Malformed(f"certificate request of {device}: expected a P-256 key: make the key with curve prime256v1")
    if name != device:
        raise Untrusted(f"certificate request of {device}: its common name is not {device!r}")
    return key


def common_name(name: x509.Name) -> str:
    """The one common name of a subject, or an empty text."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def serial_text(certificate: x509.Certificate) -> str:
    """A certificate's serial number as the database keeps it: hexadecimal, lower case, without leading zeros."""
    return f"{certificate.serial_number:x}"


def load_certificate(pem: bytes) -> x509.Certificate:
    """A certificate from PEM. Raises `Malformed`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as e:
        raise Malformed(f"certificate: not PEM: {e}") from e


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from a PEM file. Raises `Malformed`."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except ValueError as e:
        raise Malformed(f"{path}: not a PEM key: put the fleet's own file back from a backup") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Malformed(f"{path}: not a P-256 key: put the fleet's own file back from a backup")
    return key


def _load_own(path: Path) -> x509.Certificate:
    try:
        return load_certificate(path.read_bytes())
    except Malformed as e:
        raise Malformed(f"{path}: {e}: put the fleet's own file back from a backup") from e


def _load_current(folder: Path, others: Sequence[Issuer]) -> Issuer:
    """ca.pem decides; a change that was cut off before ca.key was written is finished."""
    key, certificate = load_key(folder / "ca.key"), _load_own(folder / "ca.pem")
    if key.public_key() == certificate.public_key():
        return Issuer(key, certificate)
    for other in others:
        if other.certificate == certificate:
            _log.warning("%s: the change to authority %s is finished", folder, other.fingerprint[:16])
            _write_current(folder, other)
            return other
    raise Malformed(f"{folder}: ca.key is not the key of ca.pem: put both back from one backup")


def _write_current(folder: Path, issuer: Issuer) -> None:
    first = not (folder / "ca.pem").exists()
    if first:
        write(folder / "ca.key", key_to_pem(issuer.key))
    write(folder / "ca.pem", to_pem(issuer.certificate), mode=0o644)
    if not first:
        write(folder / "ca.key", key_to_pem(issuer.key))


def _load_issuer(path: Path) -> Issuer:
    issuer = Issuer(load_key(path), _load_own(path))
    if issuer.key.public_key() != issuer.certificate.public_key():
        raise Malformed(f"{path}: its key is not the key of its certificate: put it back from a backup")
    return issuer


def _write_issuer(folder: Path, issuer: Issuer) -> None:
    write(folder / f"{issuer.fingerprint}.pem", key_to_pem(issuer.key) + to_pem(issuer.certificate))


def _by_fingerprint(issuers: Iterable[Issuer]) -> dict[str, Issuer]:
    return {issuer.fingerprint: issuer for issuer in issuers}


def _made(issuer: Issuer) -> datetime:
    return issuer.certificate.not_valid_before_utc


def _signed_by(certificate: x509.Certificate, issuer: Issuer) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer.certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write_pair(pair: KeyPair, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> None:
    write(pair.key, key_to_pem(key))
    write(pair.certificate, b"".join(to_pem(c) for c in chain), mode=0o644)
