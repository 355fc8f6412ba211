"""Rollouts and plans as the API shows them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlmodel import Session

from fleet.rollout import history, reading
from fleet.rollout.planning import Plan
from fleet.store.tables import RolloutDevice, RolloutRow
from fleet.trust.repository import ListedRelease
from wire.bundle import split_target
from wire.orders import DesiredModel
from wire.units import show_instant


def view(session: Session, row: RolloutRow, *, whole: bool = True) -> dict[str, Any]:
    """A rollout with its devices; the `whole` of it has its history too. `eligible`: how many it may reach in all."""
    terms = json.loads(row.terms)
    members = reading.members(session, row.id)
    shown: dict[str, Any] = {
        "rollout": row.id,
        "family": row.family,
        "name": row.name,
        "version": row.version,
        "group": row.group,
        "target": terms.get("target", "all"),
        "waves": json.loads(row.waves),
        "wave": row.wave,
        "state": row.state,
        "verdict": row.verdict,
        "reasons": json.loads(row.reasons),
        "started": row.started,
        "created_by": row.created_by,
        "approved_by": row.approved_by,
        "deadline": terms.get("deadline"),
        "eligible": row.eligible,
        "counts": dict(Counter(m.state for m in members)),
        "profiles": _profiles(session, row, members),
        "devices": [_device(m) for m in members],
    }
    return {**shown, "terms": terms, "history": history.of_rollout(session, row.id)} if whole else shown


def _device(member: RolloutDevice) -> dict[str, Any]:
    before = DesiredModel.from_bytes(member.before.encode()) if member.before else None
    return {
        "device": member.device,
        "profile": member.profile,
        "target": member.target,
        "wave": member.wave,
        "state": member.state,
        "reason": member.reason,
        "attempt": member.attempt,
        "before": before and split_target(before.target)[2],
        "reached": member.admitted,
        "committed": member.committed,
    }


def _profiles(session: Session, row: RolloutRow, members: Any) -> list[dict[str, Any]]:
    """What the gates say of each profile that was reached."""
    kept, counts = reading.profiles(session, row.id), Counter((m.profile, m.state) for m in members)
    names = sorted({m.profile for m in members} | {name for name, one in kept.items() if one.judged})
    shown = []
    for name in names:
        one = kept.get(name)
        shown.append(
            {
                "profile": name,
                "state": one.state if one else "open",
                "verdict": one.verdict if one and (one.judged or one.state == "aborted") else None,
                "reasons": json.loads(one.reasons) if one else [],
                "numbers": json.loads(one.numbers) if one else {},
                "judged": one.judged if one else "",
                "counts": {state: n for (profile, state), n in sorted(counts.items()) if profile == name},
            }
        )
    return shown


def plan_view(
    id_: str, plan: Plan, releases: Mapping[str, ListedRelease], excluded: Mapping[str, str]
) -> dict[str, Any]:
    """A plan: who gets what, in which wave, and when at the earliest."""
    targets = {profile: listed.release.target for profile, listed in releases.items()}
    return {
        "plan": id_,
        "devices": sum(len(wave.devices) for wave in plan.waves),
        "profiles": dict(sorted(plan.profiles().items())),
        "ends": None if plan.ends is None else show_instant(plan.ends),
        "waves": [
            {
                "wave": number,
                "share": wave.share,
                "begins": None if wave.begins is None else show_instant(wave.begins),
                "bytes": wave.size,
                "devices": [
                    {
                        "device": d.device,
                        "profile": d.profile,
                        "target": targets[d.profile],
                        "before": d.runs,
                        "hindered": d.hindered,
                    }
                    for d in wave.devices
                ],
            }
            for number, wave in enumerate(plan.waves)
        ],
        "excluded": [{"device": device, "reason": reason} for device, reason in excluded.items()],
    }
