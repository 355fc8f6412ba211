"""Groups, tags, notes and queries of devices; the same as a file; and what happened to each of them."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, Publisher, until
from hypothesis import given
from hypothesis import strategies as st

from fleet import inventory_csv
from fleet.errors import Malformed
from fleet.health import history
from fleet.health.history import changes
from fleet.inventory_csv import Line, parse, render
from fleet.store.database import Database
from fleet.store.tables import Device
from wire.messages import Reported, SlotReport, UpdateReport

NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)
IDS = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
PRINTABLE = st.characters(codec="utf-8").filter(lambda c: c.isprintable() or c == "\n")
NOTES = st.one_of(
    st.text(PRINTABLE, max_size=30), st.sampled_from(["=1+1", "'=1", "''", " =x", "-1", "@a", '"', "a,b"])
)
LINES = st.lists(
    st.builds(Line, IDS, NAMES, NAMES, st.frozensets(NAMES, max_size=4), NOTES),
    unique_by=lambda line: line.id,
    max_size=8,
)


def unnumbered(lines: list[Line]) -> list[Line]:
    return [Line(line.id, line.profile, line.group, line.tags, line.note) for line in lines]


@given(LINES)
def test_a_file_says_again_what_was_written(lines: list[Line]) -> None:
    assert unnumbered(parse(render(lines))) == lines


@given(LINES)
def test_no_cell_of_a_file_is_a_formula(lines: list[Line]) -> None:
    """Attack: a note that a spreadsheet would run."""
    for row in list(csv.reader(io.StringIO(render(lines), newline="")))[1:]:
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


@given(st.text(max_size=200))
def test_a_file_of_anything_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except Malformed:
        return


def test_every_line_at_fault_is_named() -> None:
    good, bad = "a,x86-64,default,,", ("B,x86-64,default,,", "a,x86-64,default,UP,", "c,x86-64", "a,x86-64,default,,")
    text = "\r\n".join(["id,profile,group,tags,note", good, *bad, ""])
    with pytest.raises(Malformed) as e:
        parse(text)
    said = str(e.value)
    assert [f"line {n}" in said for n in (3, 4, 5, 6)] == [True] * 4
    assert "stands on line 2 too" in said
    assert "nothing was changed" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: expected the columns"),
        ("id;profile;group;tags;note\n", "line 1: expected the columns"),
        ('id,profile,group,tags,note\n"a', "not CSV"),
        ("id,profile,group,tags,note\na,b,c,,x\x07\n", "line 2: note: a control character"),
        ("id,profile,group,tags,note\n" + "a,b,c,,\n" * (inventory_csv.MOST_LINES + 1), "at most 5000 at once"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        parse(text)


# --- a fleet ----------------------------------------------------------------------------------------------------------


def kit(fleet: FleetProcess, device: str, **more: str) -> None:
    fleet.api("POST", "/api/v1/devices", {"device": device, "profile": "x86-64", **more})


def ids(fleet: FleetProcess, query: str) -> list[str]:
    return [d["device"] for d in fleet.api("GET", f"/api/v1/devices?{query}")]


def label(fleet: FleetProcess, device: str, **labels: Any) -> Any:
    return fleet.api("POST", f"/api/v1/devices/{device}/labels", labels)


def take(fleet: FleetProcess, csv: str, *, dry_run: bool = False) -> Any:
    return fleet.api("POST", "/api/v1/inventory", {"csv": csv, "dry_run": dry_run})


def test_devices_are_chosen_by_tags_groups_and_profiles(fleet: FleetProcess, publisher: Publisher) -> None:
    for name in ("q-1", "q-2", "q-3"):
        kit(fleet, name, group="query")
    assert label(fleet, "q-1", add=["kitchen", "warm"])["tags"] == ["kitchen", "warm"]
    label(fleet, "q-2", add=["kitchen"], group="query-2", note="by the window")
    label(fleet, "q-1", remove=["warm"])
    assert ids(fleet, "where=tag:kitchen and device:q-*".replace(" ", "%20")) == ["q-1", "q-2"]
    assert ids(fleet, "where=device:q-*%20and%20not%20group:query") == ["q-2"]
    assert ids(fleet, "where=device:q-*&status=enrolling&group=query") == ["q-1", "q-3"]
    assert fleet.api("GET", "/api/v1/devices/q-2")["note"] == "by the window"
    with pytest.raises(ApiError, match="400"):
        ids(fleet, "where=tag")
    with pytest.raises(ApiError, match="400"):
        label(fleet, "q-1", add=["Not A Tag"])
    told = [(e["what"], e["text"], e["who"]) for e in fleet.api("GET", "/api/v1/devices/q-2/history")["entries"]]
    assert ("tags", "nothing -> kitchen", "token:first") in told
    assert ("group", "query -> query-2", "token:first") in told


def test_pages_bring_every_device_once(fleet: FleetProcess, publisher: Publisher) -> None:
    for n in range(7):
        kit(fleet, f"page-{n}", group="pages")
    found: list[str] = []
    while page := ids(fleet, f"group=pages&limit=3&after={found[-1] if found else ''}"):
        found += page
        assert len(page) <= 3
    assert found == [f"page-{n}" for n in range(7)]
    assert ids(fleet, "group=pages&limit=1000&after=page-6") == []
    with pytest.raises(ApiError, match="400"):
        ids(fleet, "limit=1001")


def test_a_file_makes_kits_and_changes_devices_all_or_none(fleet: FleetProcess, publisher: Publisher) -> None:
    kit(fleet, "csv-1", group="csv")
    lines = [
        Line("csv-1", "x86-64", "csv", frozenset({"kitchen"}), "=1+1"),
        Line("csv-2", "x86-64", "csv", frozenset({"lab"}), ""),
    ]
    text = render(lines)
    shown = take(fleet, text, dry_run=True)
    assert (shown["created"], shown["changed"], shown["kits"]) == (["csv-2"], ["csv-1"], [])
    assert ids(fleet, "group=csv") == ["csv-1"]
    bad = render([*lines, Line("csv-3", "no-such-profile", "csv", frozenset(), "")])
    with pytest.raises(ApiError, match=r"line 4.*nothing was changed"):
        take(fleet, bad)
    assert ids(fleet, "group=csv") == ["csv-1"]
    assert fleet.api("GET", "/api/v1/devices/csv-1")["tags"] == []
    made = take(fleet, text)
    assert [k["device"] for k in made["kits"]] == ["csv-2"]
    assert made["kits"][0]["token"]
    again = take(fleet, text)
    assert (again["created"], again["changed"], again["same"]) == ([], [], 2)
    headers = {"Authorization": f"Bearer {fleet.token}"}
    exported = fleet.request("GET", "/api/v1/inventory?where=group:csv", headers=headers)[1].decode()
    assert unnumbered(parse(exported)) == lines
    with pytest.raises(ApiError, match="its profile is x86-64"):
        take(fleet, render([Line("csv-1", "raspberry-pi-4", "csv", frozenset(), "")]))


def test_who_has_groups_changes_no_others(fleet: FleetProcess, publisher: Publisher) -> None:
    kit(fleet, "mine-1", group="mine")
    kit(fleet, "theirs-1", group="theirs")
    new = {"name": "grouped", "roles": ["operator"], "groups": ["mine"], "days": 1, "program": True}
    token = fleet.api("POST", "/api/v1/tokens", new)["token"]
    headers = {"Authorization": f"Bearer {token}"}
    ask = lambda path, body: fleet.request("POST", path, body, headers=headers)[0]  # noqa: E731
    assert ask("/api/v1/devices/mine-1/labels", {"add": ["a"]}) == 200
    assert ask("/api/v1/devices/mine-1/labels", {"group": "theirs"}) == 403
    assert ask("/api/v1/devices/theirs-1/labels", {"add": ["a"]}) == 403
    assert ask("/api/v1/inventory", {"csv": render([Line("theirs-1", "x86-64", "mine", frozenset(), "")])}) == 400
    assert fleet.request("GET", "/api/v1/devices/theirs-1/history", headers=headers)[0] == 403
    exported = fleet.request("GET", "/api/v1/inventory", headers=headers)[1].decode()
    assert {line.id for line in parse(exported)} == {"mine-1"}


# --- history ----------------------------------------------------------------------------------------------------------


def digest(n: int) -> str:
    return f"sha256:{n:064x}"


def slot(version: int, name: Any = "active") -> SlotReport:
    target = f"models/intents/kitchen/{version}.0.0/x86-64"
    return SlotReport(model="intents/kitchen", slot=name, target=target, digest=digest(version))


def report(*slots: SlotReport, updates: tuple[UpdateReport, ...] = ()) -> Reported:
    return Reported(
        device="a", boot="b", starts=1, seq=1, nonce="n", time="2026-11-22T08:00:00.000Z", sealing_key="", agent="1",
        profile="x86-64", hardware="test", emulated=True, desired_epoch=1, desired_seq=1, slots=slots, updates=updates,
    )  # fmt: skip


def update(version: int, phase: Any, reason: str = "") -> UpdateReport:
    return UpdateReport(target="t", digest=digest(version), rollout="r-1", phase=phase, reason=reason)


@pytest.mark.parametrize(
    ("last", "new", "why"),
    [
        (None, report(slot(1)), "the device's first report"),
        (report(slot(1)), report(slot(2), updates=(update(2, "committed"),)), "updated by rollout r-1"),
        (report(slot(1)), report(slot(2), updates=(update(2, "probation"),)), "in probation by rollout r-1"),
        (
            report(slot(2)),
            report(slot(1), updates=(update(2, "failed", "it was slow"),)),
            "went back by rollout r-1: it was slow",
        ),
        (report(slot(1)), report(slot(3)), "rollout r-9 asked for it"),
        (report(slot(1)), report(slot(2)), "the device changed it by itself"),
        (report(slot(1)), report(), "it is not desired any more, or the device lost it"),
    ],
)
def test_why_a_model_changed(last: Reported | None, new: Reported, why: str) -> None:
    wanted = json.dumps([{"digest": digest(3), "rollout": "r-9"}])
    assert [change.why for change in changes(last, new, wanted)] == [why]


def test_a_report_that_changes_no_active_model_is_no_history() -> None:
    assert changes(report(slot(1)), report(slot(1), slot(2, "candidate")), "[]") == ()


def test_a_device_that_changes_its_model_with_every_report_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: one device, thousands of made-up models."""
    monkeypatch.setattr(history, "HELD", 10)
    database = Database.in_folder(tmp_path)
    with database.transaction() as session:
        row = Device(id="a", profile="x86-64", created="", token_hash="", token_expires="")
        session.add(row)
        last = None
        for n in range(1, 40):
            history.take_report(session, row, last, new := report(slot(n)), datetime(2026, 11, 22, tzinfo=UTC))
            last = new
        shown = history.of_device(session, row, 1000)
    database.close()
    assert len([e for e in shown["entries"] if e["what"] == "model"]) == 10
    assert shown["models"][0]["digest"] == digest(39)


def test_the_page_of_a_device_tells_what_ran_when_and_why(fleet: FleetProcess, new_device: Any) -> None:
    device = new_device("told")
    device.connect()
    device.answer_to(device.report(slots=(slot(1),)))
    device.answer_to(device.report(update(2, "committed"), slots=(slot(2), slot(1, "previous"))))
    device.answer_to(device.report(update(2, "failed", "p99 rose"), slots=(slot(1),)))
    told = fleet.api("GET", "/api/v1/devices/told/history")
    runs = [(m["digest"], m["why"], m["until"] is None) for m in told["models"]]
    assert runs == [
        (digest(1), "went back by rollout r-1: p99 rose", True),
        (digest(2), "updated by rollout r-1", False),
        (digest(1), "the device's first report", False),
    ]
    assert told["models"][1]["until"] == told["models"][0]["since"]
    kinds = {e["what"] for e in told["entries"]}
    assert {"model", "enrolment", "certificate"} <= kinds
    assert [e["at"] for e in told["entries"]] == sorted((e["at"] for e in told["entries"]), reverse=True)
    fleet.api("POST", "/api/v1/devices/told/revoke", {"reason": "sold"})
    until(lambda: "sold" in str(fleet.api("GET", "/api/v1/devices/told/history")["entries"]), what="the revocation")
