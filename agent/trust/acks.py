"""Questions and answers: what this device says carries a nonce, and only the fleet's answer to it is believed.

    nonce = acks.ask()                  # into a report or a telemetry batch
    ack = acks.take(payload)            # signed by the fleet role, to us, to a nonce that waits, in time and order

An answer tells the time, so its own lateness is judged by what passed since the nonce was sent, never by a clock.
"""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from agent.trust.clock import Clock
from wire.admission import check_order
from wire.dsse import open_by_role
from wire.errors import Untrusted
from wire.orders import Ack
from wire.trust import TrustedSet
from wire.units import instant

log = logging.getLogger("agent.trust.acks")

MOST: Final = 64
"""Nonces that wait at one time; the oldest is given up."""
ANSWERED: Final = 8
"""Nonces whose second answer is no attack: the line may bring a question twice, and the fleet answers each."""
EARLIER_START: Final = 60.0
"""Seconds after the start in which an answer to the agent's start before this one may still come."""


class Acks:
    """The nonces of one start of the agent."""

    def __init__(
        self,
        *,
        device: str,
        boot: str,
        trusted: TrustedSet,
        clock: Clock,
        on_ask: Callable[[float], None],
        on_answer: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """`on_ask(at)` hears of every question, in seconds of the monotonic clock; `on_answer` how long it took."""
        self._device = device
        self._on_ask, self._on_answer = on_ask, on_answer
        self._boot = boot
        self._trusted = trusted
        self._clock = clock
        self._started = clock.uptime()
        self._waiting: OrderedDict[str, float] = OrderedDict()
        self._answered: deque[str] = deque(maxlen=ANSWERED)
        self._last = (0, 0)

    def ask(self) -> str:
        """A new nonce, sent now."""
        nonce = uuid.uuid4().hex
        self._waiting[nonce] = self._clock.uptime()
        self._on_ask(self._waiting[nonce])
        while len(self._waiting) > MOST:
            self._waiting.popitem(last=False)
        return nonce

    def take(self, payload: bytes) -> Ack | None:
        """A fresh answer. Raises `WireError` for anything else.

        None for one that says nothing new: to an earlier start of this agent, or to what was answered just now.
        """
        ack = open_by_role(payload, Ack, self._trusted.targets())
        check_order(ack, device=self._device, last=(-1, -1), now=ack.time)
        at = self._clock.uptime()
        sent = self._waiting.get(ack.nonce)
        if sent is None:
            if ack.nonce in self._answered and ack.number > self._last:
                return None
            if ack.boot != self._boot and at - self._started < EARLIER_START:
                log.info("an acknowledgement of an earlier start of this agent is not needed any more")
                return None
            raise Untrusted(f"ack {ack.epoch}.{ack.seq}: answers nothing that waits: a replay")
        if timedelta(seconds=at - sent) >= instant(ack.expires) - ack.time:
            raise Untrusted(f"ack {ack.epoch}.{ack.seq}: came {at - sent:.0f} s after its nonce was sent: too late")
        check_order(ack, device=self._device, last=self._last, now=ack.time)
        del self._waiting[ack.nonce]
        self._answered.append(ack.nonce)
        self._last = ack.number
        self._on_answer(at - sent)
        return ack
