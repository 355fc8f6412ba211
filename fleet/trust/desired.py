"""Desired state: what each device should run and measure, signed by the fleet role, kept in the device's row.

Every change takes the next `(epoch, seq)` in the transaction that decides it, so a device that saw the newer one never
goes back, whatever is sent again. With it go the keys of the models' blobs, sealed to the device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import Session, col, or_, select
from sqlmodel.sql.expression import SelectOfScalar

from fleet.errors import Conflict
from fleet.lease import Leads, alone
from fleet.store.shadow_table import DeviceShadow
from fleet.store.tables import Device, MeasureRow
from fleet.trust.blob_keys import BlobKeys, Needing
from fleet.trust.orders import OrderSigner
from wire.orders import DeltaOffer, Desired, DesiredModel, MeasureJob
from wire.secrecy import public_key, seal_keys
from wire.shadow import ShadowModel
from wire.units import show_instant

Offers = Callable[[Session, Device, Sequence[DesiredModel]], Sequence[DeltaOffer]]


def _no_offers(_session: Session, _device: Device, _models: Sequence[DesiredModel]) -> Sequence[DeltaOffer]:
    return ()


@dataclass(frozen=True)
class DesiredStates:
    """Signs desired states. `lifetime` is how long one may still start an install, `offers` the deltas for a device."""

    orders: OrderSigner
    blob_keys: BlobKeys
    lifetime: timedelta
    offers: Offers = _no_offers
    leads: Leads = alone
    """Who does not lead signs nothing only because time went by: another one does."""

    def assign(
        self,
        session: Session,
        device: Device,
        models: Sequence[DesiredModel],
        shadows: Sequence[ShadowModel] | None = None,
    ) -> None:
        """Give a device its next desired state. The caller publishes it once the transaction is through.

        `shadows`: what runs beside them; None: what does already. Of either only what has a model to run beside, and
        is not that model itself: whoever assigns the release of a shadow promotes it. Raises `Conflict` when it would
        be larger than a device takes.
        """
        jobs = jobs_of(session, device)
        wanted = shadows_of(session, device) if shadows is None else shadows
        beside = {model.model: model.digest for model in models}
        shown = [shadow for shadow in wanted if beside.get(shadow.model, shadow.digest) != shadow.digest]
        desired = self._statement(device, models, jobs, self.offers(session, device, models), shown)
        if desired is None:  # an offer may be left out, a model not
            desired = self._statement(device, models, jobs, (), shown)
        if desired is None:
            raise Conflict(
                f"device {device.id}: {len(models)} models, {len(shown)} in shadow and {len(jobs)} measuring jobs with "
                f"their keys are more than the {Desired.LIMIT} bytes that a desired state may have: give it fewer"
            )
        _keep_shadows(session, device, shown)
        device.desired_epoch, device.desired_seq = desired.epoch, desired.seq
        device.desired_expires = desired.expires
        device.desired_models = json.dumps([m.to_value() for m in models])
        device.desired_envelope = self.orders.sign(desired).decode()
        session.add(device)

    def may_fetch(self, session: Session, device: Device, blob: str) -> bool:
        """Whether a device may ask for chunks of a blob: of a model, a job, a shadow, or a delta offered to it."""
        models = models_of(device)
        for some in (models, jobs_of(session, device), shadows_of(session, device)):
            if self.blob_keys.covers(some, blob):
                return True
        return any(blob in (offer.delta, offer.chunks) for offer in self.offers(session, device, models))

    def _statement(
        self,
        device: Device,
        models: Sequence[DesiredModel],
        jobs: Sequence[MeasureJob],
        offers: Sequence[DeltaOffer],
        shadows: Sequence[ShadowModel],
    ) -> Desired | None:
        """The device's next desired state; None when it is larger than a device takes."""
        dates = self.orders.dates(self.lifetime)
        desired = Desired(
            device=device.id,
            epoch=self.orders.epoch,
            seq=device.desired_seq + 1,
            issued=dates.issued,
            expires=dates.expires,
            models=tuple(models),
            keys=self._sealed(device, [*models, *jobs, *shadows], offers),
            measure=tuple(jobs),
            offers=tuple(offers),
            shadows=tuple(shadows),
        )
        return desired if len(desired.to_bytes()) <= Desired.LIMIT else None

    def take_sealing_key(self, session: Session, device: Device, text: str) -> bool:
        """Keep the key that a device reports; True when a desired state was signed anew for it.

        Raises wire's `Malformed` for what is no such key.
        """
        if text == device.sealing_key:
            return False
        public_key(text)
        device.sealing_key = text
        session.add(device)
        models = models_of(device)
        waits = bool(models or jobs_of(session, device))
        if waits:
            self.assign(session, device, models)
        return waits

    def refresh(self, session: Session) -> list[str]:
        """Sign again, unchanged, what has less than half of its life left or is of an epoch before a restore.

        Gives back the devices concerned.
        """
        if not self.leads(session):
            return []
        soon = show_instant(self.orders.clock() + self.lifetime / 2)
        stale = or_(col(Device.desired_expires) < soon, col(Device.desired_epoch) < self.orders.epoch)
        return self._again(session, session.exec(_signed().where(stale)))

    def sign_all_again(self, session: Session) -> list[str]:
        """Sign every desired state with the fleet key of now: the one before it does not count any more."""
        return self._again(session, session.exec(_signed()))

    def _again(self, session: Session, devices: Iterable[Device]) -> list[str]:
        signed = list(devices)
        for device in signed:
            self.assign(session, device, models_of(device))
        return [device.id for device in signed]

    def _sealed(self, device: Device, models: Sequence[Needing], offers: Sequence[DeltaOffer]) -> str:
        """Empty until the device said what to seal to: its first report brings the keys."""
        ring = self.blob_keys.ring(models) | self.blob_keys.of_offers(offers)
        return seal_keys(ring, public_key(device.sealing_key), device.id) if ring and device.sealing_key else ""


def models_of(device: Device) -> list[DesiredModel]:
    """The models of a device's desired state."""
    return [DesiredModel.from_value(value) for value in json.loads(device.desired_models)]


def shadows_of(session: Session, device: Device) -> list[ShadowModel]:
    """What a device runs in shadow of its models."""
    mine = select(DeviceShadow.document).where(DeviceShadow.device == device.id).order_by(col(DeviceShadow.model))
    return [ShadowModel.from_bytes(document.encode()) for document in session.exec(mine)]


def _keep_shadows(session: Session, device: Device, shadows: Sequence[ShadowModel]) -> None:
    for row in session.exec(select(DeviceShadow).where(DeviceShadow.device == device.id)).all():
        session.delete(row)
    session.flush()
    for shadow in shadows:
        document = shadow.to_bytes().decode()
        session.add(DeviceShadow(device=device.id, model=shadow.model, document=document))


def jobs_of(session: Session, device: Device) -> list[MeasureJob]:
    """The measuring jobs that a device has not ended."""
    mine = select(MeasureRow).where(MeasureRow.device == device.id, col(MeasureRow.ended).is_(None))
    rows = session.exec(mine.order_by(col(MeasureRow.number)))
    return [MeasureJob(id=row.id, target=row.target, digest=row.digest, rounds=row.rounds) for row in rows]


def _signed() -> SelectOfScalar[Device]:
    return select(Device).where(col(Device.desired_envelope) != "")
