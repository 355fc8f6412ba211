"""What a report of a device is, seen from the last one that was believed: news, the same again, or not to be believed.

Pure. `(starts, seq)` rises with every report of a device, so an older one is a recording or comes from a copy of it.
"""

from __future__ import annotations

from typing import Literal

from fleet.errors import Untrusted
from wire.messages import Reported, TelemetryBatch

Judgement = Literal["new", "repeat", "stale"]


def judge_report(last: Reported | None, report: Reported, *, retained: bool) -> Judgement:
    """`repeat` is the last one again, `stale` an older one that only the broker's memory brings. Raises `Untrusted`."""
    if last is None or report.starts > last.starts:
        return "new"
    if report.starts == last.starts and report.boot != last.boot:
        raise Untrusted(
            f"report of {report.device}: start {report.starts} is boot {report.boot[:40]}, and boot {last.boot[:40]} "
            "reported as the same start: two machines use this identity: revoke the device and enrol it anew"
        )
    if report == last:
        return "repeat"
    if report.number > last.number:
        return "new"
    if retained and report.number < last.number:
        return "stale"
    raise Untrusted(f"report {_show(report.number)} of {report.device}: {_show(last.number)} came before: {_SUSPECT}")


def check_batch(last: tuple[int, int], batch: TelemetryBatch) -> Literal["new", "repeat"]:
    """`repeat` has the number of the last one: MQTT delivers at least once. Raises `Untrusted` for an older one."""
    if batch.number < last:
        raise Untrusted(f"telemetry {_show(batch.number)} of {batch.device}: {_show(last)} came before: {_SUSPECT}")
    return "repeat" if batch.number == last else "new"


_SUSPECT = "a recording that somebody sends again, or a second machine with this identity"


def _show(number: tuple[int, int]) -> str:
    return f"{number[0]}.{number[1]}"
