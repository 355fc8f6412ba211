"""Alerts on their way: a real web server and a real mail server that fail and come back, and a fleet that is killed."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alert_receivers import Hook, hook, mailbox
from fleet_process import ApiError, FleetProcess, initialise_trust, until

from fleet.assembly import opened
from fleet.errors import Malformed, Unavailable
from fleet.health.alerting import Message
from fleet.health.channels import send
from fleet.health.courier import LONGEST_WAIT, backoff
from fleet.health.messages import document, signature
from fleet.health.rules import Channel
from fleet.settings import load
from fleet.trust.ca import Authority

MESSAGE = Message(
    id="m-1", channel="ops", what="open", rule="offline", kind="device-offline", severity="page",
    at=datetime(2026, 11, 23, tzinfo=UTC), count=1, subjects=("a",), texts=("offline",),
)  # fmt: skip
VALUE = document(MESSAGE, "https://fleet:8443")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("authority"), datetime.now(UTC), timedelta(days=1))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    """A server's context for 127.0.0.1, of an authority that nobody else knows."""
    pair = authority.server(["127.0.0.1"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def webhook(target: Hook, **changes: Any) -> Channel:
    return replace(Channel(name="ops", url=target.url, timeout=2.0), **changes)


# --- one message ------------------------------------------------------------------------------------------------------


def test_a_webhook_is_signed_and_says_its_id(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct horse\n")
    with hook() as target:
        send(webhook(target, secret_file=tmp_path / "secret"), VALUE, 1_700_000_000.7)
        ((headers, body),) = target.came
    assert headers["Shoal-Message"] == "m-1"
    assert headers["Shoal-Signature"] == signature(b"correct horse", 1_700_000_000, body)
    assert json.loads(body)["subjects"] == ["a"]


def test_a_server_whose_certificate_nobody_vouches_for_gets_nothing(authority: Authority, tls: ssl.SSLContext) -> None:
    """Attack: somebody in the way of the webhook."""
    with hook(tls) as target:
        with pytest.raises(Unavailable, match="certificate verify failed"):
            send(webhook(target), VALUE, time.time())
        assert target.came == []
        send(webhook(target, ca_file=authority.certificate_path), VALUE, time.time())
        assert len(target.came) == 1


@pytest.mark.parametrize("status", [302, 404, 500])
def test_any_other_answer_than_success_is_a_failure(status: int) -> None:
    """A redirect too: the signature would go to whom nobody named."""
    with hook() as target:
        target.status = status
        with pytest.raises(Unavailable, match=f"answered {status}"):
            send(webhook(target), VALUE, time.time())
        assert (target.refused, target.came) == (1, [])


def test_a_mail_is_sent_over_tls_with_the_password_of_a_file(
    authority: Authority, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("battery staple\n")
    with mailbox(tls, "shoal", "battery staple") as box:
        channel = Channel(
            name="mail", kind="mail", host="127.0.0.1", port=box.port, user="shoal", timeout=5.0,
            password_file=tmp_path / "password", sender="shoal@example.org", to=("a@example.org", "b@example.org"),
            ca_file=authority.certificate_path,
        )  # fmt: skip
        send(channel, VALUE, time.time())
        (came,) = box.came
        assert box.encrypted == [True]
        assert (came["Subject"], came["To"]) == ("[page] offline: a", "a@example.org, b@example.org")
        assert came["Message-ID"] == "<m-1@shoal.invalid>"
        assert "a: offline" in came.get_payload()
        with pytest.raises(Unavailable, match="certificate verify failed"):
            send(replace(channel, ca_file=None), VALUE, time.time())
        (tmp_path / "password").write_text("wrong")
        with pytest.raises(Unavailable, match="535"):
            send(channel, VALUE, time.time())
        (tmp_path / "password").write_text("battery staple")
        box.refuses = True
        with pytest.raises(Unavailable, match="451"):
            send(channel, VALUE, time.time())
        assert len(box.came) == 1


def test_tries_grow_apart_up_to_a_quarter_of_an_hour() -> None:
    assert [backoff(5, n) for n in (1, 2, 3)] == [5, 10, 20]
    assert backoff(5, 1000) == LONGEST_WAIT


# --- a fleet ----------------------------------------------------------------------------------------------------------


RULES = """
every = "100 ms"
wait = "{wait}"
[channels.ops]
kind = "webhook"
url = "{url}"
timeout = "{timeout}"
retry = "50 ms"
[rules.offline]
kind = "device-offline"
severity = "page"
repeat = "0 s"
{more}
"""


def rules(url: str, *, wait: str = "0 s", timeout: str = "2 s", more: str = "") -> str:
    return RULES.format(url=url, wait=wait, timeout=timeout, more=more)


@pytest.fixture
def target() -> Iterator[Hook]:
    with hook() as made:
        yield made


def started(folder: Path, text: str) -> FleetProcess:
    folder.mkdir()
    (folder / "alerts.toml").write_text(text)
    return FleetProcess(folder, late_after="30 s")


def alerts(fleet: FleetProcess) -> Any:
    return fleet.api("GET", "/api/v1/alerts")


def test_a_device_that_goes_is_told_once_over_a_failing_channel_and_a_restart_and_then_its_return(
    tmp_path: Path, enrolling: Any, target: Hook
) -> None:
    """Accidents: the receiver refuses, and the fleet is killed before the message arrived."""
    with started(tmp_path / "fleet", rules(target.url)) as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        device.until_status("online")
        target.status = 503
        device.cut()
        until(lambda: target.refused > 1, what="refused tries")
        assert [c["waiting"] for c in alerts(fleet)["channels"]] == [1]
        fleet.kill()
        fleet.start()
        tries = target.refused
        until(lambda: target.refused > tries, what="tries of the new process")
        target.status = 200
        until(lambda: target.of("open"), what="the message")
        (opened,) = target.of("open")
        assert (opened["subjects"], opened["severity"], opened["kind"]) == (["a"], "page", "device-offline")
        (alert,) = alerts(fleet)["alerts"]
        assert alert["subject"] == "a"
        shown = fleet.api("POST", f"/api/v1/alerts/{alert['id']}/acknowledge", {})
        assert shown["acknowledged"] == "token:first"
        device.connect()
        device.until_status("online")
        until(lambda: target.of("recovered"), what="the recovery")
        assert alerts(fleet)["alerts"] == []
        until(lambda: [c["sent"] for c in alerts(fleet)["channels"]] == [2], what="both are noted as sent")
        assert len({m["id"] for m in target.documents}) == 2


def test_many_devices_that_go_at_once_are_one_message(tmp_path: Path, enrolling: Any, target: Hook) -> None:
    with (
        started(tmp_path / "fleet", rules(target.url, wait="3 s")) as fleet,
        enrolling(fleet, tmp_path) as new_device,
    ):
        initialise_trust(fleet)
        devices = [new_device(f"storm-{n}") for n in range(4)]
        for device in devices:
            device.connect()
        for device in devices:
            device.until_status("online")
        for device in devices:
            device.cut()
        until(lambda: target.of("open"), what="the message")
        assert [m["count"] for m in target.of("open")] == [4]
        assert target.documents[0]["title"] == "offline: 4 devices"


def test_a_receiver_that_says_nothing_holds_up_neither_the_fleet_nor_its_end(tmp_path: Path, target: Hook) -> None:
    """Accident: a webhook that takes the connection and never answers."""
    target.mute.set()
    with started(tmp_path / "fleet", rules(target.url, timeout="5 min")) as fleet:
        initialise_trust(fleet)
        for _ in range(3):
            fleet.api("POST", "/api/v1/alerts/test", {"channel": "ops"})
        began = time.monotonic()
        for _ in range(20):
            fleet.api("GET", "/api/v1/status")
        assert time.monotonic() - began < 10
        assert fleet.stop() == 0
        assert time.monotonic() - began < 30


def test_rules_that_change_hold_without_a_restart_and_a_fault_leaves_those_of_before(
    tmp_path: Path, target: Hook
) -> None:
    folder = tmp_path / "fleet"
    with started(folder, rules(target.url)) as fleet:
        initialise_trust(fleet)
        more = '[rules.expiring]\nkind = "certificate"\nbelow = 3650\n'
        (folder / "alerts.toml").write_text(rules(target.url, more=more))
        until(lambda: target.of("open"), what="a message of the new rule")
        assert "metadata root" in target.of("open")[0]["subjects"]
        (folder / "alerts.toml").write_text(rules(target.url, more='[rules.x]\nkind = "no"\n'))
        until(lambda: alerts(fleet)["fault"], what="the fault")
        assert "rules.x: kind" in alerts(fleet)["fault"]
        assert [r["name"] for r in alerts(fleet)["rules"]] == ["offline", "expiring"]
        (folder / "alerts.toml").write_text(rules(target.url))
        until(lambda: not alerts(fleet)["fault"], what="it is mended")
        until(lambda: alerts(fleet)["alerts"] == [], what="no alert of a rule that is gone")


def test_a_file_with_a_fault_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "alerts.toml").write_text('[rules.a]\nkind = "no"')
    settings = load(tmp_path, environ={}, overrides={})
    with pytest.raises(Malformed, match=r"alerts.toml: rules.a: kind: expected one of"), opened(settings, 8443):
        pass


def test_a_silence_is_of_those_who_may_and_ends(tmp_path: Path, target: Hook) -> None:
    more = '[rules.expiring]\nkind = "certificate"\nbelow = 3650\n'
    with started(tmp_path / "fleet", rules(target.url, wait="1 h", more=more)) as fleet:
        initialise_trust(fleet)
        until(lambda: alerts(fleet)["alerts"], what="alerts")
        new = {"name": "grouped", "roles": ["operator"], "groups": ["mine"], "days": 1, "program": True}
        token = fleet.api("POST", "/api/v1/tokens", new)["token"]
        mine = {"Authorization": f"Bearer {token}"}
        asked = {"rule": "expiring", "lasts_s": 3600, "reason": "known"}
        assert fleet.request("POST", "/api/v1/alerts/silences", asked, headers=mine)[0] == 403
        made = fleet.api("POST", "/api/v1/alerts/silences", asked)
        assert [s["id"] for s in alerts(fleet)["silences"]] == [made["id"]]
        fleet.api("DELETE", f"/api/v1/alerts/silences/{made['id']}")
        assert alerts(fleet)["silences"] == []
        with pytest.raises(ApiError, match="404"):
            fleet.api("POST", "/api/v1/alerts/silences", {**asked, "rule": "nope"})
        with pytest.raises(ApiError, match="404"):
            fleet.api("POST", "/api/v1/alerts/nope/acknowledge", {})
        with pytest.raises(ApiError, match="409"):
            fleet.api("POST", "/api/v1/alerts/test", {"channel": "nope"})
