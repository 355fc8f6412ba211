"""Models in shadow: a release runs beside the model of a device on a share of its requests, and answers nobody.

    shadows.begin(session, device, ShadowRequest(target=..., share=20))
    shadows.end(session, device, "kitchen")

Each gives a device a new desired state where it changes anything; the commit, and publishing it, are the caller's.
What a shadow says comes as telemetry, `InferenceStats(shadow=True)`. To promote it, assign its release as the model:
the shadow ends by itself, and the device switches to what it holds without a download.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlmodel import Session

from fleet.errors import Conflict, NotFound
from fleet.store.tables import Device
from fleet.trust.desired import DesiredStates, models_of, shadows_of
from fleet.trust.identity import LISTENED
from fleet.trust.repository import Repository
from wire.shadow import ShadowModel


@dataclass(frozen=True, kw_only=True)
class ShadowRequest:
    """A release by its target path, and what it may take, as `wire.shadow.ShadowModel` says."""

    target: str
    share: int = 20
    cpu: int = 10
    memory: int = 0
    max_c: float = 70.0


@dataclass(frozen=True)
class Shadows:
    """Begins and ends what devices run in shadow."""

    repository: Repository
    desired: DesiredStates

    def begin(self, session: Session, device: Device, request: ShadowRequest) -> bool:
        """Have a device run a release in shadow, in place of another one of that model.

        Whether its desired state is new: it is not for the same again. Raises wire's `Malformed` for a target or a
        budget out of bounds, `NotFound` for a release that is not listed, and `Conflict` for a device that cannot run
        it in shadow.
        """
        listed = self.repository.releases.get(request.target)
        if listed is None:
            raise NotFound(
                f"{request.target[:200]}: no such release is listed: `shoal model list` shows those there are"
            )
        shadow = ShadowModel(digest=listed.release.digest, **asdict(request))
        _check(device, shadow, listed.manifest.profile)
        before = shadows_of(session, device)
        if shadow in before:
            return False
        self._give(session, device, [*(one for one in before if one.model != shadow.model), shadow])
        return True

    def end(self, session: Session, device: Device, model: str) -> bool:
        """Have a device end what it runs in shadow of a model.

        Whether its desired state is new. A device that left the fleet has none.
        """
        before = shadows_of(session, device)
        after = [one for one in before if one.model != model]
        if len(after) == len(before) or device.state not in LISTENED:
            return False
        self._give(session, device, after)
        return True

    def _give(self, session: Session, device: Device, shadows: Sequence[ShadowModel]) -> None:
        self.desired.assign(session, device, models_of(device), shadows)


def _check(device: Device, shadow: ShadowModel, profile: str) -> None:
    what = f"{shadow.target} in shadow on {device.id}"
    if device.state != "enrolled":
        raise Conflict(f"{what}: it is {device.state}: only an enrolled device runs models")
    if device.profile != profile:
        raise Conflict(f"{what}: the release is for {profile}, the device is a {device.profile}")
    beside = next((m for m in models_of(device) if m.model == shadow.model), None)
    if beside is None:
        raise Conflict(f"{what}: it has no model {shadow.model} that this could be held against: roll one out first")
    if beside.digest == shadow.digest:
        raise Conflict(f"{what}: it is the model that the device is to run already")
