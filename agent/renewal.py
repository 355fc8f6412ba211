"""The device's certificate, renewed from the middle of its life on; after its end by a signed request.

    renewal = Renewal(credentials, clock, on_renewed=lambda: link.hang_up("a renewed certificate"))
    task = asyncio.create_task(renewal.run())
    renewal.expired()                      # the broker refuses our certificate as expired: do not wait

A new key is made, the fleet signs it, and `Credentials` try it on the next connection. A renewal that fails is tried
again, ever more slowly, and shown in the agent's status. Devices that enrolled in one hour do not renew in one minute:
each has a moment of its own, which does not move when the agent is restarted.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.clock import Clock
from agent.credentials import Credentials
from agent.errors import AgentError, Expired
from agent.est import TIMEOUT, Est, certificate_request, check_answer
from agent.keys import key_of, writing
from agent.slots import RENEWAL_KEY
from agent.tls import Https
from wire.dsse import seal
from wire.errors import WireError
from wire.messages import Renewal as RenewalStatement
from wire.units import show_instant

log = logging.getLogger("agent.renewal")

SPREAD: Final = 0.2
"""Renewals of one fleet are spread over this part of a certificate's life, from its middle on."""
GRACE: Final = 30.0
"""Seconds after a start in which no clock is believed that says it is time: the fleet may tell another one first."""
LOOK: Final = 60.0
"""Seconds between two looks at the clock, which may jump."""
BACK_OFF: Final = (30.0, 3600.0)
"""Pause in seconds after the first failure, doubled after each further one, and the longest."""
SETTLE: Final = 3600.0
"""Longest pause in seconds after a renewal that succeeded: a clock that is far off must not ask for one after another.
A certificate that lives only hours is renewed again after a quarter of what is left of it."""


def due(certificate: x509.Certificate) -> datetime:
    """When a certificate is renewed: in the middle of its life or up to `SPREAD` of it later, the same every time."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    seed = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    part = int.from_bytes(seed[:4], "big") / 2**32
    return begins + (ends - begins) * (0.5 + SPREAD * part)


class Renewal:
    """Keeps the certificate of a device alive. `on_renewed` makes the line connect again; everything is on one loop.

    A renewal is due by trusted time. The server's certificate is held against the newest signed time alone: a device at
    2100 must be able to renew before it knows better, and what it sends here is no secret.
    """

    def __init__(self, credentials: Credentials, clock: Clock, *, on_renewed: Callable[[], None]) -> None:
        self._credentials = credentials
        self._clock = clock
        self._on_renewed = on_renewed
        fleet = credentials.joined.fleet
        self._est = Est(Https(fleet, credentials.tls, clock.signed, TIMEOUT))
        self._est_nameless = Est(Https(fleet, credentials.nameless_tls, clock.signed, TIMEOUT))
        self._awake = asyncio.Event()
        self._refused_as_expired = False
        self._failures = 0
        self._fault = ""
        self._started = self._not_before = clock.uptime()

    async def run(self) -> None:
        """Renew whenever it is time, for ever."""
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

    def status(self) -> dict[str, Any]:
        """When the certificate ends, and how its renewal goes, in words."""
        certificate = self._credentials.certificate
        return {"expires": show_instant(certificate.not_valid_after_utc), "renewal": self._in_words(certificate)}

    def _in_words(self, certificate: x509.Certificate) -> str:
        if self._credentials.renewed:
            return "a renewed certificate is tried"
        if self._fault:
            return f"failed {self._failures} times: {self._fault}"
        if self._credentials.lost_renewed:
            return "the broker refused the renewed certificate: another is asked for within the hour"
        return f"due {show_instant(due(certificate))}"

    # --- when -------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        if self._clock.uptime() < self._not_before:
            return False
        return self._refused_as_expired or (self._knows_time() and self._clock.now() >= self._due())

    def _due(self) -> datetime:
        # One that is tried is given all its life: the line may be down.
        newest, tried = self._credentials.newest, self._credentials.renewed
        return newest.not_valid_after_utc if tried else due(newest)

    def _knows_time(self) -> bool:
        return self._clock.learnt or self._clock.uptime() - self._started >= GRACE

    def _pause(self) -> float:
        left = self._not_before - self._clock.uptime()
        if left <= 0:
            left = (self._due() - self._clock.now()).total_seconds() if self._knows_time() else 1.0
        return min(LOOK, max(0.05, left))

    # --- how --------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        try:
            key, certificate = await asyncio.to_thread(self._ask)
            self._credentials.store_renewed(key, certificate)
        except (AgentError, WireError) as e:
            self._failed(str(e))
            return
        log.info("a new certificate until %s: trying it", f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M}")
        self._failures, self._fault, self._refused_as_expired = 0, "", False
        left = (certificate.not_valid_after_utc - self._clock.now()).total_seconds()
        self._not_before = self._clock.uptime() + (min(SETTLE, left / 4) if left > 0 else SETTLE)
        self._on_renewed()

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
                return self._est.renew(request)
            except Expired as e:
                log.info("%s: asking by a signed request", e)
        return self._est_nameless.renew_expired(self._statement(request))

    def _statement(self, request: bytes) -> bytes:
        credentials = self._credentials
        statement = RenewalStatement(
            device=credentials.device,
            certificate=credentials.certificate.public_bytes(Encoding.PEM).decode(),
            request=base64.b64encode(request).decode(),
        )
        return seal(statement, credentials.signer())
