"""Rollouts and plans as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType

from cli.output import table
from wire.units import show_size

ENDED: Final = ("done", "aborted", "rolled-back")
"""States of a rollout that has ended."""
_STYLES: Final = {"PROCEED": "green", "HOLD": "yellow", "ABORT": "red"}
_DEVICES: Final = 200
"""Devices of a rollout or a wave that are shown; all are in the JSON."""
_COLUMNS: Final = ("Rollout", "Release", "To", "State", "Verdict", "Wave", "Devices")


def rollouts_view(values: list[dict[str, Any]]) -> RenderableType:
    """A row a rollout."""
    rows = [[*_head(v), _time(v["started"]), "; ".join(v["reasons"][:2])] for v in values]
    return table("Rollouts", (*_COLUMNS, "Started", "Reasons"), rows, empty="no rollout yet: shoal rollout start")


def rollout_view(value: Mapping[str, Any]) -> RenderableType:
    """One rollout: where it stands and why, each profile, each device that it reached, and what happened."""
    _, release, to, state, verdict, wave, devices = _head(value)
    title = f"Rollout {value['rollout']}: {release} to {to}: {state}, wave {wave}, {devices} devices, {verdict}"
    parts: list[RenderableType] = [title, *(f"  {reason}" for reason in value["reasons"])]
    if len(value["profiles"]) > 1 or any(p["verdict"] for p in value["profiles"]):
        parts.append(_profiles(value["profiles"]))
    shown = value["devices"][:_DEVICES]
    rows = [[d["device"], d["target"], d["before"], d["wave"] + 1, d["state"], d["reason"]] for d in shown]
    columns = ("Device", "Release", "Before", "#Wave", "State", "Reason")
    parts.append(table("Devices that it reached", columns, rows, empty="none so far"))
    parts += _more(value["devices"])
    if value.get("history"):
        events = [[_time(e["at"]), e["who"], e["what"], e["profile"], e["reason"]] for e in value["history"]]
        parts.append(table("What happened", ("At", "Who", "What", "Profile", "Why"), events))
    return Group(*parts)


def plan_view(plan: Mapping[str, Any]) -> RenderableType:
    """Who gets what, in which wave, and when at the earliest."""
    waves = [
        [w["wave"] + 1, w["share"], len(w["devices"]), show_size(w["bytes"]), _time(w["begins"]) or "not foreseeable"]
        for w in plan["waves"]
    ]
    everyone = [(w["wave"] + 1, d) for w in plan["waves"] for d in w["devices"]]
    rows = [[n, d["device"], d["profile"], d["before"], d["target"], d["hindered"]] for n, d in everyone[:_DEVICES]]
    parts: list[RenderableType] = [
        table(f"Plan {plan['plan']}: nothing is sent", ("#Wave", "Share", "#Devices", "#Bytes", "Not before"), waves),
        table("Who gets what", ("#Wave", "Device", "Profile", "Runs now", "Gets", "Not now, because it"), rows),
        *_more(everyone),
    ]
    if plan["excluded"]:
        left = [[e["device"], e["reason"]] for e in plan["excluded"][:_DEVICES]]
        parts += [table("Left out", ("Device", "Reason"), left), *_more(plan["excluded"])]
    return Group(*parts, f"  as planned: shoal rollout start ... --plan {plan['plan']}")


def reason_of(value: Mapping[str, Any]) -> str:
    """Why a rollout stands where it does, in one line."""
    return "; ".join(value["reasons"]) or "no reason given"


def aborted_profiles(value: Mapping[str, Any]) -> list[str]:
    """Profiles on which a rollout was aborted, with the reason."""
    fallen = [p for p in value["profiles"] if p["state"] == "aborted"]
    return [f"{p['profile']}: {'; '.join(p['reasons'])}" for p in fallen]


def _profiles(profiles: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [p["profile"], p["state"], _styled(p["verdict"]), _counts(p["counts"]), "; ".join(p["reasons"])]
        for p in profiles
    ]
    return table("Profiles", ("Profile", "State", "Gates", "Devices", "Because"), rows)


def _head(v: Mapping[str, Any]) -> list[str]:
    wave = f"{min(v['wave'] + 1, len(v['waves']))} of {len(v['waves'])} ({', '.join(v['waves'])})"
    to = v["target"] + (f" of group {v['group']}" if v["group"] else "")
    committed = v["counts"].get("committed", 0)
    release = f"{v['family']}/{v['name']} {v['version']}"
    return [v["rollout"], release, to, v["state"], _styled(v["verdict"]), wave, f"{committed} of {v['eligible']}"]


def _styled(verdict: str | None) -> str:
    return f"[{_STYLES.get(verdict, 'white')}]{verdict}[/]" if verdict else ""


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in counts.items())


def _more(devices: list[Any]) -> list[RenderableType]:
    more = len(devices) - _DEVICES
    return [f"  and {more} more: --json names all"] if more > 0 else []


def _time(text: str | None) -> str:
    return text[:19].replace("T", " ") if text else ""
