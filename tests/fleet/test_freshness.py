"""Online, late, offline and unknown: what the fleet may say of a device's line, and what it may not."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, initialise_trust, until
from hypothesis import given
from hypothesis import strategies as st

from fleet.health.status import INTERVAL, Heard, Hearing, age, ages, freshness, interval_of
from wire.messages import Health, InferenceStats
from wire.sketch import Sketch
from wire.units import show_instant

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PATIENCE, GRACE = timedelta(seconds=90), timedelta(seconds=30)


def ago(seconds: float | None) -> datetime | None:
    return None if seconds is None else NOW - timedelta(seconds=seconds)


def hearing(up_for: float | None = 3600) -> Hearing:
    return Hearing(NOW, ago(up_for), PATIENCE, GRACE)


@pytest.mark.parametrize(
    ("online", "gone", "last", "up_for", "word"),
    [
        (True, None, 10, 3600, "online"),
        (True, None, 90, 3600, "online"),  # its interval and the grace
        (True, None, 91, 3600, "late"),  # it is connected, and silent
        (True, None, 91, None, "unknown"),  # the broker is down: nobody can say
        (True, None, 10, None, "unknown"),
        (False, 5, 10, 3600, "offline"),  # its will
        (False, 5, 10, None, "unknown"),
        (False, 5, None, 1, "offline"),
        (False, None, 3000, 10, "unknown"),  # the fleet came back just now
        (False, None, 3000, 90, "offline"),  # it had time to come back
        (False, None, None, 3600, "unknown"),  # never heard
        (True, None, 5000, 10, "unknown"),  # only the broker's memory, a moment after the line came back
        (True, None, 5000, 40, "late"),
        (True, None, 5000, 90, "offline"),
        (True, None, None, 40, "late"),
    ],
)
def test_the_word_for_a_device(
    online: bool, gone: float | None, last: float | None, up_for: float | None, word: str
) -> None:
    assert freshness(Heard(online, ago(gone), ago(last)), hearing(up_for)) == word


SECONDS = st.one_of(st.none(), st.floats(0, 1e6))
HEARD = st.builds(
    lambda online, gone, last, interval: Heard(online, ago(gone), ago(last), timedelta(seconds=interval)),
    st.booleans(),
    SECONDS,
    SECONDS,
    st.floats(0.1, 86400),
)


@given(HEARD, SECONDS)
def test_nobody_is_called_online_who_was_not_heard_in_time_by_a_fleet_that_hears(
    heard: Heard, up_for: float | None
) -> None:
    now = hearing(up_for)
    word = freshness(heard, now)
    if word == "online":
        assert up_for is not None
        assert heard.online
        assert heard.last is not None
        assert NOW - heard.last <= now.allowed(heard.interval)
    if up_for is None:
        assert word == "unknown"


@given(HEARD, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_silent_device_never_looks_fresher_as_time_goes_by(heard: Heard, up_for: float, later: float) -> None:
    order = ["online", "late", "offline"]
    first = hearing(up_for)
    then = Hearing(NOW + timedelta(seconds=later), first.since, PATIENCE, GRACE)
    words = [word for word in (freshness(heard, first), freshness(heard, then)) if word != "unknown"]
    assert words == sorted(words, key=order.index)


@given(HEARD, SECONDS, st.floats(0, 1e6))
def test_a_stale_figure_is_never_shown_as_fresh(heard: Heard, up_for: float | None, old: float) -> None:
    now = hearing(up_for)
    shown = ages(heard, now, {"p50": show_instant(NOW - timedelta(seconds=old)), "never": ""})
    assert shown["never"] == {"at": None, "age_s": None, "stale": True}
    if old > now.allowed(heard.interval).total_seconds() + 0.001 or freshness(heard, now) != "online":
        assert shown["p50"]["stale"]
    else:
        assert shown["p50"]["stale"] is (old > now.allowed(heard.interval).total_seconds())
    assert shown["p50"]["age_s"] == pytest.approx(old, abs=0.11)


def test_a_figure_from_the_future_is_as_old_as_now() -> None:
    assert age(show_instant(NOW + timedelta(hours=1)), 10, NOW)["age_s"] == 0


def test_an_interval_that_cannot_be_is_that_of_an_agent_by_default() -> None:
    assert [interval_of(s) for s in (0, -5, float("nan"), 1e9)] == [INTERVAL] * 4
    assert interval_of(5) == timedelta(seconds=5)


# --- a fleet ------------------------------------------------------------------------------------------------------


def windows(at: datetime, window_s: float = 60.0) -> dict[str, Any]:
    stats = InferenceStats(
        model="intents/kitchen", digest=f"sha256:{'a' * 64}", requests=3, errors=0, latency_ms=Sketch.of([2.1])
    )
    health = Health(
        cpu_percent=5, memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2, window_s=window_s
    )
    return {"inference": (stats,), "health": health, "end": show_instant(at)}


def send(device: Any, seq: int, **changes: Any) -> None:
    batch = device.batch(seq, nonce=f"n{seq}")
    device.send(replace(batch, records=(replace(batch.records[0], **changes),)))
    while device.next_ack().nonce != f"n{seq}":
        pass


def test_a_device_that_is_silent_is_late_and_its_figures_are_stale(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet", late_after="100 ms") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        assert device.view()["status"] == "unknown"  # it never spoke
        device.connect()
        send(device, 1, **windows(datetime.now(UTC)))
        shown = device.view()
        assert (shown["status"], shown["ages"]["stats"]["stale"]) == ("online", False)
        # From here on it says that it speaks every 300 ms, and does not.
        send(device, 2, **windows(datetime.now(UTC) - timedelta(hours=3), window_s=0.3))
        device.until_status("late")
        assert fleet.api("GET", "/api/v1/status")["devices"]["late"] == 1
        shown = device.view()
        assert shown["ages"]["stats"]["stale"]
        assert shown["stats"]["latency_p50_ms"] == pytest.approx(2.1, rel=0.02)
        assert fleet.api("GET", "/api/v1/devices?status=late")[0]["device"] == "a"
        device.cut()
        device.until_status("offline")
        assert device.view()["gone"] is not None


def test_a_late_record_does_not_make_old_figures_new(tmp_path: Path, enrolling: Any) -> None:
    """Accident: what waited on a device's disk for three hours comes now."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        send(device, 1, **windows(datetime.now(UTC) - timedelta(hours=3)))
        shown = device.view()
        assert shown["status"] == "online"
        assert shown["ages"]["stats"]["age_s"] == pytest.approx(3 * 3600, abs=60)
        assert shown["ages"]["stats"]["stale"]


def test_without_its_broker_the_fleet_says_unknown_of_every_device(tmp_path: Path, enrolling: Any) -> None:
    """Accident: the broker is gone. A device that is connected to nothing is neither online nor offline."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        device.until_status("online")
        os.kill(fleet.api("GET", "/api/v1/status")["broker"]["pid"], signal.SIGKILL)
        until(lambda: device.view()["status"] == "unknown", what="unknown")
        device.until_status("online")  # the broker is started again, and the device comes back by itself


def test_a_fleet_that_was_away_knows_nobody_until_they_speak(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet", late_after="2 s") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        send(device, 1, **windows(datetime.now(UTC), window_s=0.1))
        spoke = time.monotonic()
        fleet.kill()  # with its broker: there is nothing left that a goodbye could reach
        device.disconnect()
        until(lambda: time.monotonic() > spoke + 2.2)
        fleet.start()
        assert device.view()["status"] != "online"  # late, unknown, or offline if its will was told in time
        device.connect()
        device.until_status("online")
