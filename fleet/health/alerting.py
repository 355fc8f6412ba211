"""Alerts: what opens, what is told, what is over. Pure: the same input gives the same messages with the same ids.

    step = judge(alerts, [Seen(rule, wrong={"kitchen-1": "offline for 12 min"})], silences, wait, now)
    step.alerts       # all that are kept from here on, by rule and subject
    step.messages     # what to send, each to one channel

One alert per rule and subject. It is pending until it was wrong for the rule's `hold`, then open; what opens within
`wait` is told in one message for each channel, a thousand devices too. While open it is told again every `repeat`,
unless somebody acknowledged it. When it was right for `recover` it ends, and that is told to whom its opening was told.
What nobody can say (`unknown`) changes nothing: a fleet that hears nobody tells of no recovery. An event has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from fleet.health.rules import Rule

Key = tuple[str, str]
"""Rule and subject."""
What = Literal["open", "repeat", "recovered"]
NAMED: Final = 10
"""Subjects that a message names; it counts the others."""
LONGEST: Final = 500


@dataclass(frozen=True, kw_only=True)
class Alert:
    """`began`: when it was seen to be wrong. `opened`: since when it is open; None: pending. `told`: when last.

    `quiet`: since when it is right again. `ended`: when it was over; it waits to be told. `acknowledged`: by whom.
    """

    rule: str
    subject: str
    id: str
    text: str
    began: datetime
    opened: datetime | None = None
    told: datetime | None = None
    quiet: datetime | None = None
    ended: datetime | None = None
    acknowledged: str = ""

    @property
    def key(self) -> Key:
        """Rule and subject."""
        return self.rule, self.subject

    @property
    def is_open(self) -> bool:
        """Whether it is wrong, for so long that it is told."""
        return self.opened is not None and self.ended is None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a rule found: its subjects that are wrong, in words, and those of which nobody can say. None: of any."""

    rule: Rule
    wrong: Mapping[str, str]
    unknown: frozenset[str] | None = frozenset()


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Nothing is told of a rule and a subject ("" is any) until `until`."""

    rule: str
    subject: str
    until: datetime

    def covers(self, alert: Alert, now: datetime) -> bool:
        """Whether it keeps an alert from being told."""
        return now < self.until and self.rule in ("", alert.rule) and self.subject in ("", alert.subject)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message to one channel. `count` alerts; `subjects` and `texts` are of the first `NAMED`."""

    id: str
    channel: str
    what: What
    rule: str
    kind: str
    severity: str
    at: datetime
    count: int
    subjects: tuple[str, ...]
    texts: tuple[str, ...]
    alerts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """What is kept, and what is sent."""

    alerts: Mapping[Key, Alert]
    messages: tuple[Message, ...] = ()


def judge(
    alerts: Mapping[Key, Alert], seen: Sequence[Seen], silences: Sequence[Silence], wait: timedelta, now: datetime
) -> Step:
    """Look at all rules once. An alert whose rule is not in `seen` any more is dropped without a word."""
    kept: dict[Key, Alert] = {}
    messages: list[Message] = []
    mine: dict[str, list[Alert]] = {}
    for alert in alerts.values():
        mine.setdefault(alert.rule, []).append(alert)
    for one in seen:
        looked = _look(mine.get(one.rule.name, []), one, now)
        told, sent = _tell(looked, one.rule, silences, wait, now)
        kept |= {alert.key: alert for alert in told}
        messages += sent
    return Step(kept, tuple(messages))


def _look(alerts: Iterable[Alert], seen: Seen, now: datetime) -> list[Alert]:
    """The alerts of a rule after a look at it: new ones, those that opened, those that are over."""
    there = {alert.subject: alert for alert in alerts}
    looked: list[Alert] = []
    for subject in sorted({*there, *seen.wrong}):
        alert = there.get(subject)
        if alert is not None and alert.ended is not None and subject in seen.wrong:
            # Wrong again before its end was told: the same alert goes on.
            alert = replace(alert, ended=None, quiet=None)
        found = _next(alert, subject, seen, now)
        if found is not None:
            looked.append(found)
    return looked


def _next(alert: Alert | None, subject: str, seen: Seen, now: datetime) -> Alert | None:
    rule = seen.rule
    if subject in seen.wrong:
        text = seen.wrong[subject][:LONGEST]
        alert = alert or Alert(rule=rule.name, subject=subject, id=_id(rule.name, subject, now), text=text, began=now)
        opens = alert.opened is None and now - alert.began >= timedelta(seconds=rule.hold)
        return replace(alert, text=text, quiet=None, opened=now if opens else alert.opened)
    assert alert is not None
    if seen.unknown is None or subject in seen.unknown:
        return alert
    if alert.opened is None:
        return None  # it was never open
    if alert.ended is not None:
        return alert
    quiet = alert.quiet or now
    if now - quiet < timedelta(seconds=rule.recover):
        return replace(alert, quiet=quiet)
    return replace(alert, quiet=quiet, ended=now)


def _tell(
    alerts: Sequence[Alert], rule: Rule, silences: Sequence[Silence], wait: timedelta, now: datetime
) -> tuple[list[Alert], list[Message]]:
    """What of a rule is told now: everything that is due, as soon as one of it has waited for `wait`."""
    silent = {a.key for a in alerts if any(silence.covers(a, now) for silence in silences)}
    due, kept = dict[What, list[Alert]](), list[Alert]()
    waited = False
    for alert in alerts:
        what, since = _due(alert, rule, now)
        if alert.ended is not None and (alert.told is None or rule.about.event or alert.key in silent):
            continue  # over, and nobody has to hear of it
        if what is None or since is None or alert.key in silent:
            kept.append(alert)
            continue
        due.setdefault(what, []).append(alert)
        waited = waited or now - since >= wait
    told = [alert for some in due.values() for alert in some]
    if not waited:
        return [*kept, *told], []
    messages = [_message(rule, channel, what, some, now) for what, some in due.items() for channel in rule.channels]
    return [*kept, *(replace(a, told=now) for a in told if a.ended is None)], messages


def _due(alert: Alert, rule: Rule, now: datetime) -> tuple[What | None, datetime | None]:
    """What is to be told of an alert, and since when."""
    if alert.ended is not None:
        return "recovered", alert.ended
    if alert.opened is None:
        return None, None
    if alert.told is None:
        return "open", alert.opened
    again = alert.told + timedelta(seconds=rule.repeat)
    repeats = rule.repeat > 0 and not rule.about.event and not alert.acknowledged and now >= again
    return ("repeat", again) if repeats else (None, None)


def _message(rule: Rule, channel: str, what: What, alerts: Sequence[Alert], now: datetime) -> Message:
    named = sorted(alerts, key=lambda alert: (alert.began, alert.subject))
    ids = tuple(alert.id for alert in named)
    return Message(
        id=_id("message", channel, what, *ids, now),
        channel=channel,
        what=what,
        rule=rule.name,
        kind=rule.kind,
        severity=rule.severity,
        at=now,
        count=len(named),
        subjects=tuple(alert.subject for alert in named[:NAMED]),
        texts=tuple(alert.text for alert in named[:NAMED]),
        alerts=ids[:NAMED],
    )


def _id(*parts: object) -> str:
    """The same for the same: a message that is sent again after a restart is known by it."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:20]
