"""What schemathesis does not know by itself: how a certificate request travels. Named by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/pkcs10")
def pkcs10(_context: Any, value: Any) -> bytes:
    """Any value as bytes: none of them is a certificate request, and each has to be refused as one."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")
