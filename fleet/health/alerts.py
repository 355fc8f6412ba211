"""Alerts of a running fleet: the file of rules, the table of alerts, and what people say to them.

    alerts.tick()                                     # on the serial thread; looks when a look is due
    alerts.acknowledge(session, id, caller)           # no repeats any more; its end is told
    alerts.silence(session, asked, caller)            # nothing is told until then

What is found, and what is to be sent of it, are one transaction: a restart sends nothing twice and forgets nothing.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlmodel import Session, col, delete, select

from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, Malformed, NotFound
from fleet.health import courier as on_the_way
from fleet.health import rules as rules_file
from fleet.health.alerting import Alert, Key, Message, Silence, judge
from fleet.health.courier import Courier
from fleet.health.observing import Drifting, Looking, observe
from fleet.health.status import Hearing
from fleet.lease import Leads, alone
from fleet.store.database import Database
from fleet.store.health_tables import AlertRow, AlertSilence
from fleet.store.tables import Device
from fleet.store.upsert import upsert
from wire.units import instant, show_instant

LONGEST: Final = timedelta(days=365)
SHOWN: Final = 1000
_TIMES: Final = ("began", "opened", "told", "quiet", "ended")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NewSilence:
    """What a person asks for; "" is any rule or subject."""

    rule: str
    subject: str
    lasts: timedelta
    reason: str


class Alerts:
    """The rules of a data folder and what became of them. `own`: until when the fleet's own certificates are good.

    A process that does not lead reads the file, shows what there is, and looks at nothing itself.
    """

    def __init__(
        self,
        data: Path,
        database: Database,
        clock: Callable[[], datetime],
        *,
        own: Callable[[], Mapping[str, datetime]],
        drifting: Drifting = lambda _session: {},
        leads: Leads = alone,
    ) -> None:
        self._data, self._database, self._clock, self._own, self._drifting = data, database, clock, own, drifting
        self._leads = leads
        self._stamp = self._file_stamp()
        self.rules = rules_file.load(data)
        self.fault = ""
        """What is wrong with the file since it was changed; the rules of before hold until it is mended."""
        self._next: datetime | None = None

    def tick(self, hearing: Hearing, courier: Courier) -> None:
        """Look at all rules, if it is time to."""
        now = self._clock()
        if self._next is not None and now < self._next:
            return
        self._next = now + timedelta(seconds=self.rules.every)
        self._read_again()
        with self._database.transaction() as session:
            if self._leads(session):
                self._look(session, hearing, courier)
                courier.tidy(session)

    def _look(self, session: Session, hearing: Hearing, courier: Courier) -> None:
        before = {alert.key: alert for alert in map(_alert, session.exec(select(AlertRow)).all())}
        subjects: dict[str, set[str]] = {}
        for rule, subject in before:
            subjects.setdefault(rule, set()).add(subject)
        there = {rule: frozenset(some) for rule, some in subjects.items()}
        looking = Looking(session, hearing, self._own(), self._drifting, there)
        seen = [observe(rule, looking) for rule in self.rules.rules.values() if rule.enabled]
        silences = [Silence(rule=s.rule, subject=s.subject, until=instant(s.until)) for s in _silences(session)]
        step = judge(before, seen, silences, timedelta(seconds=self.rules.wait), hearing.now)
        _write(session, before, step.alerts)
        courier.keep(session, step.messages)
        for message in step.messages:
            _log.info("alert %s: %s %d: %s", message.rule, message.what, message.count, ", ".join(message.subjects))

    def _read_again(self) -> None:
        """The file may have changed. A fault in it leaves the rules as they are: no alerts at all would be worse."""
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.rules, self.fault = rules_file.load(self._data), ""
            _log.info("alerts: %d rules, %d channels", len(self.rules.rules), len(self.rules.channels))
        except Malformed as e:
            self.fault = str(e)
            _log.error("alerts: %s: the rules of before hold", e)

    def _file_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = (self._data / rules_file.FILE).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    # --- what people ask and say --------------------------------------------------------------------------------------

    def view(self, session: Session, caller: Caller) -> dict[str, Any]:
        """Open alerts, the newest first, silences, rules and channels.

        Who is given groups sees no alert and no silence that names a device of another one, or the group itself.
        """
        sent = on_the_way.counts(session)
        open_ = select(AlertRow).where(col(AlertRow.opened).is_not(None), col(AlertRow.ended).is_(None))
        found = session.exec(open_.order_by(col(AlertRow.opened).desc(), col(AlertRow.subject))).all()
        silences = [row for row in _silences(session) if instant(row.until) > self._clock()]
        of_others = self._of_others(session, caller, [*found, *silences])
        rows = [row for row in found if (row.rule, row.subject) not in of_others][:SHOWN]
        names = ("id", "rule", "subject", "text", "began", "opened", "told", "acknowledged")
        return {
            "alerts": [self._shown({n: getattr(row, n) for n in names}) for row in rows],
            "silences": [row.model_dump() for row in silences if (row.rule, row.subject) not in of_others],
            "rules": [
                {"name": r.name, "kind": r.kind, "severity": r.severity, "enabled": r.enabled}
                for r in self.rules.rules.values()
            ],
            "channels": [
                {"name": name, "kind": c.kind, **{s: sent.get((name, s), 0) for s in ("waiting", "sent", "failed")}}
                for name, c in self.rules.channels.items()
            ],
            "fault": self.fault,
        }

    def _shown(self, alert: dict[str, Any]) -> dict[str, Any]:
        rule = self.rules.rules.get(alert["rule"])
        return {**alert, "kind": rule.kind if rule else "", "severity": rule.severity if rule else ""}

    def _of_others(self, session: Session, caller: Caller, rows: Iterable[AlertRow | AlertSilence]) -> set[Key]:
        """What is about a device of a group that a caller is not given, or about such a group."""
        if not caller.groups:
            return set()
        groups = dict(session.exec(select(Device.id, Device.group)).all())
        found = set()
        for row in rows:
            rule = self.rules.rules.get(row.rule)
            of = rule.about.of if rule else ""
            device = _device_of(row.subject)
            if rule is not None and rule.group:
                theirs = rule.group not in caller.groups
            elif device in groups or of == "device":
                theirs = bool(device) and groups.get(device) not in caller.groups
            else:
                _, there, group = row.subject.rpartition(", group:")
                theirs = bool(there) and group not in caller.groups
            if theirs:
                found.add((row.rule, row.subject))
        return found

    def acknowledge(self, session: Session, id_: str, caller: Caller) -> dict[str, Any]:
        """Somebody knows of it. The same again changes nothing. Raises `NotFound`, `Forbidden`."""
        row = session.exec(select(AlertRow).where(AlertRow.id == id_)).first()
        if row is None or row.opened is None:
            raise NotFound(f"alert {id_[:40]!r}: none of that id is open: `shoal alert list` shows those that are")
        _check_scope(session, caller, row.subject)
        row.acknowledged = row.acknowledged or caller.name
        session.add(row)
        return self._shown({"id": row.id, "rule": row.rule, "subject": row.subject, "acknowledged": row.acknowledged})

    def silence(self, session: Session, asked: NewSilence, caller: Caller) -> dict[str, Any]:
        """Tell nothing of a rule and a subject for a while. Raises `Malformed`, `NotFound`, `Forbidden`."""
        if not timedelta() < asked.lasts <= LONGEST:
            raise Malformed(f"silence: expected up to {LONGEST.days} days")
        if asked.rule and asked.rule not in self.rules.rules:
            raise NotFound(f"rule {asked.rule[:40]!r}: {rules_file.FILE} has none of that name")
        _check_scope(session, caller, asked.subject)
        until = show_instant(self._clock() + asked.lasts)
        row = AlertSilence(
            id=f"s-{secrets.token_hex(6)}",
            rule=asked.rule,
            subject=asked.subject,
            until=until,
            who=caller.name,
            reason=asked.reason,
        )
        session.add(row)
        session.exec(delete(AlertSilence).where(col(AlertSilence.until) < show_instant(self._clock())))
        return row.model_dump()

    def end_silence(self, session: Session, id_: str, caller: Caller) -> None:
        """Tell again. Raises `NotFound`, `Forbidden`."""
        row = session.get(AlertSilence, id_)
        if row is None:
            raise NotFound(f"silence {id_[:40]!r}: there is none of that id: `shoal alert list` shows those there are")
        _check_scope(session, caller, row.subject)
        session.delete(row)

    def test(self, session: Session, name: str, courier: Courier) -> str:
        """Send a message to a channel to see whether it arrives; gives its id. Raises `Conflict`."""
        if name not in self.rules.channels:
            there = ", ".join(self.rules.channels) or "none"
            raise Conflict(f"channel {name[:40]!r}: {rules_file.FILE} has {there}: name one of them")
        id_ = f"test-{secrets.token_hex(8)}"
        of = {"rule": "test", "kind": "", "severity": "info", "at": self._clock(), "count": 1}
        texts = {"subjects": ("test",), "texts": ("somebody asked whether messages arrive",)}
        courier.keep(session, [Message(id=id_, channel=name, what="open", **of, **texts)])  # type: ignore[arg-type]
        return id_


def _check_scope(session: Session, caller: Caller, subject: str) -> None:
    """An operator of some groups speaks for their devices only."""
    if not caller.groups:
        return
    row = session.get(Device, _device_of(subject))
    if row is None:
        raise Forbidden(f"{caller.name}: may speak for devices of {', '.join(sorted(caller.groups))} only: name one")
    caller.check_group(row.group)


def _device_of(subject: str) -> str:
    """The device that an alert is about, or whose certificate it is about; anything else as it is."""
    return subject.removeprefix("device ")


def _silences(session: Session) -> list[AlertSilence]:
    return list(session.exec(select(AlertSilence).order_by(col(AlertSilence.until))))


def _alert(row: AlertRow) -> Alert:
    return Alert(
        rule=row.rule,
        subject=row.subject,
        id=row.id,
        text=row.text,
        began=instant(row.began),
        opened=_instant(row.opened),
        told=_instant(row.told),
        quiet=_instant(row.quiet),
        ended=_instant(row.ended),
        acknowledged=row.acknowledged,
    )


def _instant(text: str | None) -> datetime | None:
    return instant(text) if text else None


def _write(session: Session, before: Mapping[Key, Alert], after: Mapping[Key, Alert]) -> None:
    """Only what changed: a storm that stands still costs nothing."""
    for rule, subject in before.keys() - after.keys():
        session.exec(delete(AlertRow).where(col(AlertRow.rule) == rule, col(AlertRow.subject) == subject))
    changed = [alert for key, alert in after.items() if before.get(key) != alert]
    upsert(session, AlertRow, [_columns(alert) for alert in changed])


def _columns(alert: Alert) -> dict[str, Any]:
    times = {name: show_instant(at) if (at := getattr(alert, name)) else None for name in _TIMES}
    return {n: getattr(alert, n) for n in ("rule", "subject", "id", "text", "acknowledged")} | times
