"""Devices of a rollout and their desired states: the release goes out, and what was there before comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session

from fleet.errors import Conflict
from fleet.measuring import end_all
from fleet.rollout.attempts import attempt_name
from fleet.store.tables import Device, RolloutDevice
from fleet.trust.desired import DesiredStates, models_of
from fleet.trust.identity import LISTENED
from fleet.trust.repository import ListedRelease
from wire.orders import DesiredModel
from wire.units import show_instant

Ready = Callable[[Session, Device, RolloutDevice], bool]
"""Whether a release may be sent to a device now; while not, it is asked again."""


@dataclass(frozen=True)
class Sender:
    """Changes desired states. The commit, and publishing them, are left to the caller."""

    desired: DesiredStates
    ready: Ready

    def reach(
        self, session: Session, member: RolloutDevice, device: Device, listed: ListedRelease, now: datetime
    ) -> None:
        """Take a device into a rollout, or take it in again: `send` then sends it the release."""
        release = listed.release
        model = DesiredModel(target=release.target, digest=release.digest).model
        before = [m for m in models_of(device) if m.model == model]
        member.target, member.digest, member.profile = release.target, release.digest, device.profile
        member.before = before[0].to_bytes().decode() if before else ""
        member.admitted, member.attempt = show_instant(now), member.attempt + 1
        member.state, member.reason, member.committed, member.sent_seq = "sent", "", None, 0
        session.add(member)

    def send(self, session: Session, member: RolloutDevice, device: Device) -> bool:
        """Whether the release is in the device's desired state now. Raises `Conflict` when it would be too large."""
        if device.state != "enrolled" or not self.ready(session, device, member):
            return False
        name = attempt_name(member.rollout, member.attempt)
        new = DesiredModel(target=member.target, digest=member.digest, rollout=name)
        self.desired.assign(session, device, [*(m for m in models_of(device) if m.model != new.model), new])
        member.sent_seq = device.desired_seq
        session.add(member)
        return True

    def bring_back(self, session: Session, member: RolloutDevice, now: datetime) -> bool:
        """Give a device back what it should have run before; False where it was given something else meanwhile.

        What was only added to look at models ends where it leaves no room for that. Raises `Conflict` when the desired
        state would be too large even so; then nothing is changed.
        """
        device = session.get_one(Device, member.device)
        if device.state not in LISTENED or not has_release(device.desired_models, member):
            return False
        model = DesiredModel(target=member.target, digest=member.digest).model
        before = [DesiredModel.from_bytes(member.before.encode())] if member.before else []
        models = [*(m for m in models_of(device) if m.model != model), *before]
        try:
            self.desired.assign(session, device, models)
        except Conflict:
            with session.begin_nested():
                end_all(session, device, f"it left no room to bring back what rollout {member.rollout} sent", now)
                self.desired.assign(session, device, models, ())
        return True


def has_release(desired_models: str, member: RolloutDevice) -> bool:
    """Whether a device's desired state, as it is stored, has the release of this attempt."""
    return f'"rollout": "{attempt_name(member.rollout, member.attempt)}"' in desired_models
