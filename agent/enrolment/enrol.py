"""Enrolment: a kit in, an identity in the state folder out (EST, RFC 7030).

Two ways in: the one-time token of one device, or the claim certificate of a batch, with which a device names itself and
waits until an operator accepts it. The keys are made here and never leave. Everything that can fail without the network
is done first, and what was begun stays on the disk (`enrolling/`): an enrolment that was killed is run again with the
same keys and the same name. The identity appears in one rename. Neither token nor claim is kept: the kit of a batch
goes before that rename, so that a power cut never leaves a device that works with the key of its batch beside it.
"""

from __future__ import annotations

import logging
import shutil
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.enrolment.claim import claim_context, device_id
from agent.enrolment.est import TIMEOUT, Est, Wait, certificate_request, check_answer, token_of
from agent.enrolment.wipe import finish_wipe
from agent.errors import Malformed, Unavailable, Untrusted
from agent.files import sync_folder, write_private, write_whole, writing
from agent.identity import slots
from agent.identity.identity import FOLDER, Identity, Joined
from agent.identity.keys import key_pem, load_key, new_key
from agent.identity.slots import BEGUN
from agent.identity.tls import Https, fleet_context, host_and_port
from agent.store.state import STATE_FILE, StateFile
from wire.document import check_device
from wire.errors import WireError
from wire.kit import EnrolmentKit
from wire.trust import TrustedSet
from wire.units import instant

log = logging.getLogger("agent.enrolment.enrol")


@dataclass(frozen=True)
class Begun:
    """An enrolment under way: a folder that becomes the identity when the certificate is in it."""

    folder: Path
    joined: Joined
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Patience:
    """How long to wait for an operator: `seconds` (None: for ever), and who is told what an operator has to do."""

    seconds: float | None = None
    tell: Callable[[str], None] = log.info
    sleep: Callable[[float], None] = time.sleep


def enrol(
    kit_file: Path,
    state: Path,
    device: str | None = None,
    patience: Patience | None = None,
    *,
    keep_kit: bool = False,
) -> Joined:
    """Make this machine a device of the kit's fleet; `device` is its name in a batch, made of the machine if None.

    The kit of a batch is removed unless `keep_kit`. Raises `AgentError`, or `WireError` for a bad kit.
    """
    patience = patience or Patience()
    finish_wipe(state)
    if slots.finish_enrolment(state):  # it was killed at its last step, and the kit may be gone
        return Identity.load(state).joined
    kit = read_kit(kit_file)
    wanted = device_of(kit, device)
    if any((state / name).exists() for name in (FOLDER, slots.NEXT, slots.OLD)):
        raise Malformed(f"{state}: a device is enrolled here already: choose another --state, or remove this folder")
    trust = trust_of(kit)
    est, headers = est_of(kit, wanted)
    with writing(state):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        begun = begin(state, joined(kit, wanted), kit.ca)
    remember(state, trust, instant(kit.issued))
    certificate = ask(est, headers, begun, patience)
    check_answer(certificate, wanted, begun.key, kit.fleet)
    remember(state, trust, certificate.not_valid_before_utc)
    with writing(state):
        write_whole(begun.folder / "cert.pem", certificate.public_bytes(Encoding.PEM))
    if kit.claim is not None and not keep_kit:
        remove_claim(kit_file, patience.tell)
    slots.finish_enrolment(state)
    return begun.joined


# --- the kit ----------------------------------------------------------------------------------------------------


def read_kit(path: Path) -> EnrolmentKit:
    """Parse the kit and everything in it that has a form."""
    try:
        kit = EnrolmentKit.from_bytes(path.read_bytes())
    except OSError as e:
        raise Malformed(f"{path}: the enrolment kit cannot be read: {e.strerror}") from e
    except WireError as e:
        raise Malformed(f"{path}: not an enrolment kit: {e}") from e
    if urlsplit(kit.fleet).scheme != "https":
        raise Malformed(f"{path}: fleet {kit.fleet[:200]!r} is not an https address")
    host_and_port(kit.broker, f"{path}: broker")
    return kit


def device_of(kit: EnrolmentKit, wanted: str | None) -> str:
    """The name that this device will have. Raises `Malformed`."""
    if kit.claim is not None:
        return check_device(wanted, "--device") if wanted else device_id(kit.claim.batch)
    assert kit.device is not None
    if wanted not in (None, kit.device):
        raise Malformed(f"--device {wanted}: the kit is for {kit.device}: leave it out, or ask for another kit")
    return kit.device


def joined(kit: EnrolmentKit, device: str) -> Joined:
    """What is kept of a kit."""
    return Joined(device=device, fleet=kit.fleet, broker=kit.broker, profile=kit.profile)


def time_of(kit: EnrolmentKit) -> datetime:
    """The clock, if the kit says that it can be right; else when the kit was made: a clock at 1970 or 2100 gets in."""
    issued, clock = instant(kit.issued), datetime.now(UTC)
    return clock if issued <= clock < instant(kit.expires) else issued


def trust_of(kit: EnrolmentKit) -> TrustedSet:
    """The kit's metadata, verified from its oldest root on. A brand-new device is as fresh as its kit."""
    documents = {name: text.encode() for name, text in kit.trust.items()}
    versions = [int(n.removeprefix("root/")) for n in documents if n.startswith("root/") and n[5:].isdigit()]
    if not versions:
        raise Malformed("enrolment kit: no root metadata in it: make a new kit after shoal release init")
    trust = TrustedSet.from_root(documents[f"root/{min(versions)}"])
    for refusal in trust.offer(documents, time_of(kit)):
        raise Untrusted(f"enrolment kit: {refusal.document}: {refusal.error}: make a new kit")
    return trust


def est_of(kit: EnrolmentKit, device: str) -> tuple[Est, Mapping[str, str]]:
    """The fleet's EST port with what opens it: the claim certificate in TLS, or the token in a header."""
    context: ssl.SSLContext
    if kit.claim is not None:
        context, headers = claim_context(kit.claim, kit.ca), {}
    else:
        context, headers = fleet_context(kit.ca), token_of(device, kit.token or "")
    return Est(Https(kit.fleet, lambda: context, lambda: time_of(kit), TIMEOUT)), headers


# --- the certificate --------------------------------------------------------------------------------------------


def ask(est: Est, headers: Mapping[str, str], begun: Begun, patience: Patience) -> x509.Certificate:
    """The certificate, as soon as the fleet gives it. Raises `Unavailable` when patience ends."""
    device, fleet = begun.joined.device, begun.joined.fleet
    request = certificate_request(device, begun.key)
    try:
        answer = est.enrol(request, headers)
    except Unavailable as e:
        raise Unavailable(f"{e}: is the fleet up, and the kit its own?") from e
    except Untrusted as e:
        raise Untrusted(f"{e}: make a new kit if {device} is to join") from e
    began = time.monotonic()
    if isinstance(answer, Wait):
        patience.tell(f"{device} waits at {fleet}: an operator must accept it: shoal device accept {device}")
    while isinstance(answer, Wait):
        pause, left = answer.seconds, _left(patience, began)
        if left <= 0:
            raise Unavailable(f"{device} is not accepted yet: the same command goes on with the same key later")
        patience.sleep(min(pause, left))
        answer = _again(est, request, headers, pause)
    return answer


def _left(patience: Patience, began: float) -> float:
    return float("inf") if patience.seconds is None else patience.seconds - (time.monotonic() - began)


def _again(est: Est, request: bytes, headers: Mapping[str, str], pause: float) -> x509.Certificate | Wait:
    """A fleet that was there a moment ago and is restarted does not end the waiting."""
    try:
        return est.enrol(request, headers)
    except Unavailable as e:
        log.warning("%s: trying again", e)
        return Wait(pause)


# --- the disk ---------------------------------------------------------------------------------------------------


def begin(state: Path, wanted: Joined, ca: str) -> Begun:
    """The enrolment that was begun here for the same device and fleet, or a new one with new keys."""
    folder = state / BEGUN
    try:
        found = Joined.from_bytes((folder / "device.json").read_bytes())
        if (found.device, found.fleet) == (wanted.device, wanted.fleet):
            key = load_key((folder / "key.pem").read_bytes())
            write_private(folder / "ca.pem", ca.encode())
            write_private(folder / "device.json.new", wanted.to_bytes())
            (folder / "device.json.new").rename(folder / "device.json")
            return Begun(folder, wanted, key)
    except (FileNotFoundError, ValueError, WireError) as e:
        log.debug("no enrolment was begun in %s: %s", folder, e)
    return Begun(folder, wanted, _begin_anew(folder, wanted, ca))


def _begin_anew(folder: Path, wanted: Joined, ca: str) -> ec.EllipticCurvePrivateKey:
    key, new = new_key(), folder.with_name(f"{BEGUN}.new")
    for leftover in (folder, new):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir(mode=0o700)
    write_private(new / "key.pem", key_pem(key))
    write_private(new / "sealing.pem", key_pem(new_key()))
    write_private(new / "ca.pem", ca.encode())
    write_private(new / "device.json", wanted.to_bytes())
    sync_folder(new)
    new.rename(folder)
    sync_folder(folder.parent)  # the fleet admits this key alone: it must be there after a power cut
    return key


def remember(state: Path, trust: TrustedSet, signed: datetime) -> None:
    """The first content of the agent's state file: trusted metadata, and the newest time that the fleet signed."""
    file = StateFile.open(state / STATE_FILE)
    try:
        file.save_trust(trust.documents, trust.floors())
        file.note_enrolment(signed)
    finally:
        file.close()


def remove_claim(kit: Path, tell: Callable[[str], None]) -> None:
    """The key of a whole batch must not lie about on every device of it."""
    try:
        kit.unlink()
        sync_folder(kit.absolute().parent)
        tell(f"{kit} was removed: the key of its batch must not stay on a device")
    except OSError as e:
        tell(f"{kit}: remove it from this device: it holds the key of its batch ({e.strerror})")
