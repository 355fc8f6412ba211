"""Whether a staged document says only what its signer is shown.

It came on somebody's stick and is about to get our signature. So it must be, to the byte, what this program writes for
the keys, thresholds, authorities and releases in it: what `cli.trust.changes` does not show, such as a delegation
inside a release role or a wider path, cannot hide there. And a key id must be the digest of its key, because ids are
what people compare.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from cli.errors import BadInput
from cli.trust.book import parse
from cli.trust.roles import Roles
from wire.bundle import split_target
from wire.document import check_name
from wire.errors import WireError
from wire.release import Release, marks_of, releases_of
from wire.signing import release_document

_PUBLIC: Final = re.compile(r"[0-9a-f]{64}")


def check_plain(name: str, data: bytes) -> None:
    """Raises `BadInput` for a staged document that this program would not have written."""
    md = parse(name, data)
    try:
        for key in _keys(md.signed):
            check_key_id(key)
        same = Metadata[Any].from_bytes(_rebuilt(name, md.signed)).signed_bytes == md.signed_bytes
    except (KeyError, TypeError, ValueError, AttributeError, WireError, BadInput) as e:
        raise BadInput(f"staged {name}: not as this program writes it, so it is not signed: {e}: delete it") from e
    if not same:
        raise BadInput(
            f"staged {name}: holds more than can be shown before it is signed: another program wrote it, or somebody "
            "changed it on the way: delete it, and make the change again"
        )


def check_lifetime(name: str, data: bytes, latest: datetime) -> None:
    """Raises `BadInput` for a staged document that would be valid for longer than any that is made now."""
    expires = parse(name, data).signed.expires
    if expires > latest:
        raise BadInput(
            f"staged {name}: valid until {expires:%Y-%m-%d}, later than what is made now: a clock is wrong, here or "
            "where it was made, or somebody wants it to outlive its keys: delete it, and make the change again"
        )


def check_key_id(key: Key) -> None:
    """Raises `BadInput` for a key under an id that is not the digest of its own content, or of a kind we do not make.

    One spelling per key: else one key had two ids, and would count twice.
    """
    if (key.keytype, key.scheme) != ("ed25519", "ed25519") or not _PUBLIC.fullmatch(key.keyval.get("public", "")):
        raise BadInput(f"key {key.keyid[:64]!r}: not an Ed25519 key of 64 hexadecimal digits")
    content = encode_canonical({"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval})
    found = hashlib.sha256(str(content).encode()).hexdigest()
    if key.keyid != found:
        raise BadInput(f"key {key.keyid[:64]!r}: is another key, {found}, under a false id")


def fingerprint(pem: str) -> str:
    """SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` does. Raises `BadInput` for none or several."""
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as e:
        raise BadInput(f"a certificate authority is no PEM certificate: {e}") from e
    if certificate.public_bytes(Encoding.PEM).decode().strip() != pem.strip():
        raise BadInput("a certificate authority is more than one PEM certificate")
    return certificate.fingerprint(SHA256()).hex()


def _keys(signed: Root | Targets) -> Iterable[Key]:
    if isinstance(signed, Root):
        return signed.keys.values()
    return signed.delegations.keys.values() if signed.delegations else ()


def _rebuilt(name: str, signed: Any) -> bytes:
    """The document of the same content, as this program makes it."""
    if name.startswith("root/"):
        return Roles.read(signed, None).root(signed.version, signed.expires)
    if name == "targets":
        roles = Roles.read(None, signed)
        for pem in roles.authorities:
            fingerprint(pem)
        return roles.targets(signed.version, signed.expires)
    releases, marks = releases_of(signed), marks_of(signed)
    for release in releases:
        _check_texts(release)
    for model in marks:
        family, _, name = model.partition("/")
        check_name(family, "family of a counter")
        check_name(name, "model of a counter")
    return release_document(signed.version, releases, signed.expires, [], marks)


def _check_texts(release: Release) -> None:
    """What is shown beside a target is a plain name too: no control characters on somebody's terminal."""
    check_name(release.runtime, f"{release.target}: runtime")
    if release.profile != split_target(release.target)[3]:
        raise BadInput(f"{release.target}: says that it is for another profile")
