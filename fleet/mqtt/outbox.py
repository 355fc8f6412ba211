"""What the fleet says to devices, and how it gets there: trust documents, desired states, commands, acknowledgements.

Trust documents and desired states are retained and can be published again at any time without harm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlmodel import col, or_, select

from fleet.mqtt.link import Link
from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.trust.identity import OUT
from fleet.trust.orders import OrderSigner
from fleet.trust.repository import Repository
from wire.orders import Ack
from wire.topics import Ack as AckTopic
from wire.topics import Command as CommandTopic
from wire.topics import Desired as DesiredTopic


@dataclass(frozen=True)
class Outbox:
    """Publishes. What the link cannot take now, `everything` brings on the next connect."""

    link: Link
    database: Database
    repository: Repository
    orders: OrderSigner

    def everything(self) -> None:
        """All that the fleet owns; and what devices that left must not find, if we were killed before we cleared it."""
        self.trust()
        with self.database.transaction() as session:
            known = or_(col(Device.desired_envelope) != "", col(Device.state).in_(OUT))
            devices = session.exec(select(Device.id).where(known)).all()
        self.desired(devices)

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

    def commands(self, devices: Iterable[str]) -> None:
        """The open command of some devices, not retained: one that is away gets it when it is born."""
        with self.database.transaction() as session:
            for device in devices:
                row = session.get_one(Device, device)
                if row.command_envelope:
                    self.link.publish(CommandTopic(device).topic, row.command_envelope.encode())

    def ack(self, ack: Ack) -> None:
        """An acknowledgement of what is on disk."""
        self.link.publish(AckTopic(ack.device).topic, self.orders.sign(ack))
