"""Two whole fleets on one PostgreSQL database: one leads, the other takes over, and the first one acts no more."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle, until
from postgres_cluster import postgres, program

from wire.messages import SlotReport, UpdateReport
from wire.orders import Desired

pytest.importorskip("psycopg")
pytestmark = [
    pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed: scripts/setup"),
    pytest.mark.slow,
]
TAKEN_OVER = 75.0
"""Seconds: the lease of the one before runs out after 30."""


@contextmanager
def stopped(fleet: FleetProcess) -> Iterator[None]:
    """Its process stands still, and goes on afterwards."""
    pid = fleet.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def refusal(fleet: FleetProcess, path: str) -> str:
    """What the fleet says when it may not act; "" when it did."""
    headers = {"Authorization": f"Bearer {fleet.token}"}
    status, said = fleet.request("POST", path, {"reason": "a test"}, headers=headers)
    assert status in (200, 503), said
    return "" if status == 200 else said.decode()


def commit(device: Any, desired: Desired) -> None:
    (model,) = desired.models
    update = UpdateReport(target=model.target, digest=model.digest, rollout=model.rollout, phase="committed")
    slot = SlotReport(model="kitchen", slot="active", target=model.target, digest=model.digest)
    device.report(update, slots=(slot,), desired_seq=desired.seq)


def test_a_stand_by_takes_a_rollout_over_and_the_one_that_stood_still_acts_no_more(
    tmp_path: Path, enrolling: Any
) -> None:
    """Accident: the leader's machine stands still for longer than its lease, and goes on as if nothing had been."""
    with (
        postgres() as url,
        FleetProcess(tmp_path / "one" / "fleet", database=url) as leader,
        enrolling(leader, tmp_path) as new_device,
    ):
        release = initialise_trust(leader).release(*tiny_bundle("1.0.0"))
        devices = {name: new_device(name) for name in ("a", "b")}
        for device in devices.values():
            device.connect()
            assert device.next_desired(seq=1).models == ()
            device.answer_to(device.report())
        body = {"family": "intents", "name": "kitchen", "version": "1.0.0", "waves": [50, 100], "gates": "install"}
        rollout = leader.api("POST", "/api/v1/rollouts", body)
        path = f"/api/v1/rollouts/{rollout['rollout']}"
        (first,) = [d["device"] for d in rollout["devices"] if d["state"] == "sent"]
        (second,) = devices.keys() - {first}
        sent = devices[first].next_desired(seq=2)

        folder = tmp_path / "two" / "fleet"
        shutil.copytree(leader.data, folder)
        with FleetProcess(folder, database=url) as stand_by:
            assert stand_by.api("GET", path)["state"] == "running"
            assert "another process of this fleet leads" in refusal(stand_by, f"{path}/pause")
            for device in devices.values():
                device.disconnect()
                device.fleet = stand_by
            with stopped(leader):
                until(lambda: not refusal(stand_by, f"{path}/pause"), what="the stand-by leads", within=TAKEN_OVER)
                assert not refusal(stand_by, f"{path}/resume")
                for device in devices.values():
                    device.connect()
                again = devices[first].next_desired(seq=2)
                assert (again.seq, again.models) == (sent.seq, sent.models)
                commit(devices[first], again)
                last = devices[second].next_desired(seq=2)
                assert last.models[0].digest == release.digest
            assert "another process of this fleet leads" in refusal(leader, f"{path}/abort")
            commit(devices[second], last)
            ended = until(lambda: ended_as(stand_by, path, "done"), what="the end of the rollout")
            assert {d["state"] for d in ended["devices"]} == {"committed"}
            assert leader.api("GET", path)["state"] == "done"


def ended_as(fleet: FleetProcess, path: str, state: str) -> Any:
    shown = fleet.api("GET", path)
    return shown if shown["state"] == state else None
