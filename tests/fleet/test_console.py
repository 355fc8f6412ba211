"""The console in a real browser: it shows the fleet, runs no text as markup, and asks nobody but the fleet."""

from __future__ import annotations

import http.client
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from fleet_process import FleetProcess, Publisher, tiny_bundle

from fleet.api.console import HEADERS
from wire.messages import Health, InferenceStats, SlotReport, UpdateReport
from wire.sketch import Sketch
from wire.units import show_instant

PARTS = Path(__file__).parents[2] / "fleet/console"
EVIL = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
LARGEST_LINES = 500


def test_the_page_is_served_with_a_policy_that_lets_nothing_else_in(fleet: FleetProcess) -> None:
    host, port = fleet.url.removeprefix("https://").split(":")
    for path, kind in (("", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")):
        connection = http.client.HTTPSConnection(host, int(port), context=fleet.tls(), timeout=30)
        connection.request("GET", f"/console{path}")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, kind)
        assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert fleet.request("GET", "/console/__init__.py")[0] == 404
    assert fleet.request("GET", "/console/..%2Fassembly.py")[0] == 404


def test_the_page_names_no_other_server_and_makes_no_markup_of_text() -> None:
    texts = {path.name: path.read_text() for path in PARTS.iterdir() if path.suffix in (".html", ".js", ".css")}
    assert len(texts) == 3
    assert sum(len(text.splitlines()) for text in texts.values()) < LARGEST_LINES
    for name, text in texts.items():
        assert not re.search(r"https?://", text), f"{name} names another server"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
    assert not re.search(r"<script>|\son\w+=|style=", texts["index.html"])


in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium")


def story(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> Any:
    """One device that ran a release, was rolled back and says why; one that is away; one that never came."""
    manifest, blobs = tiny_bundle()
    release = publisher.release(manifest, blobs)
    device, away = new_device("kitchen-1", group="kitchens"), new_device("kitchen-2", group="kitchens")
    new_device("never-came")
    for one in (device, away):
        one.connect()
        one.until_status("online")
    slot = SlotReport(model="intents/kitchen", slot="active", target=release.target, digest=release.digest)
    device.answer_to(device.report(slots=(slot,)))
    newer = SlotReport(
        model="intents/kitchen",
        slot="active",
        target=release.target.replace("1.0.0", "2.0.0"),
        digest=f"sha256:{'b' * 64}",
    )
    device.answer_to(device.report(slots=(newer,)))
    failed = UpdateReport(
        target=newer.target, digest=newer.digest, rollout="r-1", phase="failed", reason=f"p99 rose {EVIL}"
    )
    device.answer_to(device.report(failed, slots=(slot,)))
    stats = InferenceStats(
        model="intents/kitchen",
        digest=release.digest,
        requests=120,
        errors=1,
        latency_ms=Sketch.of([2.1] * 50),
        feedback_total=20,
        feedback_correct=19,
    )
    health = Health(
        cpu_percent=5,
        memory_used=300,
        memory_total=512,
        agent_memory=80,
        disk_free=3,
        disk_total=8,
        temperature_c=48.5,
        window_s=60,
    )
    at = show_instant(datetime.now(UTC))
    batch = device.batch(1, inference=(stats,), health=health)
    device.send(replace(batch, records=(replace(batch.records[0], end=at),)))
    device.next_ack()
    away.cut()
    away.until_status("offline")
    labels = {"add": ["kitchen", "floor-2"], "note": f"behind the fridge\n{EVIL}"}
    fleet.api("POST", "/api/v1/devices/kitchen-1/labels", labels)
    body = {"family": "intents", "name": "kitchen", "version": "1.0.0", "waves": [50, 100]}
    fleet.api("POST", "/api/v1/rollouts", body)
    return device


def log_in(browser: Browser, fleet: FleetProcess, page: str = "#/") -> None:
    browser.open(f"{fleet.url}/console{page}")
    browser.until("document.querySelector('form.login input[name=secret]')  !== null")
    browser.run(f"document.querySelector('input[name=secret]').value = {fleet.token!r}")
    browser.run("document.querySelector('form.login').requestSubmit()")
    browser.until("document.getElementById('who').textContent === 'token:first'")


@in_browser
def test_the_console_shows_the_fleet_and_runs_nothing_that_somebody_wrote(
    fleet: FleetProcess, publisher: Publisher, new_device: Any, tmp_path: Path
) -> None:
    """Attack: markup in a note, and in the reason that a device gives."""
    story(fleet, publisher, new_device)
    with Browser(tmp_path / "profile") as browser:
        log_in(browser, fleet)
        browser.until("document.body.innerText.includes('Rollouts under way')")
        cards = browser.run(
            "Object.fromEntries([...document.querySelectorAll('.card')]"
            ".map(c => [c.children[1].innerText, c.children[0].innerText]))"
        )
        counted = fleet.api("GET", "/api/v1/status")["devices"]
        assert {word: int(cards[word]) for word in ("online", "late", "offline", "unknown")} == {
            word: counted[word] for word in ("online", "late", "offline", "unknown")
        }
        browser.run("location.hash = '#/devices?where=group:kitchens'")
        browser.until("document.querySelectorAll('tbody tr').length === 2")
        assert browser.run("[...document.querySelectorAll('tbody tr')].map(r => r.children[1].innerText)") == [
            "online",
            "offline",
        ]
        browser.run("location.hash = '#/device/kitchen-1'")
        browser.until("document.querySelector('h1').innerText.startsWith('kitchen-1')")
        text = browser.text
        assert EVIL in text
        assert "went back by rollout r-1: p99 rose" in text
        assert "48.5 °C" in text
        assert "2.1, 2.1 ms" in text
        assert browser.run("window.owned") is None
        assert browser.run("document.querySelectorAll('main img, main script').length") == 0
        for page, words in (
            ("rollouts", "kitchen 1.0.0"),
            ("alerts", "none in alerts.toml"),
            ("device/nobody", "there is none of that id"),
        ):
            browser.run(f"location.hash = '#/{page}'")
            browser.until(f"document.body.innerText.includes({words!r})")
        browser.run("document.getElementById('out').click()")
        browser.until("document.querySelector('form.login') !== null")
        assert browser.run("sessionStorage.getItem('token')") is None
        assert [url for url in browser.requested if not url.startswith((fleet.url, "data:,", "about:"))] == []
        # A page that is asked for and is not there is an answer of the server, and no fault of the page.
        assert [e for e in browser.errors if "404" not in e] == []


@in_browser
def test_the_console_fits_a_phone_and_says_when_it_is_not_up_to_date(
    fleet: FleetProcess, publisher: Publisher, new_device: Any, tmp_path: Path
) -> None:
    new_device("phone-1").connect()
    with Browser(tmp_path / "profile", width=390, height=844) as browser:
        log_in(browser, fleet, "#/devices")
        browser.until("document.querySelectorAll('tbody tr').length > 0")
        for page in ("#/", "#/devices", "#/device/phone-1", "#/rollouts", "#/alerts"):
            browser.run(f"location.hash = {page!r}")
            browser.until(f"location.hash === {page!r} && document.querySelector('h1') !== null")
            assert browser.run("document.documentElement.scrollWidth") <= 390, page
        browser.run("window.fetch = () => Promise.reject(new Error('no line'))")
        browser.run("draw()")
        browser.until("document.getElementById('fault').innerText === 'no line: what is below is not up to date'")
        assert browser.run("document.querySelector('main').children.length > 0")
