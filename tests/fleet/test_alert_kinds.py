"""What each kind of rule finds: one case that is wrong, one that is right, and one of which nobody can say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session

from fleet.evidence.packing import pack
from fleet.health.alerting import Seen
from fleet.health.observing import Looking, observe
from fleet.health.rules import KINDS, read
from fleet.health.status import Hearing
from fleet.store.database import Database
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow, HealthWindow
from fleet.store.gateway_tables import GatewayRequest
from fleet.store.rollout_tables import RolloutEvent
from fleet.store.shadow_table import DeviceShadow
from fleet.store.tables import CertificateRow, Device, DeviceStats, RolloutRow, SecurityRow
from fleet.tags import set_tags
from wire.sketch import Sketch
from wire.units import show_instant

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DIGEST = f"sha256:{'a' * 64}"
MODEL = f"intents/kitchen {DIGEST[:19]}"


def ago(**span: float) -> str:
    return show_instant(NOW - timedelta(**span))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database.in_folder(tmp_path_factory.mktemp("kinds"))
    yield made
    made.close()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """Everything that a test writes is undone."""
    with database.transaction() as made:
        tried = made.begin_nested()
        yield made
        tried.rollback()


def hearing(up_for: float | None = 3600) -> Hearing:
    since = None if up_for is None else NOW - timedelta(seconds=up_for)
    return Hearing(NOW, since, timedelta(seconds=90), timedelta(seconds=30))


def look(
    session: Session, kind: str, *, up_for: float | None = 3600, own: Any = None, there: str = "", **changes: Any
) -> Seen:
    """`there`: a subject that has an alert already."""
    session.flush()
    rule = read({"rules": {"r": {"kind": kind, **changes}}}, "alerts.toml").rules["r"]
    alerts = {"r": frozenset({there})} if there else {}
    return observe(rule, Looking(session, hearing(up_for), own or {}, lambda _: {"model x": "PSI 0.4"}, alerts))


def device(
    session: Session, id_: str, *, online: bool = True, seen: float = 5, group: str = "default", **health: Any
) -> None:
    gone = None if online else ago(seconds=seen)
    session.add(
        Device(
            id=id_, profile="x86-64", group=group, created="", token_hash="", token_expires="", state="enrolled",
            online=online, gone=gone, last_seen=ago(seconds=seen),
        )
    )  # fmt: skip
    session.flush()
    session.add(DeviceStats(device=id_, health=json.dumps(health) if health else "", health_at=ago(seconds=seen)))


def test_devices_that_are_offline_or_late_by_query(session: Session) -> None:
    device(session, "on")
    device(session, "off", online=False, seen=600)
    device(session, "late", seen=600)
    device(session, "off-lab", online=False, group="lab")
    set_tags(session, "off", {"kitchen"})
    offline = look(session, "device-offline")
    assert dict(offline.wrong) == {"off": "offline for 10 min", "off-lab": "offline for 5.0 s"}
    assert offline.unknown == {"late"}
    assert set(look(session, "device-late").wrong) == {"late"}
    assert set(look(session, "device-offline", group="lab").wrong) == {"off-lab"}
    assert set(look(session, "device-offline", where="tag:kitchen").wrong) == {"off"}
    deaf = look(session, "device-offline", up_for=None)
    assert (dict(deaf.wrong), deaf.unknown) == ({}, {"on", "off", "late", "off-lab"})


def test_a_share_of_the_fleet_is_offline(session: Session) -> None:
    for n in range(8):
        device(session, f"d-{n}", online=n > 1)
    seen = look(session, "offline-share", above=0.2)
    assert dict(seen.wrong) == {"fleet": "2 of 8 devices are offline (25%, over 20%)"}
    assert look(session, "offline-share", above=0.25).wrong == {}
    assert look(session, "offline-share", above=0.2, up_for=None).unknown is None


@pytest.mark.parametrize(
    ("kind", "bad", "good", "words"),
    [
        ("temperature", {"temperature_c": 85.5}, {"temperature_c": 80.0}, "85.5 degrees"),
        (
            "memory",
            {"memory_used": 98, "memory_total": 100},
            {"memory_used": 1, "memory_total": 100},
            "98% of its memory",
        ),
        ("disk", {"disk_free": 1, "disk_total": 100}, {"disk_free": 50, "disk_total": 100}, "99% of its disk"),
    ],
)
def test_a_machine_is_judged_while_it_is_heard(session: Session, kind: str, bad: Any, good: Any, words: str) -> None:
    device(session, "bad", **bad)
    device(session, "good", **good)
    device(session, "no-sensor", cpu_percent=1)
    device(session, "bad-but-gone", online=False, **bad)
    seen = look(session, kind)
    assert set(seen.wrong) == {"bad"}
    assert words in seen.wrong["bad"]
    assert seen.unknown == {"bad-but-gone", "no-sensor"}


def subject(session: Session, id_: int, device: str = "", *, shadow: bool = False) -> None:
    model, digest, profile = ("intents/kitchen", DIGEST, "" if device else "x86-64")
    session.add(
        EvidenceSubject(id=id_, device=device, model=model, digest=digest, profile=profile, shadow=shadow, newest=0)
    )


def window(session: Session, of: int, minutes: float = 20, latency: float = 10.0, **numbers: int) -> None:
    begins = int(NOW.timestamp() - minutes * 60) // 600 * 600
    requests = numbers.get("requests", 0)
    packed = pack({int(k): n for k, n in Sketch.of([latency] * requests).buckets.items()})
    session.add(EvidenceWindow(subject=of, span=600, begins=begins, ends=begins + 600, latency=packed, **numbers))


@pytest.mark.parametrize(
    ("kind", "bound", "bad", "good"),
    [
        ("errors", {"above": 0.05}, {"requests": 100, "errors": 6}, {"requests": 100, "errors": 5}),
        ("latency-p99", {"above": 50}, {"requests": 100, "latency": 60.0}, {"requests": 100, "latency": 45.0}),
        (
            "accuracy",
            {"below": 0.9},
            {"feedback_total": 100, "feedback_correct": 89},
            {"feedback_total": 100, "feedback_correct": 90},
        ),
    ],
)
def test_a_model_is_judged_by_its_windows(session: Session, kind: str, bound: Any, bad: Any, good: Any) -> None:
    subject(session, 1)
    window(session, 1, **good)
    assert look(session, kind, **bound).wrong == {}
    window(session, 1, minutes=120, **bad)
    assert look(session, kind, **bound).wrong == {}, "older than an hour"
    window(session, 1, minutes=40, **bad)
    window(session, 1, minutes=50, **bad)
    assert set(look(session, kind, over="3 h", **bound).wrong) == {MODEL}
    few = look(session, kind, samples=1000, **bound)
    assert (few.wrong, few.unknown) == ({}, {MODEL})


def test_a_model_is_judged_on_the_devices_of_a_group(session: Session) -> None:
    device(session, "lab-1", group="lab")
    device(session, "kitchen-1")
    subject(session, 1, "lab-1")
    subject(session, 2, "kitchen-1")
    window(session, 1, requests=100, errors=50)
    window(session, 2, requests=100, errors=0)
    assert set(look(session, "errors", group="lab").wrong) == {MODEL}
    assert look(session, "errors", where="not group:lab").wrong == {}


def test_a_model_that_nobody_asks_any_more_is_not_right_again_until_no_device_is_told_to_run_it(
    session: Session,
) -> None:
    device(session, "lab-1", group="lab")
    subject(session, 1)
    window(session, 1, minutes=600, requests=100, errors=100)
    told = session.get_one(Device, "lab-1")
    told.desired_models = json.dumps([{"model": "intents/kitchen", "digest": DIGEST}])
    assert look(session, "errors", there=MODEL).unknown == {MODEL}
    assert look(session, "errors", there=MODEL, group="lab").unknown == {MODEL}
    assert look(session, "errors", there=MODEL, group="other").unknown == frozenset()
    told.desired_models = "[]"
    assert look(session, "errors", there=MODEL).unknown == frozenset()
    session.add(DeviceShadow(device="lab-1", model="intents/kitchen", document=json.dumps({"digest": DIGEST})))
    assert look(session, "agreement", there=MODEL, below=0.9).unknown == {MODEL}
    assert look(session, "errors", there=MODEL).unknown == frozenset()


def test_agreement_is_that_of_shadow(session: Session) -> None:
    subject(session, 1, shadow=True)
    window(session, 1, compared=100, agreed=80)
    subject(session, 2)
    window(session, 2, requests=1)
    assert set(look(session, "agreement", below=0.9).wrong) == {MODEL}
    assert look(session, "agreement", below=0.8).wrong == {}


def test_restarts_that_nobody_asked_for(session: Session) -> None:
    device(session, "crashes")
    session.add(EvidenceSubject(id=1, device="crashes", model="", digest="", profile="", shadow=False, newest=0))
    for minutes, n in ((10, 2), (30, 2), (300, 50)):
        begins = int(NOW.timestamp() - minutes * 60) // 600 * 600
        session.add(HealthWindow(subject=1, span=600, begins=begins, ends=begins, restarts=n))
    assert look(session, "restarts").wrong == {"crashes": "4 restarts that nobody asked for in 1 h"}
    assert look(session, "restarts", above=4).wrong == {}


def rollout(session: Session, id_: str, **values: str) -> None:
    given = {"state": "running", "verdict": "HOLD", "reasons": '["no evidence yet"]'}
    session.add(
        RolloutRow(
            id=id_, family="intents", name="kitchen", version="2.0.0", waves="[]", wave=0, started="", wave_started="",
            **{**given, **values},
        )
    )  # fmt: skip


def test_rollouts_that_hold_or_were_aborted(session: Session) -> None:
    rollout(session, "r-held")
    rollout(session, "r-goes", verdict="PROCEED")
    rollout(session, "r-waits", state="awaiting")
    rollout(session, "r-gone", state="aborted", verdict="ABORT")
    session.flush()
    for at, who, profile in ((5, "r-gone", None), (5, "r-goes", "x86-64"), (500, "r-held", None)):
        event = RolloutEvent(
            rollout=who, at=ago(minutes=at), who="fleet", profile=profile, what="aborted", reason="slow"
        )
        session.add(event)
    assert look(session, "rollout-hold").wrong == {"r-held": "kitchen 2.0.0 is held: no evidence yet"}
    assert look(session, "rollout-aborted").wrong == {"r-gone": "aborted: slow", "r-goes x86-64": "aborted: slow"}


def test_certificates_that_run_out(session: Session) -> None:
    for id_, days in (("soon", 3), ("later", 300)):
        device(session, id_)
        row = CertificateRow(serial=id_, device=id_, pem="", issued="", expires=ago(days=-days), state="current")
        session.add(row)
    own = {
        "authority": NOW + timedelta(days=5),
        "server": NOW + timedelta(days=50),
        "metadata root": NOW - timedelta(1),
    }
    assert look(session, "certificate", own=own).wrong == {
        "device soon": "expires in 3 d",
        "authority": "expires in 5 d",
        "metadata root": "expired 1 d ago",
    }


def test_security_events_of_the_last_hour(session: Session) -> None:
    device(session, "a")
    session.add(SecurityRow(device="a", at=ago(minutes=5), subject="telemetry", reason="forged"))
    session.add(SecurityRow(device="b", at=ago(hours=5), subject="telemetry", reason="forged"))
    assert look(session, "security").wrong == {"a": "telemetry: forged"}


def requests(session: Session, n: int, outcome: str, status: int, minutes: float = 5) -> None:
    for _ in range(n):
        session.add(
            GatewayRequest(
                at=ago(minutes=minutes), who="", tenant="", groups="", path="", stream=False, route="", upstream="",
                model="", outcome=outcome, status=status, attempts=1, fallback=False, prompt_tokens=0,
                completion_tokens=0, estimated=False, nanos=0, verdicts="", sent=0, total_ms=1, detail="",
            )
        )  # fmt: skip


def test_the_gateway(session: Session) -> None:
    requests(session, 90, "answered", 200)
    requests(session, 10, "failed", 502)
    requests(session, 50, "failed", 502, minutes=90)
    requests(session, 2, "blocked", 400)
    requests(session, 3, "refused", 429)
    assert look(session, "gateway-errors").wrong == {}
    requests(session, 1, "failed", 502)
    assert "10.9% of 101 requests failed" in look(session, "gateway-errors").wrong["gateway"]
    assert "2 of 106 requests were blocked" in look(session, "gateway-blocked").wrong["gateway"]
    assert "3 of 106 requests were over a budget" in look(session, "gateway-budget").wrong["gateway"]
    assert look(session, "gateway-budget", above=3).wrong == {}
    assert look(session, "gateway-errors", samples=1000).unknown is None


def test_drift_is_what_the_room_of_drift_says(session: Session) -> None:
    assert look(session, "drift").wrong == {"model x": "PSI 0.4"}


def test_every_kind_is_looked_at_in_an_empty_fleet(session: Session) -> None:
    for kind in KINDS.keys() - {"drift"}:
        assert look(session, kind).wrong == {}
