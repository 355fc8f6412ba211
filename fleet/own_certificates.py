"""The fleet's own certificates while it runs: the one of HTTPS port and broker, and the one of its client.

own.tick()        # renews what has a third of its life left
own.replace()     # all of them, after the authority in use changed or one was removed
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from fleet.api.tls import ServerTls
from fleet.errors import Unanswered
from fleet.mqtt.broker import Broker
from fleet.trust.ca import Authority, KeyPair
from wire.topics import FLEET_CLIENT

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnCertificates:
    """Used on the serial thread. Live connections go on with the certificate that they began with."""

    authority: Authority
    names: Sequence[str]
    server: KeyPair
    client: KeyPair
    https: ServerTls
    broker: Broker
    clock: Callable[[], datetime]

    def tick(self) -> None:
        """Renew what has a third of its life left."""
        now = self.clock()
        if self.authority.wants_renewal(self.server, now):
            self._renew_server(now)
        if self.authority.wants_renewal(self.client, now):  # the link reads it before it connects again
            self.authority.client(FLEET_CLIENT, now)

    def replace(self) -> None:
        """Certificates of the authority in use, and the authorities that are believed now, everywhere.

        Lists of revoked certificates are another matter: `Revocations.reissue`.
        """
        now = self.clock()
        self.authority.client(FLEET_CLIENT, now)  # first: with it the broker is asked whether it read the others
        self._renew_server(now)

    def _renew_server(self, now: datetime) -> None:
        self.authority.server(self.names, now)
        self.https.renew()
        try:
            self.broker.reload()
        except Unanswered as e:  # it is told again when revocations look after it
            _log.warning("%s. Until it does, it shows the certificate of before", e)
            return
        _log.info("HTTPS port and broker have a new certificate")
