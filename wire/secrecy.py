"""Secrecy of models on the way: every blob has one key, every chunk is encrypted once for all who may read it.

    key = blob_key(secret, blob, chunk_list)                  # the fleet derives it; the same on every start
    data = encrypt_chunk(key, 7, chunk)                       # the same bytes for every device and any cache
    box = seal_keys({blob: key}, public, "kitchen-1")         # to one device, inside its desired state
    keys = open_keys(box, private, "kitchen-1")
    chunk = decrypt_chunk(keys[blob], 7, data)

Chunks: ChaCha20-Poly1305 (RFC 8439), nonce = the chunk's index. A nonce never comes twice under one key, because a key
belongs to one blob cut in one way. The key ring: HPKE (RFC 9180) base mode, DHKEM(P-256), HKDF-SHA256,
ChaCha20-Poly1305, to a key that the device made for this alone. Who signed the envelope around it is `wire.dsse`'s.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from wire.document import Document, check_digest
from wire.errors import Malformed, Untrusted

TAG: Final = 16
"""Bytes that encryption adds to a chunk."""
_KEY: Final = 32
_SUITE: Final = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True, kw_only=True)
class KeyRing(Document):
    """Key by blob digest, base64."""

    LIMIT: ClassVar[int] = 12 * 1024

    keys: Mapping[str, str]


def blob_key(secret: bytes, blob: str, chunk_list: str | None) -> bytes:
    """The key of a blob that is cut as `chunk_list` (a digest, None for one chunk) says: 32 bytes."""
    info = f"shoal chunk key v1\n{blob}\n{chunk_list or 'whole'}"
    return HKDF(SHA256(), _KEY, salt=None, info=info.encode()).derive(secret)


def encrypt_chunk(key: bytes, index: int, chunk: bytes) -> bytes:
    """The chunk as it travels: `TAG` bytes longer."""
    return ChaCha20Poly1305(key).encrypt(_nonce(index), chunk, None)


def decrypt_chunk(key: bytes, index: int, data: bytes) -> bytes:
    """The inverse. Raises `Untrusted` when a bit differs, or key or index are others."""
    try:
        return ChaCha20Poly1305(key).decrypt(_nonce(index), data, None)
    except InvalidTag as e:
        raise Untrusted(f"chunk {index}: does not open with the key of its blob") from e


def public_text(key: ec.EllipticCurvePublicKey) -> str:
    """A sealing key as a report carries it: the uncompressed point, base64."""
    return base64.b64encode(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).decode()


def public_key(text: str) -> ec.EllipticCurvePublicKey:
    """The inverse. Raises `Malformed`."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as e:
        raise Malformed(f"sealing key: not a point of P-256: {e}") from e


def seal_keys(keys: Mapping[str, bytes], public: ec.EllipticCurvePublicKey, device: str) -> str:
    """A key ring that only this device opens, base64. It differs every time."""
    ring = KeyRing(keys={blob: base64.b64encode(key).decode() for blob, key in keys.items()})
    return base64.b64encode(_SUITE.encrypt(ring.to_bytes(), public, _info(device))).decode()


def open_keys(sealed: str, private: ec.EllipticCurvePrivateKey, device: str) -> dict[str, bytes]:
    """The inverse. Raises `Untrusted` when it was not sealed to this key and device, `Malformed` for what is inside."""
    try:
        data = _SUITE.decrypt(base64.b64decode(sealed, validate=True), private, _info(device))
    except (InvalidTag, binascii.Error, ValueError) as e:
        raise Untrusted(f"key ring of {device}: not sealed to this device's key") from e
    return {check_digest(blob, "key ring"): _key(text, blob) for blob, text in KeyRing.from_bytes(data).keys.items()}


def _info(device: str) -> bytes:
    return f"shoal key ring v1\n{device}".encode()


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")


def _key(text: str, blob: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Malformed(f"key ring: the key of {blob} is not base64") from e
    if len(key) != _KEY:
        raise Malformed(f"key ring: the key of {blob} has {len(key)} bytes, expected {_KEY}")
    return key
