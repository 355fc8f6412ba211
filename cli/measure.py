"""`shoal measure`: have a device time a release that it does not run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, console, show, table
from wire.document import check_device, check_token
from wire.messages import MachineState, Timing

app = typer.Typer(help="Have a device time a release that it does not run.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(help="Id of the job.")]
_PATH = "/api/v1/measuring"


@app.command()
def start(
    target: Annotated[str, typer.Option(help="Target path: models/FAMILY/NAME/VERSION/PROFILE.")],
    device: Annotated[list[str], typer.Option(help="Device id; more than one for a job each.")],
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each golden input is timed.")] = 100,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Send a release to devices of its profile, to be timed and given back. It answers no request there."""
    fleet = Fleet.connect(data)
    named = [check_device(name, "device") for name in device]
    jobs = [fleet.post(_PATH, {"target": target, "device": name, "rounds": rounds}) for name in named]
    show(jobs, as_json, job_table(jobs))


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every measuring job, the newest first."""
    jobs = Fleet.connect(data).get(_PATH)
    show(jobs, as_json, job_table(jobs))


@app.command("show")
def show_(
    job: Annotated[str | None, typer.Argument(help="Id of the job.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="All jobs of this release.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what was measured. With --json: a list of evidence records."""
    if (job is None) == (target is None):
        raise BadInput("measure show: name either a job, or a release with --target")
    jobs = _jobs(Fleet.connect(data), job, target)
    show(evidence(jobs), as_json, job_table(jobs))
    if not as_json:
        for one in jobs:
            if one["timing"]:
                console.print(_machine_table(one))


@app.command()
def cancel(job: Job, data: Data = None, as_json: Json = False) -> None:
    """Take a job back that has not ended."""
    value = Fleet.connect(data).post(f"{_PATH}/{check_token(job, 'job')}/cancel", {})
    show(value, as_json, f"{job}: {value['state']}")


def evidence(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every figure of some jobs: the fields of `wire.evidence.Measurement`, with target, digest and job."""
    return [
        {**figure, "target": job["target"], "digest": job["digest"], "job": job["job"]}
        for job in jobs
        for figure in job["measurements"]
    ]


def job_table(jobs: list[dict[str, Any]]) -> RenderableType:
    """One row a job."""
    columns = ("Job", "Device", "Release", "State", "#p50 ms", "#p99 ms", "#n", "Is", "Why")
    return table("Measuring jobs", columns, [_row(job) for job in jobs], empty="none yet: shoal measure start")


def _jobs(fleet: Fleet, job: str | None, target: str | None) -> list[dict[str, Any]]:
    if job is not None:
        return [fleet.get(f"{_PATH}/{check_token(job, 'job')}")]
    return [one for one in fleet.get(_PATH) if one["target"] == target]


def _row(job: dict[str, Any]) -> list[object]:
    head = [job["job"], job["device"], job["target"], job["state"]]
    if not job["timing"]:
        return [*head, None, None, None, None, job["reason"]]
    timing = Timing.from_value(job["timing"])
    kinds = {figure["kind"] for figure in job["measurements"]}
    why = "the clock was held down: no evidence" if job["throttled"] else job["reason"]
    return [*head, f"{timing.p50_ms:.2f}", f"{timing.p99_ms:.2f}", timing.n, ", ".join(kinds) or "throttled", why]


def _machine_table(job: dict[str, Any]) -> RenderableType:
    timing = Timing.from_value(job["timing"])
    rows = [_state("before", timing.before), _state("after", timing.after)]
    columns = ("", "Throttled", "#°C", "#MHz", "#Most MHz", "Governor", "Power mode", "Power", "#Load")
    return table(f"{job['job']}: {job['hardware']}, {timing.runtime}", columns, rows)


def _state(when: str, state: MachineState) -> list[object]:
    throttled = {True: "yes", False: "no", None: None}[state.throttled]
    figures = [state.temperature_c, state.cpu_mhz, state.cpu_max_mhz]
    return [when, throttled, *figures, state.governor, state.power_mode, state.power, state.load]
