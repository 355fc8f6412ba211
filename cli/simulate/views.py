"""What a person sees of a simulation: a table that moves, and the figures at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from cli.output import table
from cli.simulate.run import Progress
from wire.units import show_size


def live(progress: Progress) -> RenderableType:
    """Where a simulation is."""
    tally, plan = progress.tally, progress.plan
    rows = [
        ["act", progress.act],
        ["devices", f"{tally.enrolled} of {plan.size} enrolled, {tally.running} run, {tally.online} online"],
        ["rollout", _rollout(progress.rollout)],
        ["updates", _counts(tally.phases)],
        ["chunks", f"{tally.chunks:,} taken, {show_size(tally.chunk_bytes)}; {tally.lost:,} messages lost by plan"],
        ["requests", _counts(tally.requests)],
        ["telemetry", _counts(tally.telemetry)],
        ["befallen", f"{tally.reboots} reboots, {tally.cuts} cuts"],
        ["this machine", f"the busiest process works {tally.busy:.0%} of its time"],
    ]
    return table("Simulation", ("What", "How"), rows)


def line(progress: Progress) -> str:
    """The same on one line, where there is no terminal."""
    tally = progress.tally
    return (
        f"{progress.act}: {tally.enrolled}/{progress.plan.size} enrolled, {tally.online} online, "
        f"updates {_counts(tally.phases)}, telemetry {_counts(tally.telemetry)}"
    )


def summary(result: Mapping[str, Any]) -> RenderableType:
    """The figures."""
    rollout, telemetry = result["rollout"], result["telemetry"]
    rows = [["devices", f"{result['devices']}: " + ", ".join(f"{n} {p}" for p, n in result["profiles"].items())]]
    rows += [[name, f"{seconds} s"] for name, seconds in result["times_s"].items()]
    if rollout:
        rows.append(["rollout", f"{rollout['state']} ({rollout['verdict']}): {_counts(rollout['devices'])}"])
    reboots = f"{result['reboots']} reboots ({result['reboots_in_update']} in an update)"
    rows += [
        ["telemetry", _counts(telemetry)],
        ["telemetry lost", f"{result['telemetry_lost']}"],
        ["requests", _counts(result["requests"])],
        [
            "chunks",
            f"{result['chunks']:,}, {show_size(result['chunk_bytes'])}; HTTPS {show_size(result['range_bytes'])}",
        ],
        ["befallen", f"{reboots}, {result['cuts']} cuts, {result['messages_lost']} messages lost"],
    ]
    reasons = [f"  {n} x {reason}" for reason, n in result["reasons"].items()]
    return Group(table(f"Simulated at {result['fleet']}", ("What", "How"), rows), *reasons)


def _rollout(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    states = Counter(device["state"] for device in value["devices"])
    return f"{value['state']}, wave {value['wave'] + 1} of {len(value['waves'])}: {_counts(states)}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()) if n)
