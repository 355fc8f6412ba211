"""Desired state: what each device should run, signed by the fleet role, kept in the device's row.

Every change takes the next `(epoch, seq)` in the transaction that decides it, so a device that saw the newer one never
goes back, whatever is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from securesystemslib.signer import Signer
from sqlmodel import Session, col, select

from fleet.store.tables import Device
from wire.dsse import seal
from wire.messages import Desired, DesiredModel
from wire.units import show_instant

EPOCH = 1
"""Rises when a fleet comes back from a backup, so that no sequence is used twice."""


@dataclass(frozen=True)
class DesiredStates:
    """Signs desired states. `lifetime` is how long one may still start an install."""

    signer: Signer
    lifetime: timedelta
    clock: Callable[[], datetime]

    def assign(self, session: Session, device: Device, models: Sequence[DesiredModel]) -> None:
        """Give a device its next desired state. The caller publishes it once the transaction is through."""
        now = self.clock()
        desired = Desired(
            device=device.id,
            epoch=EPOCH,
            seq=device.desired_seq + 1,
            issued=show_instant(now),
            expires=show_instant(now + self.lifetime),
            models=tuple(models),
        )
        device.desired_epoch, device.desired_seq = desired.epoch, desired.seq
        device.desired_expires = desired.expires
        device.desired_models = json.dumps([m.to_value() for m in models])
        device.desired_envelope = seal(desired, self.signer).decode()
        session.add(device)

    def refresh(self, session: Session) -> list[str]:
        """Sign again, unchanged, what has less than half of its life left. Gives back the devices concerned."""
        soon = show_instant(self.clock() + self.lifetime / 2)
        query = select(Device).where(col(Device.desired_envelope) != "", col(Device.desired_expires) < soon)
        devices = session.exec(query).all()
        for device in devices:
            self.assign(session, device, models_of(device))
        return [device.id for device in devices]


def models_of(device: Device) -> list[DesiredModel]:
    """The models of a device's desired state."""
    return [DesiredModel.from_value(value) for value in json.loads(device.desired_models)]
