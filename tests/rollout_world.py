"""A fleet of rows: the real service of rollouts over a real database, with a clock that a test sets.

    world = World()
    world.join("a", profile="pi", tags={"kitchen"})
    world.release("1.0.0", "pi", "x86-64")
    rollout = world.start("1.0.0", waves="50,100")
    world.report("a", "committed"); world.now += timedelta(hours=1); world.tick()
    world.rollout(rollout).state, world.members(rollout)

What is false: nobody signs, and the gates say what `says` holds for a profile (`HOLD` where nothing stands). Desired
states rise by one with every change, as the real ones do, and `assigned` keeps each change in its order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from sqlmodel import Session, col, delete, select

from fleet.access import Caller
from fleet.errors import NotFound
from fleet.gates.history import History
from fleet.gates.judging import judge
from fleet.gates.thresholds import parse
from fleet.gates.values import Comparison, Judgement, Verdict
from fleet.lease import Lease
from fleet.rollout.gating import Gating
from fleet.rollout.requests import RolloutRequest
from fleet.rollout.service import Rollouts
from fleet.store.database import Database
from fleet.store.rollout_tables import LeaseRow, RolloutEvent, RolloutProfile
from fleet.store.shadow_table import DeviceShadow
from fleet.store.tables import Device, DeviceStats, MeasureRow, RolloutDevice, RolloutRow
from fleet.store.tag_table import DeviceTag
from fleet.tags import set_tags
from fleet.trust.desired import models_of
from fleet.trust.repository import ListedRelease
from wire.document import Document
from wire.messages import Reported, UpdateReport
from wire.orders import DesiredModel
from wire.release import Release
from wire.units import show_instant

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
SETTLE = timedelta(minutes=10)
OPERATOR = Caller("token:ops", frozenset({"operator"}))
ALICE, BOB = (Caller(name, frozenset({"admin"}), user=name) for name in ("alice", "bob"))


class Desired:
    """Desired states without signatures. `refused` devices are those whose state would grow too large."""

    def __init__(self) -> None:
        self.assigned: list[tuple[str, tuple[str, ...]]] = []
        self.fault: Callable[[str], None] = lambda _device: None

    def assign(
        self, session: Session, device: Device, models: Sequence[DesiredModel], _shadows: Sequence[Any] | None = None
    ) -> None:
        """The next desired state."""
        self.fault(device.id)
        device.desired_seq += 1
        device.desired_models = json.dumps([m.to_value() for m in models])
        session.add(device)
        self.assigned.append((device.id, tuple(m.target for m in models)))


class Repository:
    """What is listed, by target."""

    def __init__(self) -> None:
        self.releases: dict[str, ListedRelease] = {}

    def of_version(self, family: str, name: str, version: str) -> dict[str, ListedRelease]:
        """The releases of one version by profile."""
        prefix = f"models/{family}/{name}/{version}/"
        found = {t.removeprefix(prefix): r for t, r in self.releases.items() if t.startswith(prefix)}
        if not found:
            raise NotFound(f"{prefix}: no release is listed under it")
        return found


class World:
    """`says`: what the gates say of a profile. `asked` keeps who was compared with whom.

    With `evidence`, of a device, its arm and its moment, the real gates say it.
    """

    def __init__(self, database: Database | None = None, *, holder: str = "one", lease: bool = True) -> None:
        self.database = database or Database("sqlite://")
        self.now = NOW
        self.repository, self.desired = Repository(), Desired()
        self.says: dict[str, Verdict] = {}
        self.asked: list[dict[str, Any]] = []
        self.evidence: Callable[[str, str, datetime], Comparison] | None = None
        self.lease = Lease("rollouts", holder, timedelta(seconds=30), lambda: self.now) if lease else None
        self.begin()

    def begin(self) -> None:
        """A new process: what was only in memory is gone."""
        if self.lease is not None:
            self.lease.term = None
        self.rollouts = Rollouts(
            repository=cast(Any, self.repository),
            desired=cast(Any, self.desired),
            settle_after=SETTLE,
            clock=lambda: self.now,
            gating=Gating(parse=parse, compare=self._compare, judge=self._judge, recall=lambda _text: Document()),
            lease=self.lease,
        )

    def clear(self) -> None:
        """An empty fleet, and a new process."""
        tables = (
            *(RolloutEvent, RolloutProfile, RolloutDevice, RolloutRow),
            *(DeviceTag, DeviceStats, DeviceShadow, MeasureRow, Device),
        )
        with self.database.transaction() as session:
            for table in tables:
                session.exec(delete(table))
            for row in session.exec(select(LeaseRow)):
                row.holder, row.expires = "", ""
        self.__init__(self.database, lease=self.lease is not None)  # type: ignore[misc]

    @contextmanager
    def session(self) -> Any:
        """A transaction."""
        with self.database.transaction() as session:
            yield session

    # --- devices and releases

    def join(self, *names: str, profile: str = "x86-64", group: str = "default", tags: Sequence[str] = ()) -> None:
        """Devices enrol, or come back; what they ran is gone."""
        with self.session() as session:
            for name in names:
                row = session.get(Device, name) or Device(
                    id=name, profile="", created="", token_hash="", token_expires="", online=True
                )
                row.profile, row.group, row.state = profile, group, "enrolled"
                row.desired_models, row.desired_seq = "[]", row.desired_seq + 1
                session.add(row)
                session.flush()
                if session.get(DeviceStats, name) is None:
                    session.add(DeviceStats(device=name))
                set_tags(session, name, tags)

    def leave(self, name: str) -> None:
        """A device is revoked."""
        with self.session() as session:
            row = session.get_one(Device, name)
            row.state, row.desired_models = "revoked", "[]"

    def change(self, name: str, **values: Any) -> None:
        """Columns of a device."""
        with self.session() as session:
            row = session.get_one(Device, name)
            for key, value in values.items():
                setattr(row, key, value)

    def says_of_itself(self, name: str, at: datetime | None = None, **machine: Any) -> None:
        """What a device reports of its machine."""
        health = {"machine": {"at": show_instant(at or self.now), **machine}}
        with self.session() as session:
            session.get_one(DeviceStats, name).health = json.dumps(health)

    def release(self, version: str, *profiles: str, name: str = "kitchen") -> None:
        """A version is listed for some profiles."""
        for profile in profiles or ("x86-64",):
            target = f"models/intents/{name}/{version}/{profile}"
            digest = "sha256:" + f"{abs(hash(target)):064x}"[-64:]
            release = Release(target, digest, 100, profile, "onnxruntime", 1, size=1000)
            self.repository.releases[target] = ListedRelease(release, cast(Any, SimpleNamespace(size=1000)))

    # --- what people, devices and time do

    def request(self, version: str = "1.0.0", **terms: Any) -> RolloutRequest:
        """What is asked for; what is no term is a field of the request."""
        own = {key: terms.pop(key) for key in ("group", "plan", "key") if key in terms}
        asked = {"gates": "install", **terms}
        return RolloutRequest(family="intents", name="kitchen", version=version, terms=asked, **own)

    def start(self, version: str = "1.0.0", caller: Caller = OPERATOR, **terms: Any) -> str:
        """A rollout; only installing counts unless `gates` say more."""
        with self.session() as session:
            row, _ = self.rollouts.start(session, self.request(version, **terms), caller)
            return str(row.id)

    def act(self, what: str, rollout: str, *words: str, caller: Caller = OPERATOR) -> list[str]:
        """One of the service's acts; gives the devices whose desired state changed."""
        with self.session() as session:
            return list(getattr(self.rollouts, what)(session, rollout, *words, caller)[1])

    def tick(self) -> list[str]:
        """Time has passed: what is due is done."""
        self.rollouts.next_look.clear()
        with self.session() as session:
            return list(self.rollouts.tick(session))

    def report(self, *devices: str, phase: str = "committed", reason: str = "too slow") -> None:
        """What devices report of the newest attempt that their desired state asks for."""
        with self.session() as session:
            rows = {row.id: row for row in session.exec(select(Device).where(col(Device.id).in_(devices)))}
            owed = self.rollouts.owed(session, devices)
            for device in devices:
                updates = tuple(_update(m, phase, reason) for m in models_of(rows[device]))
                self.rollouts.take_report(session, reported(device, *updates), owed.get(device, ()))

    def answer_all(self, rollout: str) -> None:
        """Whoever was sent the release commits, wave by wave, until nobody owes an answer."""
        while waiting := [d for d, state in self.members(rollout).items() if state == "sent"]:
            self.report(*waiting)

    # --- what there is to see

    def rollout(self, rollout: str) -> RolloutRow:
        with self.session() as session:
            return cast(RolloutRow, session.get_one(RolloutRow, rollout))

    def reasons(self, rollout: str) -> str:
        return "; ".join(json.loads(self.rollout(rollout).reasons))

    def members(self, rollout: str) -> dict[str, str]:
        """Devices by their state in a rollout."""
        with self.session() as session:
            mine = select(RolloutDevice).where(RolloutDevice.rollout == rollout)
            return {m.device: m.state for m in session.exec(mine.order_by(col(RolloutDevice.device)))}

    def versions(self) -> dict[str, str]:
        """What each device should run of the model: its version, or ""."""
        with self.session() as session:
            rows = session.exec(select(Device).order_by(col(Device.id))).all()
            return {row.id: next((m.target.split("/")[3] for m in models_of(row)), "") for row in rows}

    def events(self, rollout: str, device: str | None = None) -> list[tuple[str, str]]:
        """Who did what: to a device, or to all of a rollout or to a profile."""
        with self.session() as session:
            mine = select(RolloutEvent).where(RolloutEvent.rollout == rollout, RolloutEvent.device == device)
            return [(e.who, e.what) for e in session.exec(mine.order_by(col(RolloutEvent.id)))]

    def _compare(self, _session: Session, **asked: Any) -> list[Comparison]:
        self.asked.append(asked)
        arms = (("candidate", asked["candidates"]), ("control", asked["controls"]))
        tell = self.evidence
        return [tell(d, arm, since) for arm, devices in arms for d, since in devices.items()] if tell else []

    def _judge(
        self, gates: Any, profile: str, comparisons: Sequence[Comparison], history: Any, now: datetime
    ) -> tuple[Judgement, Any]:
        if self.evidence is not None:
            return judge(gates, profile, comparisons, History(), now)
        verdict = self.says.get(profile, "HOLD")
        return Judgement(profile=profile, verdict=verdict, reasons=(f"the gates say {verdict} of {profile}",)), history


def _update(model: DesiredModel, phase: str, reason: str) -> UpdateReport:
    return UpdateReport(
        target=model.target, digest=model.digest, rollout=model.rollout, phase=cast(Any, phase), reason=reason
    )


def reported(device: str, *updates: UpdateReport) -> Reported:
    """A report that says how updates go, and nothing else."""
    return Reported(
        device=device,
        boot="b1",
        starts=1,
        seq=1,
        nonce="n1",
        time=show_instant(NOW),
        sealing_key="",
        agent="0",
        profile="x86-64",
        hardware="a test",
        emulated=True,
        desired_epoch=1,
        desired_seq=1,
        updates=updates,
    )


def one_world() -> Iterator[World]:
    """For all tests of a module."""
    made = World()
    yield made
    made.database.close()


def anew(world: World) -> World:
    """The same without devices and rollouts, and with two versions for two profiles."""
    world.clear()
    for version in ("1.0.0", "2.0.0"):
        world.release(version, "x86-64", "pi")
    return world


def names(n: int, prefix: str = "d") -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


def run(world: World, version: str) -> str:
    """Everybody runs a version."""
    rollout = world.start(version, waves="100")
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"
    return rollout
