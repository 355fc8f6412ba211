"""What people see of evidence: of a device, of a version by profile, in steps; over the API and in a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from evidence_world import MINUTE, NEW, NOON, OLD, World, health, stats
from fleet_process import ApiError, FleetProcess, Publisher, tiny_bundle
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli.evidence import device_view, model_view
from fleet.errors import Malformed
from fleet.evidence import pages
from fleet.evidence.pages import MOST_STEPS, Span, device_page, model_page, share
from fleet.evidence.recording import note_golden
from fleet.evidence.windows import FINE, HOUR
from fleet.registry.observed import observed_until
from fleet.store.database import Database
from wire.agreement import Agreement
from wire.sketch import Histogram
from wire.units import show_instant


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(Database.in_folder(tmp_path)) as database:
        made = World(database, now=NOON + timedelta(hours=1))
        made.add("a", "b")
        yield made


def of_device(world: World, device: str = "a", hours: float = 2, step: float | None = None) -> dict[str, Any]:
    with world.database.transaction() as session:
        return device_page(session, device, Span.of(world.now - timedelta(hours=hours), world.now, step))


def of_model(world: World, *profiles: str, hours: float = 2) -> dict[str, Any]:
    with world.database.transaction() as session:
        span = Span.of(world.now - timedelta(hours=hours), world.now, None)
        return model_page(session, dict.fromkeys(profiles, OLD), span)


def test_a_device_shows_its_models_apart_the_newest_first_and_how_it_was(world: World) -> None:
    more = {"confidence": Histogram.of([0.9] * 10), "labels": {"on": 7, "off": 3}, "feedback_total": 4}
    world.say("a", NOON, stats(OLD, 10, feedback_correct=3, **more), health=health(memory=50, crash=1))
    world.say("a", NOON + 20 * MINUTE, stats(NEW, 30), health=health(memory=70, crash=3))
    world.say("b", NOON + 20 * MINUTE, stats(NEW, 500))
    with world.database.transaction() as session:
        note_golden(session, {"a": {NEW: False}}, NOON)
    page = of_device(world)
    new, old = page["models"]
    assert [(one["digest"], one["requests"], one["errors"]) for one in (new, old)] == [(NEW, 30, 1), (OLD, 10, 1)]
    assert (new["golden"]["held"], old["golden"]) == (False, None)
    assert (new["accuracy"], old["accuracy"]["value"], old["accuracy"]["n"]) == (None, 0.75, 4)
    assert (old["labels"], old["errors_percent"]) == ({"on": 7, "off": 3}, 10.0)
    assert 0.85 < old["confidence_mean"] < 0.95
    assert 19 < old["p50_ms"] < 21
    assert [(step["memory"], step["restarts"]) for step in page["health"]] == [(50, 0), (70, 2)]


def test_the_registry_is_told_what_released_models_did_in_use(world: World) -> None:
    for device, requests in (("a", 10), ("b", 20)):
        world.say(device, NOON, stats(OLD, requests, feedback_total=8, feedback_correct=6))
    world.say("a", NOON, replace(stats(OLD, 500), shadow=True))  # answered nobody
    world.say("a", NOON + 20 * MINUTE, replace(stats(NEW, 5), shadow=True))
    observe = observed_until(lambda: world.now)
    with world.database.transaction() as session:
        found = observe(session, [OLD, NEW])
    assert found.keys() == {OLD}
    old = found[OLD]
    assert (old.devices, old.latency_ms.count, old.feedback_total, old.feedback_correct) == (2, 30, 16, 12)
    assert old.latency_ms.quantile(0.5) == pytest.approx(20, rel=0.05)
    world.now += timedelta(days=200)
    with world.database.transaction() as session:
        assert observe(session, [OLD]) == {}


def test_a_version_shows_what_all_devices_of_a_profile_did_and_shadow_apart(world: World) -> None:
    world.add("c", profile="jetson")
    for device, requests in (("a", 10), ("b", 20), ("c", 40)):
        world.say(device, NOON, stats(OLD, requests))
    world.say("a", NOON, replace(stats(OLD, 5), shadow=True, compared=5, agreed=4))
    shown = [
        (p["profile"], p["shadow"], p["devices"], p["requests"]) for p in of_model(world, "pi", "jetson")["profiles"]
    ]
    assert shown == [("jetson", False, 1, 40), ("pi", False, 2, 30), ("pi", True, 1, 5)]
    assert [p["profile"] for p in of_model(world, "jetson")["profiles"]] == ["jetson"], "only what the version is for"
    assert of_model(world, "pi")["profiles"][1]["agreement"]["value"] == 0.8


def test_the_figures_of_a_version_stand_apart_each_with_its_interval(world: World) -> None:
    names = [f"d{n}" for n in range(30)]
    world.add(*names)
    asked = (Agreement(stratum=9, answers=100, checked=40, agreed=36, right_agreed=10, wrong_differed=1),)
    for name in names:
        world.say(name, NOON, stats(OLD, 100, feedback_total=20, feedback_correct=18, agreement=asked))
        world.say(name, NOON + 20 * MINUTE, replace(stats(OLD, 50), shadow=True, compared=50, agreed=40))
    page = of_model(world, "pi")
    active, shadow = page["profiles"]
    assert active["figures"].keys() == {"feedback accuracy", "cloud agreement", "corrected accuracy"}
    assert shadow["figures"].keys() == {"shadow agreement"}
    known = {**active["figures"], **shadow["figures"]}
    told = {kind: (round(one["value"], 2), one["n"], one["devices"]) for kind, one in known.items()}
    assert told["feedback accuracy"] == (0.9, 600, 30)
    assert told["shadow agreement"] == (0.8, 1500, 30)
    assert told["cloud agreement"] == (0.9, 1200, None)
    assert known["corrected accuracy"]["labelled"] == 330
    assert all(one["low"] < one["value"] < one["high"] for one in known.values())
    text = _drawn(model_view("intents/kitchen/1.0.0", page))
    for kind in known:
        assert kind in text
    assert "90.0" in text


def test_the_figures_of_many_devices_are_those_of_a_sample_and_the_same_each_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DRAWN", 6)
    names = [f"d{n}" for n in range(20)]
    world.add(*names)
    for n, name in enumerate(names):
        world.say(name, NOON, stats(OLD, 100, feedback_total=20, feedback_correct=n))
    world.keep(hours=24 * 3)
    (one,) = of_model(world, "pi", hours=24 * 30)["profiles"]
    assert (one["figures"]["feedback accuracy"]["devices"], one["figures"]["feedback accuracy"]["n"]) == (6, 120)
    assert of_model(world, "pi", hours=24 * 30)["profiles"] == [one]
    assert one["accuracy"]["n"] == 400


def test_counts_that_cannot_be_make_no_figure(world: World) -> None:
    """Attack: a device says that more answers were right than there were."""
    world.say("a", NOON, stats(OLD, 10, feedback_total=5, feedback_correct=50))
    assert of_model(world, "pi")["profiles"][0]["figures"] == {}


def test_steps_add_up_to_the_whole_whatever_the_windows_are_by_now(world: World) -> None:
    for minute in range(0, 60, 5):
        world.say("a", NOON + minute * MINUTE, stats())
    for hours, width in ((0, 2 * HOUR), (24, HOUR), (24 * 20, 86_400)):
        world.keep(hours=hours)
        (one,) = of_device(world, hours=24 * 40, step=width)["models"]
        assert sum(step["requests"] for step in one["series"]) == one["requests"] == 120


def test_what_is_not_in_the_time_is_not_shown(world: World) -> None:
    world.say("a", NOON, stats())
    world.now += timedelta(hours=5)
    page = of_device(world, hours=2)
    assert (page["models"], page["health"]) == ([], [])


@given(st.integers(1, 400 * 24), st.integers(FINE, 30 * 86_400))
def test_a_span_is_refused_or_has_a_bounded_number_of_steps(hours: int, step: int) -> None:
    since = NOON - timedelta(hours=hours)
    assert Span.of(since, NOON, None).step >= FINE
    if hours * HOUR > MOST_STEPS * step:
        with pytest.raises(Malformed, match="choose a wider one"):
            Span.of(since, NOON, step)
    else:
        span = Span.of(since, NOON, step)
        assert (span.until - span.since) / span.step <= MOST_STEPS + 1


def test_a_time_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(Malformed, match="after since"):
        Span.of(NOON, NOON, None)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_share_lies_in_its_interval(right: int, of: int) -> None:
    found = share(right, of)
    assert (found is None) == (of == 0)
    if found:
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    """The worked example of a table: 8 of 10."""
    found = share(8, 10)
    assert found is not None
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.4902, 0.9433)


def test_people_see_what_the_page_says(world: World) -> None:
    world.say("a", NOON, stats(OLD, 10, feedback_total=10, feedback_correct=8), health=health(memory=50 << 20))
    text = _drawn(device_view("a", of_device(world)))
    assert "0.800 (0.490 to 0.943, n=10)" in text
    assert "50.0 MiB" in text
    assert "kitchen aaaaaaaaaaaa" in text
    assert "2026-11-23 12:00" in text
    assert "pi" in _drawn(model_view("intents/kitchen/1.0.0", of_model(world, "pi")))
    assert "no evidence" in _drawn(device_view("b", of_device(world, "b")))


def _drawn(parts: list[Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# --- a real fleet -----------------------------------------------------------------------------------------------------


def test_telemetry_of_a_device_is_on_its_page_and_on_that_of_its_version(
    fleet: FleetProcess, publisher: Publisher, new_device: Any, tmp_path: Path
) -> None:
    release = publisher.release(*tiny_bundle("21.0.0"))
    device = new_device("evidence-1")
    device.connect()
    batch = device.batch(1, nonce="first", inference=(stats(release.digest, 12),))
    now = datetime.now(UTC)
    record = replace(batch.records[0], start=show_instant(now - 2 * MINUTE), end=show_instant(now - MINUTE))
    device.send(replace(batch, records=(record,)))
    assert device.next_ack().stored == 1
    (one,) = fleet.api("GET", "/api/v1/evidence/devices/evidence-1")["models"]
    assert (one["digest"], one["requests"], len(one["series"])) == (release.digest, 12, 1)
    path = "/api/v1/evidence/models/intents/kitchen/21.0.0"
    (profile,) = fleet.api("GET", path)["profiles"]
    assert (profile["devices"], profile["requests"]) == (1, 12)
    for bad in ("?since=yesterday", "?step=1%20s", "?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z"):
        with pytest.raises(ApiError) as refused:
            fleet.api("GET", path + bad)
        assert refused.value.status == 400, bad
    with pytest.raises(ApiError) as missing:
        fleet.api("GET", "/api/v1/evidence/models/intents/kitchen/99.0.0")
    assert missing.value.status == 404
    words = {"device": "evidence-1", "model": "intents/kitchen/21.0.0"}
    for command, name in words.items():
        shown = _shoal(fleet, tmp_path, "evidence", command, name, "--since", "2 h", "--json")
        assert shown.returncode == 0, shown.stderr
        (found,) = json.loads(shown.stdout)["models" if command == "device" else "profiles"]
        assert found["requests"] == 12
    assert "expected FAMILY/NAME/VERSION" in _shoal(fleet, tmp_path, "evidence", "model", "intents/kitchen").stderr


def _shoal(fleet: FleetProcess, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [sys.executable, "-P", "-m", "cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
