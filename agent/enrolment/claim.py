"""What one batch of devices shares: a claim certificate to ask for admission with, and a name for each device.

The name comes from the machine, so that a set-up that is begun again asks for the same one. A serial number goes before
`machine-id`: copies of one disk image share that.
"""

from __future__ import annotations

import hashlib
import ssl
import tempfile
from pathlib import Path
from typing import Final

from agent.errors import Malformed
from agent.files import write_private
from agent.identity.tls import fleet_context
from wire.document import check_device
from wire.kit import Claim

_SERIALS: Final = ("proc/device-tree/serial-number", "sys/class/dmi/id/product_uuid", "etc/machine-id")
_ID_LIMIT: Final = 63
_HEX: Final = 12


def device_id(batch: str, root: Path = Path("/")) -> str:
    """`<batch>-<12 hexadecimal digits>` of this machine. Raises `Malformed` where it has no number of its own."""
    serial = next((text for name in _SERIALS if (text := _text(root / name))), None)
    if serial is None:
        raise Malformed("this machine has no serial number to make a device id of: give one with --device")
    made = hashlib.sha256(serial.encode()).hexdigest()[:_HEX]
    return check_device(f"{batch[: _ID_LIMIT - _HEX - 1]}-{made}", "device id")


def claim_context(claim: Claim, authorities: str) -> ssl.SSLContext:
    """Mutual TLS by the claim certificate. Raises `Malformed` for a claim that is none."""
    context = fleet_context(authorities)
    with tempfile.TemporaryDirectory(prefix="shoal-claim-") as folder:  # OpenSSL reads keys from files only
        certificate, key = Path(folder) / "cert.pem", Path(folder) / "key.pem"
        write_private(certificate, claim.certificate.encode())
        write_private(key, claim.key.encode())
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as e:
            raise Malformed(f"enrolment kit: the claim of batch {claim.batch} is not a certificate and key: {e}") from e
    return context


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""
