"""What every order of the fleet to a device has in common: the fleet key of this moment, the epoch, and its dates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from securesystemslib.dsse import Envelope

from fleet.errors import Malformed
from fleet.store.database import Database
from fleet.store.tables import MetaRow
from fleet.trust.keys import OnlineKeys
from wire.dsse import seal
from wire.orders import Order
from wire.units import show_instant

EPOCH_KEY: Final = "epoch"
FIRST_EPOCH: Final = 1


class Dates(NamedTuple):
    """When an order is signed and until when it may be acted on, RFC 3339."""

    issued: str
    expires: str


@dataclass(frozen=True)
class OrderSigner:
    """Signs orders. The key is read at each use, because a rotation may change it while the fleet runs."""

    keys: OnlineKeys
    epoch: int
    clock: Callable[[], datetime]

    @classmethod
    def open(cls, database: Database, keys: OnlineKeys, clock: Callable[[], datetime]) -> OrderSigner:
        """With the epoch of the database, which a restore from a backup raises, so that no sequence is used twice."""
        with database.transaction() as session:
            row = session.get(MetaRow, EPOCH_KEY)
        value = row.value if row else str(FIRST_EPOCH)
        if not (value.isascii() and value.isdigit()):
            raise Malformed(f"database: the epoch is {value!r}, not a number: put the fleet back from a backup")
        return cls(keys, int(value), clock)

    def dates(self, lifetime: timedelta) -> Dates:
        """From now on for `lifetime`."""
        now = self.clock()
        return Dates(show_instant(now), show_instant(now + lifetime))

    def sign(self, order: Order) -> bytes:
        """The order in an envelope of the fleet role."""
        return seal(order, self.keys.fleet)

    def signed(self, envelope: str) -> bool:
        """Whether an envelope of ours is signed with the fleet key of now."""
        return self.keys.fleet.public_key.keyid in Envelope.from_dict(json.loads(envelope)).signatures
