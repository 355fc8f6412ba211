"""Acknowledgements: the answer to the nonce of a report or of a telemetry batch.

It says the fleet's time and its latest desired state, so that a device learns the time and whether it is being frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from fleet.store.speakers import Speaker
from fleet.store.tables import Device
from fleet.trust.orders import OrderSigner
from wire.messages import Reported, TelemetryBatch
from wire.orders import Ack


@dataclass(frozen=True)
class Acks:
    """Makes acknowledgements. `lifetime` is how late one may come."""

    orders: OrderSigner
    lifetime: timedelta

    def of_report(self, device: Device, reported: Reported) -> Ack:
        """Says nothing of records. Make it last in the transaction: it names the desired state of then."""
        return self._next(device, nonce=reported.nonce, boot=reported.boot, stored=0)

    def of_batch(self, device: Device | Speaker, batch: TelemetryBatch) -> Ack:
        """For after the commit: the batch's records are on disk."""
        return self._next(device, nonce=batch.nonce, boot=batch.boot, stored=batch.records[-1].seq)

    def _next(self, device: Device | Speaker, *, nonce: str, boot: str, stored: int) -> Ack:
        device.ack_seq += 1
        dates = self.orders.dates(self.lifetime)
        return Ack(
            device=device.id,
            epoch=self.orders.epoch,
            seq=device.ack_seq,
            issued=dates.issued,
            expires=dates.expires,
            nonce=nonce,
            boot=boot,
            stored=stored,
            desired_epoch=device.desired_epoch,
            desired_seq=device.desired_seq,
        )
