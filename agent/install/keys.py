"""The keys of the blobs that this device may read: sealed on disk as they came, open in memory only."""

from __future__ import annotations

import logging

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from wire.errors import WireError
from wire.secrecy import open_keys

log = logging.getLogger("agent.install.keys")


class ChunkKeys:
    """Key by blob digest; those of the newest desired state that brought any."""

    def __init__(self, device: str, private: EllipticCurvePrivateKey) -> None:
        self._device = device
        self._private = private
        self._keys: dict[str, bytes] = {}

    def take(self, sealed: str) -> bool:
        """Open a key ring; whether it is good. An empty one changes nothing: nor does one for another sealing key.

        The next report names this device's sealing key, and a newer desired state brings the keys for it.
        """
        if not sealed:
            return False
        try:
            self._keys = open_keys(sealed, self._private, self._device)
        except WireError as e:
            log.warning("the keys in the desired state do not open (%s): waiting for newer ones", e)
            return False
        return True

    def get(self, blob: str) -> bytes | None:
        """The key of a blob, None while it has not come."""
        return self._keys.get(blob)
