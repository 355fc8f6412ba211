"""What the fleet owns on the broker, and how it gets there: trust documents, desired states, acknowledgements.

All but acknowledgements is retained and can be published again at any time without harm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from securesystemslib.signer import Signer
from sqlmodel import col, select

from fleet.mqtt.link import Link
from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.trust.repository import Repository
from wire.dsse import seal
from wire.messages import Ack
from wire.topics import Ack as AckTopic
from wire.topics import Desired as DesiredTopic


@dataclass(frozen=True)
class Outbox:
    """Publishes. What the link cannot take now, `everything` brings on the next connect."""

    link: Link
    database: Database
    repository: Repository
    signer: Signer

    def everything(self) -> None:
        """All that the fleet owns."""
        self.trust()
        with self.database.transaction() as session:
            self.desired(session.exec(select(Device.id).where(col(Device.desired_envelope) != "")).all())

    def trust(self) -> None:
        """The signed metadata, the timestamp last."""
        for topic, document in self.repository.messages():
            self.link.publish(topic.topic, document, retain=True)

    def desired(self, devices: Iterable[str]) -> None:
        """The desired state of some devices, as it was signed. Call it after the transaction that changed it."""
        with self.database.transaction() as session:
            for device in devices:
                row = session.get_one(Device, device)
                self.link.publish(DesiredTopic(device).topic, row.desired_envelope.encode(), retain=True)

    def ack(self, ack: Ack) -> None:
        """An acknowledgement of records that are on disk."""
        self.link.publish(AckTopic(ack.device).topic, seal(ack, self.signer))
