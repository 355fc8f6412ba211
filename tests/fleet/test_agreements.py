"""What devices count of agreement, stored with their telemetry and shown with the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.model import agreement_table, routes_table
from cli.output import console
from fleet import agreements, routed
from fleet.store.database import Database
from fleet.store.tables import Device
from wire.agreement import UNSURE, Agreement
from wire.messages import InferenceStats

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SURE = Agreement(stratum=9, answers=900, checked=90, agreed=81, right_agreed=40, wrong_differed=5)
LOW = Agreement(stratum=UNSURE, answers=100, checked=100, agreed=50)


def stats(*counts: Agreement, digest: str = DIGEST) -> InferenceStats:
    return InferenceStats(model="kitchen", digest=digest, requests=1, errors=0, agreement=counts)


@pytest.fixture
def database(tmp_path: Path) -> Any:
    found = Database.in_folder(tmp_path)
    with found.transaction() as session:
        for name in ("a", "b"):
            session.add(Device(id=name, profile="x86-64", created="", token_hash="", token_expires=""))
    yield found
    found.close()


def test_counts_of_devices_and_records_are_added_up_for_each_model(database: Any) -> None:
    with database.transaction() as session:
        agreements.add(session, "a", [stats(SURE, LOW), stats(digest=OTHER)])
        agreements.add(session, "a", [stats(SURE)])
        agreements.add(session, "b", [stats(SURE, LOW)])
    with database.transaction() as session:
        found = agreements.by_digest(session)
    assert set(found) == {DIGEST}
    assert (found[DIGEST]["answers"], found[DIGEST]["checked"], found[DIGEST]["labelled"]) == (2900, 470, 135)
    expected = (2700 * 0.9 + 200 * 0.5) / 2900  # by the share of all answers, not of the checks
    assert found[DIGEST]["agreement"]["value"] == pytest.approx(expected)
    assert found[DIGEST]["accuracy"]["low"] < found[DIGEST]["accuracy"]["value"] < found[DIGEST]["accuracy"]["high"]


def test_without_labels_nothing_is_called_accuracy(database: Any) -> None:
    with database.transaction() as session:
        agreements.add(session, "a", [stats(replace(SURE, right_agreed=0, wrong_differed=0))])
        found = agreements.by_digest(session)[DIGEST]
    assert found["accuracy"] is None
    assert found["agreement"]["value"] == pytest.approx(0.9)


def test_a_device_whose_counts_cannot_be_does_not_spoil_those_of_others(database: Any) -> None:
    """Attack: a device claims that the reference agreed more often than it was asked."""
    with database.transaction() as session:
        agreements.add(session, "a", [stats(SURE)])
        honest = agreements.by_digest(session)[DIGEST]
        agreements.add(session, "b", [stats(Agreement(stratum=9, answers=10, checked=10, agreed=1 << 39))])
        assert agreements.by_digest(session)[DIGEST] == honest


def test_a_device_that_makes_up_models_fills_no_disk(database: Any) -> None:
    with database.transaction() as session:
        for i in range(agreements.MOST_MODELS + 50):
            agreements.add(session, "a", [stats(SURE, digest=f"sha256:{i:064x}")])
        assert len(agreements.by_digest(session)) == agreements.MOST_MODELS


def test_the_table_shows_agreement_apart_from_accuracy() -> None:
    shown = {"target": "models/a/b/1/c", **agreements.view([replace(SURE, right_agreed=0, wrong_differed=0)])}
    with console.capture() as captured:
        console.print(agreement_table([shown]))
    assert "0.9000" in captured.get()


# --- where requests were answered ---------------------------------------------------------------------------------


def went(routes: dict[str, int], digest: str = DIGEST) -> InferenceStats:
    return InferenceStats(model="kitchen", digest=digest, requests=1, errors=0, routes=routes)


def test_routes_of_devices_and_records_are_added_up_for_each_model(database: Any) -> None:
    with database.transaction() as session:
        routed.add(
            session, {"a": [went({"local sure": 5, "cloud unsure": 2}), went({"cloud busy": 1}, OTHER), stats()]}
        )
        routed.add(session, {"a": [went({"local sure": 1})]})
    with database.transaction() as session:
        routed.add(session, {"b": [went({"local sure": 10}), went({"local sure": 100})]})
        assert routed.by_digest(session) == {
            DIGEST: {"cloud unsure": 2, "local sure": 116},
            OTHER: {"cloud busy": 1},
        }


def test_a_device_that_makes_up_routes_or_models_fills_no_disk(database: Any) -> None:
    """Attack: words of its own, as many as it likes, and numbers that no database takes."""
    with database.transaction() as session:
        routed.add(session, {"a": [went({f"local {'x' * i}": 1 for i in range(1, 20)} | {"what the user said": 9})]})
        routed.add(session, {"a": [went({f"cloud {'y' * i}": 1 << 62 for i in range(1, 20)})]})
        routed.add(session, {"a": [went({f"z{'y' * i} sure": 1 << 62 for i in range(1, 19)})]})
        found = routed.by_digest(session)[DIGEST]
        assert len(found) == routed.MOST_ROUTES
        assert "what the user said" not in found
        assert max(found.values()) == agreements.FULL
        for i in range(agreements.MOST_MODELS + 50):
            routed.add(session, {"b": [went({"local sure": 1}, f"sha256:{i:064x}")]})
        assert len(routed.by_digest(session)) == agreements.MOST_MODELS + 1


def test_the_table_shows_the_most_frequent_route_first_with_its_share() -> None:
    shown = {"target": "models/a/b/1/c", "routes": {"cloud unsure": 1, "local no-cloud": 3}}
    with console.capture() as captured:
        console.print(routes_table([shown]))
    first, second = (line for line in captured.get().splitlines() if "models/a" in line)
    assert all(word in first for word in ("local", "no-cloud", "3", "75.0 %"))
    assert all(word in second for word in ("cloud", "unsure", "25.0 %"))
