"""The device's certificate, renewed from the middle of its life on; after its end by a signed request.

    renewal = Renewal(credentials, clock, state, spread=600, on_renewed=lambda: link.hang_up("a renewed certificate"))
    task = asyncio.create_task(renewal.run())
    renewal.expired()                      # the broker refuses our certificate as expired: do not wait
    renewal.look_at_epoch()                # a desired state came: the fleet may have been restored, then soon
    renewal.served_by(issuer)              # broker and certificate are of two authorities: soon

A new key is made, the fleet signs it, and `Credentials` try it on the next connection. A renewal that fails is tried
again, ever more slowly, and shown in the agent's status. Devices that enrolled in one hour do not renew in one minute:
each has a moment of its own, which does not move when the agent is restarted. So it is, within `spread`, when something
calls all devices at once: a fleet that was restored may have forgotten our certificate, and takes it in when it is
shown; one that changed its authority waits for every device to do so too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.errors import AgentError, Expired, Unavailable
from agent.files import writing
from agent.identity.credentials import Credentials
from agent.identity.keys import key_of
from agent.identity.slots import RENEWAL_KEY
from agent.identity.tls import Https
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire.dsse import seal
from wire.errors import WireError
from wire.messages import Renewal as RenewalStatement
from wire.units import show_instant

if TYPE_CHECKING:
    from agent.enrolment.est import Est

log = logging.getLogger("agent.enrolment.renewal")

SPREAD: Final = 0.2
"""Renewals of one fleet are spread over this part of a certificate's life, from its middle on."""
GRACE: Final = 30.0
"""Seconds after a start in which no clock is believed that says it is time: the fleet may tell another one first."""
LOOK: Final = 60.0
"""Seconds between two looks at the clock, which may jump."""
BACK_OFF: Final = (30.0, 3600.0)
"""Pause in seconds after the first failure, doubled after each further one, and the longest."""
LONGEST_FAULT: Final = 400
"""Characters of a fault in the status."""
SETTLE: Final = 3600.0
"""Longest pause in seconds after a renewal that succeeded: a clock that is far off must not ask for one after another.
A certificate that lives only hours is renewed again after a quarter of what is left of it."""


def due(certificate: x509.Certificate) -> datetime:
    """When a certificate is renewed: in the middle of its life or up to `SPREAD` of it later, the same every time."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins + (ends - begins) * (0.5 + SPREAD * share(certificate))


def share(certificate: x509.Certificate) -> float:
    """A number from 0 to 1 that spreads devices: of one certificate always the same."""
    seed = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    return int.from_bytes(seed[:4], "big") / 2**32


@dataclass(frozen=True)
class Call:
    """A reason to renew before the time, and from when on, by `Clock.uptime`."""

    why: str
    at: float


class Renewal:
    """Keeps the certificate of a device alive. `on_renewed` makes the line connect again; everything is on one loop.

    `spread`: seconds within which all devices of a fleet follow a call.

    A renewal is due by trusted time. The server's certificate is held against the newest signed time alone: a device at
    2100 must be able to renew before it knows better, and what it sends here is no secret.
    """

    def __init__(
        self,
        credentials: Credentials,
        clock: Clock,
        state: StateFile,
        *,
        spread: float,
        on_renewed: Callable[[], None],
    ) -> None:
        self._credentials = credentials
        self._clock = clock
        self._state = state
        self._spread = spread
        self._on_renewed = on_renewed
        self._call: Call | None = None
        self._followed: x509.Name | None = None
        self._awake = asyncio.Event()
        self._refused_as_expired = False
        self._failures = 0
        self._fault = ""
        self._started = self._not_before = self._rests_until = clock.uptime()

    async def run(self) -> None:
        """Renew whenever it is time, for ever."""
        self.look_at_epoch()
        while True:
            if self._is_due():
                await self._renew()
            try:
                await asyncio.wait_for(self._awake.wait(), self._pause())
            except TimeoutError:
                continue
            self._awake.clear()

    def expired(self) -> None:
        """The broker says that the certificate ran out, whatever the clock here says."""
        self._refused_as_expired = True
        self._awake.set()

    def look_at_epoch(self) -> None:
        """A desired state is acted on. Only a restore raises its epoch: that counts until a renewal followed it."""
        try:
            (epoch, _), last = self._state.last_desired(), self._state.renewed_in()
            if epoch > last > 0:
                self._call_soon(f"the fleet was restored, and is in epoch {epoch}")
            elif epoch > last:
                self._state.note_renewed_in(epoch)
        except Unavailable as e:
            log.error("not known whether the fleet was restored: %s", e)  # noqa: TRY400  a sick disk, not a bug

    def served_by(self, issuer: x509.Name) -> None:
        """The broker's certificate is by this authority. It is followed once: the fleet may issue from another one."""
        if issuer not in (self._credentials.newest.issuer, self._followed):
            self._followed = issuer
            self._call_soon(f"the fleet has another authority, {issuer.rfc4514_string()}"[:LONGEST_FAULT])

    def _call_soon(self, why: str) -> None:
        if self._call is None:
            pause = self._spread * share(self._credentials.newest)
            self._call = Call(why, self._clock.uptime() + pause)
            log.info("%s: renewing the certificate in %.0f s", why, pause)
            self._awake.set()

    def status(self) -> dict[str, Any]:
        """When the certificate ends, and how its renewal goes, in words."""
        certificate = self._credentials.certificate
        return {"expires": show_instant(certificate.not_valid_after_utc), "renewal": self._in_words(certificate)}

    def _in_words(self, certificate: x509.Certificate) -> str:
        if self._credentials.renewed:
            return "a renewed certificate is tried"
        if self._fault:
            return f"failed {self._failures} times: {self._fault}"
        if self._call is not None:
            return f"soon: {self._call.why}"
        if self._credentials.lost_renewed:
            return "the broker refused the renewed certificate: another is asked for within the hour"
        return f"due {show_instant(due(certificate))}"

    # --- when -------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return self._left() <= 0

    def _left(self) -> float:
        """Seconds to the next renewal: when it was called for, or when it is time, and not before a failure's pause."""
        at = self._clock.uptime()
        by_time = max(self._left_by_time(), self._rests_until - at)
        called = self._call.at - at if self._call is not None else by_time
        return max(self._not_before - at, min(by_time, called))

    def _left_by_time(self) -> float:
        if self._refused_as_expired:
            return 0.0
        return (self._due() - self._clock.now()).total_seconds() if self._knows_time() else 1.0

    def _due(self) -> datetime:
        # One that is tried is given all its life: the line may be down.
        newest, tried = self._credentials.newest, self._credentials.renewed
        return newest.not_valid_after_utc if tried else due(newest)

    def _knows_time(self) -> bool:
        return self._clock.learnt or self._clock.uptime() - self._started >= GRACE

    def _pause(self) -> float:
        return min(LOOK, max(0.05, self._left()))

    # --- how --------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        try:
            epoch, _ = self._state.last_desired()
            key, certificate = await asyncio.to_thread(self._ask)
            self._credentials.store_renewed(key, certificate)
        except (AgentError, WireError) as e:
            self._failed(str(e))
            return
        except Exception as e:
            # A bug, or an answer that nobody thought of, must not be the last renewal of this device.
            log.exception("the certificate is not renewed")
            self._failed(f"{type(e).__name__}: {e}"[:LONGEST_FAULT])
            return
        log.info("a new certificate until %s: trying it", f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M}")
        self._failures, self._fault, self._refused_as_expired, self._call = 0, "", False, None
        left = (certificate.not_valid_after_utc - self._clock.now()).total_seconds()
        self._followed_epoch(epoch)
        self._rests_until = self._clock.uptime() + (min(SETTLE, left / 4) if left > 0 else SETTLE)
        self._on_renewed()

    def _followed_epoch(self, epoch: int) -> None:
        try:
            self._state.note_renewed_in(epoch)
        except Unavailable as e:
            log.error("the certificate is renewed once more: %s", e)  # noqa: TRY400  a sick disk, not a bug
        self.look_at_epoch()  # another one may have come meanwhile

    def _failed(self, fault: str) -> None:
        self._failures += 1
        shortest, longest = BACK_OFF
        pause = min(longest, shortest * 2 ** min(self._failures - 1, 20))
        pause *= random.uniform(0.5, 1.0)  # noqa: S311  no secret
        self._not_before = self._clock.uptime() + pause
        if fault != self._fault:
            log.warning("the certificate is not renewed: %s: trying again in %.0f s", fault, pause)
        self._fault = fault

    def _ask(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """A certificate for a new key. Blocking."""
        # 1.5 MB and 30 ms that a device pays when it renews, not at every start.
        from agent.enrolment.est import certificate_request, check_answer  # noqa: PLC0415

        credentials = self._credentials
        key = self._new_key()
        request = certificate_request(credentials.device, key)
        certificate = self._certificate(request)
        check_answer(certificate, credentials.device, key, credentials.joined.fleet)
        return key, certificate

    def _new_key(self) -> ec.EllipticCurvePrivateKey:
        path = self._credentials.state / RENEWAL_KEY
        with writing(path):
            try:
                return key_of(path)
            except ValueError:
                path.unlink()  # damaged, and nothing was signed for it that anybody needs
                return key_of(path)

    def _certificate(self, request: bytes) -> x509.Certificate:
        ends = self._credentials.certificate.not_valid_after_utc
        if not self._refused_as_expired and self._clock.now() < ends:
            try:
                return self._est(self._credentials.tls).renew(request)
            except Expired as e:
                log.info("%s: asking by a signed request", e)
        return self._est(self._credentials.nameless_tls).renew_expired(self._statement(request))

    def _est(self, context: Callable[[], ssl.SSLContext]) -> Est:
        from agent.enrolment.est import TIMEOUT, Est  # noqa: PLC0415

        return Est(Https(self._credentials.joined.fleet, context, self._clock.signed, TIMEOUT))

    def _statement(self, request: bytes) -> bytes:
        credentials = self._credentials
        statement = RenewalStatement(
            device=credentials.device,
            certificate=credentials.certificate.public_bytes(Encoding.PEM).decode(),
            request=base64.b64encode(request).decode(),
        )
        return seal(statement, credentials.signer())
