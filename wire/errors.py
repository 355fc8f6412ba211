"""The errors of the contract, by whose fault it is.

    WireError
    ├── Malformed      the bytes are not what the contract says: the sender's fault
    ├── Untrusted      well formed, but not signed, addressed or fresh as it must be
    │   └── OutOfStep  signed, and the documents that name it have not (all) arrived
    └── Incompatible   good, and for another version, profile or runtime than ours

Each message names the document, topic, path, digest or device, and what to do.
"""

from __future__ import annotations


class WireError(Exception):
    """Root of every error that the contract raises."""


class Malformed(WireError):
    """A document, topic or manifest does not follow the contract."""


class Untrusted(WireError):
    """A signature, address, sequence, digest or expiry does not hold."""


class OutOfStep(Untrusted):
    """A document whose delegator names another version: refused, and no attack when the rest is on its way."""


class Incompatible(WireError):
    """The document is sound, and this reader cannot serve it."""
