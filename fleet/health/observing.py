"""What rules look at: devices, models, rollouts, certificates and the gateway, read once for all rules of a look.

    looking = Looking(session, hearing, trusted, drifting)
    seen = [observe(rule, looking) for rule in rules]

A rule that cannot be judged because nothing was heard says so (`unknown`): silence is never taken for recovery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

import orjson
import sqlalchemy
from sqlmodel import Session, col, func, select

from fleet import devices, inventory
from fleet.evidence.packing import Total, sketch_of
from fleet.evidence.windows import SPANS
from fleet.gateway.records import ANSWERED, BLOCKED, CACHED, FAILED, REFUSED
from fleet.health.alerting import Seen
from fleet.health.rules import Rule
from fleet.health.status import Hearing, Word
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow, HealthWindow
from fleet.store.gateway_tables import GatewayRequest
from fleet.store.rollout_tables import RolloutEvent
from fleet.store.shadow_table import DeviceShadow
from fleet.store.tables import CertificateRow, Device, DeviceStats, RolloutRow, SecurityRow
from wire.units import instant, show_instant, show_seconds

FLEET: Final = "fleet"
_DAY: Final = 86_400.0
_MOVING: Final = ("running", "overdue")
"""States of a rollout that is not meant to stand still."""
Drifting = Callable[[Session], Mapping[str, str]]
"""Open alarms of drift: what drifts, and in words how."""


@dataclass
class Behaviour:
    """What one model did in a stretch of time, on all devices of a scope."""

    requests: int = 0
    errors: int = 0
    feedback: int = 0
    right: int = 0
    compared: int = 0
    agreed: int = 0
    latency: Total = field(default_factory=Total)


@dataclass
class Looking:
    """One look at the fleet. What several rules need is read once. `own`: until when what is not a device's is good.

    `open`: the subjects that have an alert already, by the name of their rule.
    """

    session: Session
    hearing: Hearing
    own: Mapping[str, datetime] = field(default_factory=dict)
    drifting: Drifting = lambda _session: {}
    open: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _scopes: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        """The moment of the look."""
        return self.hearing.now

    @cached_property
    def words(self) -> Mapping[str, Word]:
        """The status of every enrolled device."""
        return devices.statuses(self.session, self.hearing)

    @cached_property
    def lines(self) -> Mapping[str, tuple[str | None, str | None]]:
        """When each device was said to be away, and when it spoke last."""
        columns = sqlalchemy.select(col(Device.id), col(Device.gone), col(Device.last_seen))
        query = columns.where(col(Device.state) == "enrolled")
        return {id_: (gone, last) for id_, gone, last in self.session.connection().execute(query)}

    @cached_property
    def health(self) -> Mapping[str, tuple[str, dict[str, Any]]]:
        """What enrolled devices said last of their machines, and when."""
        query = select(DeviceStats.device, DeviceStats.health_at, DeviceStats.health).where(DeviceStats.health != "")
        found = self.session.exec(query).all()
        return {device: (at, orjson.loads(text)) for device, at, text in found if device in self.words}

    def scope(self, rule: Rule) -> frozenset[str]:
        """The enrolled devices that a rule is about."""
        key = rule.where, rule.group
        if key == ("", ""):
            return frozenset(self.words)
        if key not in self._scopes:
            found = inventory.meant(self.session, rule.where or None, rule.group or None, self.words)
            self._scopes[key] = frozenset(one.device for one in found) & self.words.keys()
        return self._scopes[key]

    def unheard(self, among: Iterable[str]) -> frozenset[str]:
        """Devices of which nobody can say how they are."""
        return frozenset(device for device in among if self.words.get(device) != "online")


def observe(rule: Rule, looking: Looking) -> Seen:
    """What a rule finds."""
    return _KINDS[rule.kind](rule, looking)


# --- lines of devices -------------------------------------------------------------------------------------------------


def _word(rule: Rule, looking: Looking) -> Seen:
    """`device-offline` and `device-late`. A device that is late while it is looked for offline is not back yet."""
    wanted = rule.kind.removeprefix("device-")
    scope = looking.scope(rule)
    wrong = {d: _since(d, wanted, looking) for d in scope if looking.words[d] == wanted}
    others = {"unknown"} | ({"late"} if wanted == "offline" else {"offline"})
    return Seen(rule=rule, wrong=wrong, unknown=frozenset(d for d in scope if looking.words[d] in others))


def _since(device: str, word: str, looking: Looking) -> str:
    gone, last = looking.lines[device]
    at = (gone if word == "offline" else None) or last
    return f"{word} for {show_seconds((looking.now - instant(at)).total_seconds())}" if at else word


def _offline_share(rule: Rule, looking: Looking) -> Seen:
    scope = looking.scope(rule)
    known = [looking.words[d] for d in scope if looking.words[d] != "unknown"]
    if not known:
        return Seen(rule=rule, wrong={}, unknown=None)
    offline = known.count("offline")
    share = offline / len(scope)
    words = f"{offline} of {len(scope)} devices are offline ({share:.0%}, over {rule.threshold:.0%})"
    return Seen(rule=rule, wrong={rule.group or FLEET: words} if share > rule.threshold else {})


# --- machines of devices ----------------------------------------------------------------------------------------------

_FIGURES: Final[Mapping[str, tuple[Callable[[Mapping[str, Any]], float | None], str]]] = {
    "temperature": (lambda h: h.get("temperature_c"), "{:.1f} degrees Celsius"),
    "memory": (lambda h: _share(h.get("memory_used"), h.get("memory_total")), "{:.0%} of its memory in use"),
    "disk": (lambda h: _used(h.get("disk_free"), h.get("disk_total")), "{:.0%} of its disk in use"),
}


def _machine(rule: Rule, looking: Looking) -> Seen:
    """A figure of a device that is not heard is old: it opens nothing, and is no recovery. None is none either."""
    figure, words = _FIGURES[rule.kind]
    scope = looking.scope(rule)
    unheard, wrong = set(looking.unheard(scope)), dict[str, str]()
    for device in sorted(scope - unheard):
        _, health = looking.health.get(device, ("", {}))
        value = figure(health)
        if value is None:
            unheard.add(device)
        elif value > rule.threshold:
            wrong[device] = words.format(value)
    return Seen(rule=rule, wrong=wrong, unknown=frozenset(unheard))


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _used(free: float | None, whole: float | None) -> float | None:
    return 1 - free / whole if free is not None and whole else None


def _restarts(rule: Rule, looking: Looking) -> Seen:
    scope = looking.scope(rule)
    s, h = EvidenceSubject, HealthWindow
    query = (
        sqlalchemy.select(col(s.device), func.sum(h.restarts))
        .join(s, col(s.id) == col(h.subject))
        .where(_lately(h, rule, looking))
        .group_by(col(s.device))
    )
    counts = {device: int(n) for device, n in looking.session.connection().execute(query) if device in scope}
    words = f"restarts that nobody asked for in {show_seconds(rule.over)}"
    wrong = {device: f"{n} {words}" for device, n in counts.items() if n > rule.threshold}
    return Seen(rule=rule, wrong=wrong, unknown=looking.unheard(scope))


# --- models -----------------------------------------------------------------------------------------------------------


def _model(rule: Rule, looking: Looking) -> Seen:
    """Too few samples say nothing: neither that it is wrong nor that it is right again.

    Nor does none at all: nobody may ask any more because it is so bad. Only where no device is told to have a model
    any more there is nothing left to be wrong.
    """
    behaviours = _behaviours(rule, looking)
    unheard = looking.open.get(rule.name, frozenset()) - behaviours.keys()
    wrong, unknown = dict[str, str](), {model for model in unheard if _wanted(model, rule, looking)}
    for model, one in behaviours.items():
        value, n = _VALUES[rule.kind](one)
        if value is None or n < rule.samples:
            unknown.add(model)
        elif value < rule.threshold if rule.about.below else value > rule.threshold:
            bound = f"{'under' if rule.about.below else 'over'} {_figure(rule, rule.threshold)}"
            wrong[model] = f"{rule.kind} {_figure(rule, value)}, {bound}, of {n} in {show_seconds(rule.over)}"
    return Seen(rule=rule, wrong=wrong, unknown=frozenset(unknown) if looking.hearing.since else None)


def _wanted(model: str, rule: Rule, looking: Looking) -> bool:
    """Whether a device of the rule is told to run a model; for agreement, in shadow."""
    digest, s = model.rpartition(" ")[2], DeviceShadow
    answering = select(Device.id).where(col(Device.desired_models).contains(digest, autoescape=True))
    beside = select(s.device).where(col(s.document).contains(digest, autoescape=True))
    told: list[str] = list(looking.session.exec(beside if rule.kind == "agreement" else answering))
    return not looking.scope(rule).isdisjoint(told)


def _figure(rule: Rule, value: float) -> str:
    return f"{value:.1f} ms" if rule.kind == "latency-p99" else f"{value:.1%}"


_VALUES: Final[Mapping[str, Callable[[Behaviour], tuple[float | None, int]]]] = {
    "errors": lambda b: (_share(b.errors, b.requests), b.requests),
    "latency-p99": lambda b: (sketch_of(b.latency.buckets()).quantile(0.99), b.requests),
    "accuracy": lambda b: (_share(b.right, b.feedback), b.feedback),
    "agreement": lambda b: (_share(b.agreed, b.compared), b.compared),
}


def _behaviours(rule: Rule, looking: Looking) -> Mapping[str, Behaviour]:
    """By model and digest. Of all devices the sums by profile are read, of some the windows of each."""
    s, w = EvidenceSubject, EvidenceWindow
    numbers = (w.requests, w.errors, w.feedback_total, w.feedback_correct, w.compared, w.agreed, w.latency)
    query = (
        sqlalchemy.select(col(s.model), col(s.digest), col(s.device), *(col(n) for n in numbers))
        .join(s, col(s.id) == col(w.subject))
        .where(_lately(w, rule, looking))
    )
    scope = looking.scope(rule) if rule.where or rule.group else None
    query = query.where(col(s.device) == "") if scope is None else query.where(col(s.device) != "")
    # In shadow a model answers nobody: only how often it agrees counts.
    query = query.where(col(s.shadow).is_(rule.kind == "agreement"))
    found: dict[str, Behaviour] = {}
    for model, digest, device, *values, latency in looking.session.connection().execute(query):
        if scope is not None and device not in scope:
            continue
        one = found.setdefault(f"{model} {digest[:19]}", Behaviour())
        for name, n in zip(_NUMBERS, values, strict=True):
            setattr(one, name, getattr(one, name) + n)
        one.latency.add(latency)
    return found


_NUMBERS: Final = ("requests", "errors", "feedback", "right", "compared", "agreed")


def _drift(rule: Rule, looking: Looking) -> Seen:
    return Seen(rule=rule, wrong=looking.drifting(looking.session))


# --- rollouts, trust, the gateway -------------------------------------------------------------------------------------


def _rollout_hold(rule: Rule, looking: Looking) -> Seen:
    r = RolloutRow
    rows = looking.session.exec(select(r).where(col(r.verdict) == "HOLD", col(r.state).in_(_MOVING))).all()
    return Seen(rule=rule, wrong={row.id: f"{row.name} {row.version} is held: {_reasons(row)}" for row in rows})


def _rollout_aborted(rule: Rule, looking: Looking) -> Seen:
    """Of a profile too: the others may go on."""
    e = RolloutEvent
    since = show_instant(looking.now - timedelta(seconds=rule.over))
    query = select(e).where(col(e.what) == "aborted", col(e.device).is_(None), col(e.at) >= since)
    rows = looking.session.exec(query.order_by(col(e.id))).all()
    subjects = {f"{row.rollout} {row.profile}" if row.profile else row.rollout: row.reason for row in rows}
    return Seen(rule=rule, wrong={subject: f"aborted: {reason}" for subject, reason in subjects.items()})


def _reasons(row: RolloutRow) -> str:
    return "; ".join(map(str, orjson.loads(row.reasons))) or "no reason yet"


def _security(rule: Rule, looking: Looking) -> Seen:
    since = show_instant(looking.now - timedelta(seconds=rule.over))
    rows = looking.session.exec(select(SecurityRow).where(col(SecurityRow.at) >= since).order_by(col(SecurityRow.id)))
    scope = looking.scope(rule) if rule.where or rule.group else None
    wrong = {row.device: f"{row.subject}: {row.reason}" for row in rows if scope is None or row.device in scope}
    return Seen(rule=rule, wrong=wrong)


def _certificate(rule: Rule, looking: Looking) -> Seen:
    """Devices renew from half of a certificate's life on: one that runs out soon cannot, or was away for long."""
    until = looking.now + timedelta(days=rule.threshold)
    c = CertificateRow
    query = select(c.device, c.expires).where(c.state == "current", col(c.expires) < show_instant(until))
    soon = {f"device {device}": instant(expires) for device, expires in looking.session.exec(query)}
    soon |= {name: when for name, when in looking.own.items() if when < until}
    return Seen(rule=rule, wrong={name: _left(when, looking.now) for name, when in soon.items()})


def _left(when: datetime, now: datetime) -> str:
    left = (when - now).total_seconds()
    return f"expires in {show_seconds(left)}" if left > 0 else f"expired {show_seconds(-left)} ago"


def _gateway(rule: Rule, looking: Looking) -> Seen:
    g = GatewayRequest
    since = show_instant(looking.now - timedelta(seconds=rule.over))
    query = select(g.outcome, g.status, func.count()).where(col(g.at) >= since).group_by(col(g.outcome), col(g.status))
    counts = [(outcome, status, n) for outcome, status, n in looking.session.exec(query)]
    total = sum(n for *_, n in counts)
    if rule.kind == "gateway-errors":
        tried = sum(n for outcome, _, n in counts if outcome in (ANSWERED, CACHED, FAILED))
        share = sum(n for outcome, _, n in counts if outcome == FAILED) / max(1, tried)
        words = f"{share:.1%} of {tried} requests failed in {show_seconds(rule.over)}"
        if tried < rule.samples:
            return Seen(rule=rule, wrong={}, unknown=None)
        return Seen(rule=rule, wrong={"gateway": words} if share > rule.threshold else {})
    if rule.kind == "gateway-blocked":
        n, words = sum(n for outcome, _, n in counts if outcome == BLOCKED), "were blocked by a filter"
    else:
        n, words = (
            sum(n for outcome, status, n in counts if outcome == REFUSED and status == 429),
            "were over a budget or a rate",
        )
    text = f"{n} of {total} requests {words} in {show_seconds(rule.over)}"
    return Seen(rule=rule, wrong={"gateway": text} if n > rule.threshold else {})


def _lately(table: Any, rule: Rule, looking: Looking) -> Any:
    """Windows that reach into the time of a rule: in words that an index serves, as there may be millions."""
    since = looking.now.timestamp() - rule.over
    return sqlalchemy.or_(*(sqlalchemy.and_(table.span == span, table.begins > since - span) for span in SPANS))


_KINDS: Final[Mapping[str, Callable[[Rule, Looking], Seen]]] = {
    "device-offline": _word,
    "device-late": _word,
    "offline-share": _offline_share,
    **dict.fromkeys(_VALUES, _model),
    **dict.fromkeys(_FIGURES, _machine),
    "restarts": _restarts,
    "rollout-hold": _rollout_hold,
    "rollout-aborted": _rollout_aborted,
    "drift": _drift,
    "security": _security,
    "certificate": _certificate,
    **dict.fromkeys(("gateway-budget", "gateway-blocked", "gateway-errors"), _gateway),
}
