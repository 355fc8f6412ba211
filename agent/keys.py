"""Private keys and other small files of a device: P-256, mode 0600, on the disk before anybody hears of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from agent.blobs import sync_folder
from agent.errors import Unavailable


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


def write_private(path: Path, data: bytes) -> None:
    """Write and flush a file that only this user may read. The name is durable after `sync_folder`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def write_whole(path: Path, data: bytes) -> None:
    """The same for a file that stands in its folder already or may be read at any moment: whole, or as it was."""
    new = path.with_name(f"{path.name}.new")
    write_private(new, data)
    new.rename(path)
    sync_folder(path.parent)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Translate what the disk refuses into `Unavailable`."""
    try:
        yield
    except OSError as e:
        raise Unavailable(
            f"{e.filename or place}: not written: {e.strerror}: make room, or choose another --state"
        ) from e
