"""Private keys of a device: P-256, on the disk before anybody hears of them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from agent.files import write_whole


def key_of(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file, made there on first use. Raises `OSError`."""
    try:
        return load_key(path.read_bytes())
    except FileNotFoundError:
        key = new_key()
        write_whole(path, key_pem(key))
        return key


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PEM, not encrypted: who may read the file is the device."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The inverse. Raises `ValueError`."""
    key = load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")  # noqa: TRY004  what cryptography raises for any other fault
    return key
