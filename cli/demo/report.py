"""Whether the demo held, and its closing tables. Judging is apart from showing; both read the same data."""

from __future__ import annotations

from typing import Any

from cli.output import console, table
from wire.units import show_size

MAX_DROP = 0.01


def faults(results: dict[str, Any]) -> list[str]:
    """What did not hold, in words; empty when all did."""
    offline, killed = results["offline"], results["killed"]
    broken, tampered = results["broken_release"], results["tampered_release"]
    answered_all = offline["answered"] == offline["requests"] > 0
    delivered_all = offline["delivered"] >= offline["produced"] > 0 and offline["lost_requests"] == 0
    kept_answering = broken["old_model_answers"] == broken["devices"]
    checks = {
        "a variant loses more than one point of accuracy": all(map(_holds_accuracy, results["variants"])),
        "a profile has no variant": sorted(v["profile"] for v in results["variants"]) == sorted(results["profiles"]),
        "a device is not online": [d["status"] for d in results["devices"]] == ["online"] * len(results["profiles"]),
        "a device answered without the broker less often than it was asked": answered_all,
        "telemetry was lost": delivered_all,
        "telemetry was stored twice": offline["duplicates"] == 0,
        "the kill did not hit an update": 0 < killed["chunks_at_kill"] < killed["chunks"],
        "the killed device did not come back right": killed["answered_after_restart"] and killed["active"] == "1.1.0",
        "the broken release was not refused everywhere": broken["refused"] == broken["devices"] and kept_answering,
        "the broken rollout was not aborted": broken["rollout"] == "aborted",
        "the tampered release was not refused": tampered["refused"] and tampered["old_model_answers"],
        "tampered bytes were stored": not tampered["stored"],
    }
    return [fault for fault, held in checks.items() if not held]


def _holds_accuracy(variant: dict[str, Any]) -> bool:
    # The compiler's own gate is one point as well; the last digit is room for rounding of the two fractions.
    return bool(variant["source_accuracy"] - variant["accuracy"] <= MAX_DROP + 1e-9)


def show(results: dict[str, Any], found: list[str]) -> None:
    """The closing table and the verdict."""
    offline, killed = results["offline"], results["killed"]
    broken, tampered = results["broken_release"], results["tampered_release"]
    variants = [
        [
            *(v["profile"], v["runtime"], v["precision"], show_size(v["bytes"])),
            *(f"{v['accuracy']:.3f}", f"{v['source_accuracy']:.3f}", f"{v['p50_ms']:.1f}", v["evidence"]),
        ]
        for v in results["variants"]
    ]
    columns = ("Profile", "Runtime", "Precision", "#Size", "#Accuracy", "#fp32 source", "#p50 ms", "Latency is")
    console.print(table("Variants, on the same held-out sentences", columns, variants))
    rows = [
        ["Broker gone", f"{offline['answered']} of {offline['requests']} requests answered"],
        [
            "Telemetry",
            f"{offline['delivered']} of {offline['produced']} records delivered, {offline['duplicates']} twice",
        ],
        [
            "SIGKILL in an update",
            f"at chunk {killed['chunks_at_kill']} of {killed['chunks']}; now runs {killed['active']}",
        ],
        [
            "Broken release",
            f"refused by {broken['refused']} of {broken['devices']} devices, rollout {broken['rollout']}",
        ],
        [
            "Tampered release",
            "refused, nothing stored" if tampered["refused"] and not tampered["stored"] else "NOT refused",
        ],
        ["Time", f"{results['seconds']:.0f} s"],
    ]
    console.print(table("What happened", ("What", "Outcome"), rows))
    verdict = "[bold red]It did not hold.[/]" if found else "[bold green]All of it held.[/]"
    console.print(verdict)
