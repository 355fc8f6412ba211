"""Alerts: the rules in a file, and what opens, is told and is over. Pure but for the file."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleet.errors import Malformed
from fleet.health import alerts as alerts_service
from fleet.health import rules as rules_file
from fleet.health.alerting import NAMED, Alert, Message, Seen, Silence, judge
from fleet.health.messages import document, lines, mail, signature, title
from fleet.health.rules import KINDS, Channel, Rule, Rules, read
from fleet.store.health_tables import AlertRow

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WAIT = timedelta(seconds=30)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def a_rule(**changes: Any) -> Rule:
    values: dict[str, Any] = {"name": "offline", "kind": "device-offline", "channels": ("ops",)}
    return Rule(**{**values, **changes})


class World:
    """Looks at one rule again and again, as the fleet does; every message that left is in `sent`."""

    def __init__(self, one: Rule, wait: timedelta = timedelta(0)) -> None:
        self.rule, self.wait = one, wait
        self.alerts: dict[tuple[str, str], Alert] = {}
        self.silences: list[Silence] = []
        self.sent: list[Message] = []

    def look(self, at: float, *wrong: str, unknown: frozenset[str] | None = frozenset()) -> list[tuple[str, int]]:
        seen = Seen(rule=self.rule, wrong=dict.fromkeys(wrong, "bad"), unknown=unknown)
        step = judge(self.alerts, [seen], self.silences, self.wait, after(at))
        self.alerts = dict(step.alerts)
        self.sent += step.messages
        return [(m.what, m.count) for m in step.messages]

    def acknowledge(self, subject: str) -> None:
        key = (self.rule.name, subject)
        self.alerts[key] = replace(self.alerts[key], acknowledged="alice")


def test_an_alert_opens_once_is_repeated_and_ends() -> None:
    world = World(a_rule(hold=60.0, repeat=600.0))
    assert world.look(0, "a") == []  # not wrong for long enough
    assert world.look(59, "a") == []
    assert world.look(60, "a") == [("open", 1)]
    assert world.look(600, "a") == []
    assert world.look(660, "a") == [("repeat", 1)]
    assert world.look(700) == [("recovered", 1)]
    assert world.alerts == {}
    assert world.look(710) == []


def test_what_was_wrong_too_shortly_is_never_told() -> None:
    world = World(a_rule(hold=60.0))
    assert world.look(0, "a") == []
    assert world.look(30) == []
    assert world.look(61, "a") == []  # it begins anew
    assert world.look(100) == []


def test_a_thousand_devices_are_one_message() -> None:
    world = World(a_rule(), WAIT)
    names = [f"device-{n:04d}" for n in range(1000)]
    assert world.look(0, *names[:300]) == []
    assert world.look(10, *names[:700]) == []
    assert world.look(20, *names) == []
    assert world.look(30, *names) == [("open", 1000)]
    assert world.look(40, *names) == []
    (message,) = world.sent
    assert title(message) == "offline: 1000 devices"
    assert (len(message.subjects), lines(message)[-1]) == (NAMED, "and 990 more")
    assert world.look(50) == []
    assert world.look(80) == [("recovered", 1000)]


def test_nobody_hears_of_an_end_whose_beginning_was_not_told() -> None:
    world = World(a_rule(), WAIT)
    assert world.look(0, "a") == []
    assert world.look(10) == []
    assert world.look(60) == []
    assert world.alerts == {}


def test_what_nobody_can_say_is_no_recovery() -> None:
    """Accident: the broker is down, so no device is seen to be offline any more."""
    world = World(a_rule())
    assert world.look(0, "a", "b") == [("open", 2)]
    assert world.look(10, unknown=None) == []
    assert world.look(20, unknown=frozenset({"a"})) == [("recovered", 1)]
    assert [key[1] for key in world.alerts] == ["a"]


def test_what_flaps_is_told_once() -> None:
    world = World(a_rule(recover=60.0))
    assert world.look(0, "a") == [("open", 1)]
    for at in range(10, 200, 20):
        assert world.look(at) == []
        assert world.look(at + 10, "a") == []
    assert world.look(210) == []
    assert world.look(271) == [("recovered", 1)]


def test_who_knows_of_it_is_told_its_end_only() -> None:
    world = World(a_rule(repeat=60.0))
    world.look(0, "a")
    world.acknowledge("a")
    assert world.look(600, "a") == []
    assert world.look(700) == [("recovered", 1)]


@pytest.mark.parametrize(("rule", "subject"), [("", ""), ("offline", ""), ("", "a"), ("offline", "a")])
def test_a_silence_keeps_an_alert_from_being_told_until_it_ends(rule: str, subject: str) -> None:
    world = World(a_rule())
    world.silences = [Silence(rule=rule, subject=subject, until=after(100))]
    assert world.look(0, "a") == []
    assert world.look(99, "a") == []
    assert world.look(100, "a") == [("open", 1)]


@pytest.mark.parametrize(("rule", "subject"), [("other", ""), ("", "b"), ("offline", "b")])
def test_a_silence_is_of_its_rule_and_subject_only(rule: str, subject: str) -> None:
    world = World(a_rule())
    world.silences = [Silence(rule=rule, subject=subject, until=after(100))]
    assert world.look(0, "a") == [("open", 1)]


def test_an_event_is_told_once_and_has_no_recovery() -> None:
    world = World(a_rule(kind="rollout-aborted", repeat=60.0))
    assert world.look(0, "r-1") == [("open", 1)]
    assert world.look(600, "r-1", "r-2") == [("open", 1)]
    assert world.look(4000) == []
    assert world.alerts == {}


def test_every_channel_of_a_rule_gets_the_message_under_an_id_of_its_own() -> None:
    world = World(a_rule(channels=("ops", "mail")))
    world.look(0, "a")
    assert [m.channel for m in world.sent] == ["ops", "mail"]
    assert len({m.id for m in world.sent}) == 2


def test_the_same_look_gives_the_same_ids() -> None:
    """What a fleet does again that was killed before its transaction was through."""
    first, second = World(a_rule()), World(a_rule())
    first.look(0, "a", "b")
    second.look(0, "b", "a")
    assert first.sent == second.sent


class Storms(RuleBasedStateMachine):
    """Devices break and mend, nobody knows, people acknowledge and silence, time goes by."""

    @initialize(
        hold=st.sampled_from([0.0, 60.0]), recover=st.sampled_from([0.0, 45.0]), repeat=st.sampled_from([0.0, 300.0]),
        wait=st.sampled_from([0, 30]),
    )  # fmt: skip
    def begin(self, hold: float, recover: float, repeat: float, wait: int) -> None:
        self.world = World(a_rule(hold=hold, recover=recover, repeat=repeat), timedelta(seconds=wait))
        self.now, self.wrong, self.unknown = 0.0, set[str](), set[str]()
        self.seen_wrong = set[str]()  # when it was looked at last and something was known of it
        self.told: dict[str, list[tuple[str, float]]] = {}
        self.silent = False

    def step(self, seconds: float) -> None:
        self.now += seconds
        self.seen_wrong = (self.seen_wrong & self.unknown) | (self.wrong - self.unknown)
        before = dict(self.world.alerts)
        count = len(self.world.sent)
        self.world.look(self.now, *(self.wrong - self.unknown), unknown=frozenset(self.unknown))
        for message in self.world.sent[count:]:
            assert not self.silent, "told although it is silenced"
            assert message.count == len(message.subjects)
            for subject in message.subjects:
                self.told.setdefault(subject, []).append((message.what, self.now))
                if message.what == "recovered":
                    assert subject not in self.seen_wrong
                    assert before["offline", subject].told is not None
                if message.what == "repeat":
                    assert not before["offline", subject].acknowledged

    @rule(subject=st.sampled_from("abc"))
    def breaks(self, subject: str) -> None:
        self.wrong.add(subject)

    @rule(subject=st.sampled_from("abc"))
    def mends(self, subject: str) -> None:
        self.wrong.discard(subject)

    @rule(subjects=st.sets(st.sampled_from("abc")))
    def nobody_knows(self, subjects: set[str]) -> None:
        self.unknown = subjects

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.0, 31.0, 61.0, 400.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.step(seconds)

    @precondition(lambda self: any(a.is_open for a in self.world.alerts.values()))
    @rule(data=st.data())
    def somebody_acknowledges(self, data: st.DataObject) -> None:
        self.world.acknowledge(
            data.draw(st.sampled_from(sorted(a.subject for a in self.world.alerts.values() if a.is_open)))
        )

    @rule(on=st.booleans())
    def somebody_silences(self, on: bool) -> None:
        self.silent = on
        self.world.silences = [Silence(rule="", subject="", until=after(1e9))] if on else []

    @invariant()
    def openings_and_recoveries_take_turns(self) -> None:
        for told in getattr(self, "told", {}).values():
            words = [what for what, _ in told if what != "repeat"]
            # An end that was silenced is not told: then an opening follows an opening.
            for earlier, later in pairwise(words):
                assert (earlier, later) != ("recovered", "recovered")
            assert words[:1] in ([], ["open"])

    @invariant()
    def one_alert_for_each_subject(self) -> None:
        world = getattr(self, "world", None)
        if world is not None:
            assert all(key == alert.key for key, alert in world.alerts.items())
            assert len({a.id for a in world.alerts.values()}) == len(world.alerts)


TestStorms = Storms.TestCase


@given(st.lists(st.tuples(st.integers(0, 5_000_000), st.sets(st.sampled_from("ab"))), max_size=12))
def test_a_restart_at_every_look_tells_the_same(looks: list[tuple[int, set[str]]]) -> None:
    """What stands in the table is all that is known of an alert."""
    straight, restarted = (World(a_rule(hold=30.0, recover=20.0, repeat=100.0), WAIT) for _ in range(2))
    for ms, wrong in sorted(looks, key=lambda look: look[0]):
        straight.look(ms / 1000, *wrong)
        rows = [AlertRow(**alerts_service._columns(alert)) for alert in restarted.alerts.values()]
        restarted.alerts = {alert.key: alert for alert in map(alerts_service._alert, rows)}
        restarted.look(ms / 1000, *wrong)
    assert restarted.sent == straight.sent


# --- words ------------------------------------------------------------------------------------------------------------


def a_message(**changes: Any) -> Message:
    values: dict[str, Any] = {
        "id": "m-1", "channel": "ops", "what": "open", "rule": "offline", "kind": "device-offline",
        "severity": "page", "at": NOW, "count": 1, "subjects": ("a",), "texts": ("offline for 3 min",),
    }  # fmt: skip
    return Message(**{**values, **changes})


def test_a_message_says_what_is_wrong() -> None:
    value = document(a_message(), "https://fleet:8443")
    assert (value["title"], value["text"]) == ("offline: a", "offline: a\na: offline for 3 min")
    assert document(a_message(what="recovered"), "f")["title"] == "over: offline: a"


def test_what_a_device_wrote_adds_no_header_to_a_mail() -> None:
    """Attack: a subject with a line break in it."""
    channel = Channel(name="m", kind="mail", host="h", sender="shoal@example.org", to=("a@example.org",))
    value = document(a_message(subjects=("a\r\nBcc: thief@example.org",), texts=("x\n.\nRCPT",)), "f")
    made = mail(channel, value)
    assert made["Bcc"] is None
    assert "\n" not in made["Subject"]
    assert made["To"] == "a@example.org"


def test_a_signature_is_of_body_and_time() -> None:
    """The vector was made with `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key`."""
    assert signature(b"key", 1_700_000_000, b'{"a":1}') == (
        "t=1700000000,v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
    )
    assert signature(b"key", 1, b"x") != signature(b"key", 2, b"x") != signature(b"other", 2, b"x")


# --- the file ---------------------------------------------------------------------------------------------------------

CHANNELS: dict[str, Any] = {"ops": {"kind": "webhook", "url": "https://hooks.example.org/x"}}


def test_a_rule_is_read_with_its_units_and_goes_to_every_channel() -> None:
    found = read({"channels": CHANNELS, "rules": {"late": {"kind": "device-late", "for": "10 min"}}}, "alerts.toml")
    assert (found.rules["late"].hold, found.rules["late"].channels) == (600.0, ("ops",))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rules": {"a": {"kind": "device-gone"}}}, "rules.a: kind: expected one of device-offline"),
        ({"rules": {"a": {}}}, "rules.a: kind"),
        ({"rules": {"a": {"kind": "errors", "abvoe": 1}}}, "rules.a: abvoe: there is no such setting"),
        ({"rules": {"a": {"kind": "errors", "above": 5}}}, "rules.a: above: expected a number from 0 to 1"),
        ({"rules": {"a": {"kind": "errors", "below": 0.5}}}, "rules.a: below: this kind has above"),
        ({"rules": {"a": {"kind": "accuracy", "above": 0.5}}}, "rules.a: above: this kind has below"),
        ({"rules": {"a": {"kind": "device-late", "above": 1}}}, "this kind has no threshold"),
        ({"rules": {"a": {"kind": "device-late", "over": "1 h"}}}, "looks at now"),
        ({"rules": {"a": {"kind": "device-late", "for": 10}}}, "rules.a: hold"),
        ({"rules": {"a": {"kind": "device-late", "where": "tag"}}}, "rules.a: where: query"),
        ({"rules": {"a": {"kind": "certificate", "group": "x"}}}, "looks at no devices"),
        ({"rules": {"a": {"kind": "device-late", "channels": ["x"]}}}, r"there is no \[channels.x\]"),
        ({"channels": {"m": {"kind": "mail", "host": "h"}}}, "channels.m: from, to: has to be set"),
        ({"channels": {"w": {"kind": "webhook"}}}, "channels.w: url: has to be set"),
        ({"channels": {"w": {"url": "https://x", "secret_file": "/nowhere"}}}, "expected the path of a file"),
        ({"channels": {"m": {"kind": "mail", "host": "h", "from": "a", "to": ["b"], "user": "u"}}}, "set both"),
        ({"every": "10"}, "every"),
        ({"evry": "10 s"}, "evry: there is no such setting"),
        ({"rules": []}, "rules: expected tables"),
    ],
)
def test_a_fault_in_the_file_names_its_place(table: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read(table, "alerts.toml")


SECRET = "hooks.example/T/SECRET"


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"url": SECRET}, "url"),
        ({"url": [f"https://{SECRET}"]}, "url"),
        ({"url": "https://x", "secret_file": SECRET}, "secret_file"),
        ({"url": "https://x", "password_file": [SECRET]}, "password_file"),
        (f"https://{SECRET}", "channels.w"),
    ],
)
def test_a_fault_in_a_channel_names_the_key_and_never_shows_what_may_be_a_secret(table: Any, key: str) -> None:
    """Whoever may read the status sees the fault."""
    with pytest.raises(Malformed, match=key) as told:
        read({"channels": {"w": table}}, "alerts.toml")
    assert "SECRET" not in str(told.value)


def test_a_password_is_never_sent_in_the_clear(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x")
    channel = {"kind": "mail", "host": "h", "from": "a", "to": ["b"], "user": "u"}
    more = {"password_file": str(tmp_path / "password"), "security": "none"}
    with pytest.raises(Malformed, match="not sent in the clear"):
        read({"channels": {"m": {**channel, **more}}}, "alerts.toml")


def test_a_folder_without_the_file_has_no_rules_and_one_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    assert rules_file.load(tmp_path) == Rules()
    (tmp_path / rules_file.FILE).write_text("rules = [")
    with pytest.raises(Malformed, match=r"alerts.toml: not valid TOML"):
        rules_file.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_for(kind: str) -> None:
    assert read({"rules": {"a": {"kind": kind}}}, "x").rules["a"].about is KINDS[kind]
