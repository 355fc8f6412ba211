"""The command `shoal simulate`."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import Yes, confirm
from cli.client import Fleet
from cli.errors import BadInput, Refused, Unavailable
from cli.options import Data
from cli.output import Json, errors, show
from wire.units import seconds, size

if TYPE_CHECKING:
    from cli.simulate.plan import Plan
    from cli.simulate.run import Progress, Rollout, Scene, Watch

_SAY_EVERY_S = 10.0


def simulate(
    plan: Annotated[Path | None, typer.Option(help="Plan of the simulation, a TOML file.")] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Devices of profile x86-64, without a plan.  [default: 50]")
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="NAME=COUNT: devices of a profile. May be repeated.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the plan: NAME=VALUE. May be repeated.")
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="At a fleet that is made for it and goes afterwards.")] = False,
    model_size: Annotated[str, typer.Option("--size", help="With --own: size of the made-up model.")] = "256 KiB",
    rollout: Annotated[
        str | None, typer.Option(help="FAMILY/NAME@VERSION to roll out to the simulated devices.")
    ] = None,
    waves: Annotated[str, typer.Option(help="Rising shares of the devices in percent, ending at 100.")] = "100",
    duration: Annotated[str, typer.Option("--for", help="Without a rollout: how long to run.")] = "1 min",
    timeout: Annotated[str, typer.Option(help="Longest time to enrol, to come up, and to roll out; each.")] = "1 h",
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes that play the devices.")] = 2,
    remove: Annotated[
        bool, typer.Option("--remove", help="Simulate nothing: retire the simulated devices of earlier runs.")
    ] = False,
    yes: Yes = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Play many devices at a fleet: they enrol, update, answer and report as real ones, and say what they are.

    The fleet is the one that runs, or with --own one of the simulation's own.
    """
    from cli.simulate import run, views  # noqa: PLC0415

    wanted = _plan(plan, devices, profile or [], assignments or [])
    if remove:
        _remove(Fleet.connect(data), wanted, yes=yes, as_json=as_json)
        return
    if own and rollout is not None:
        raise BadInput("--own: its fleet has a model of its own, which is rolled out: leave --rollout out")
    _check_installed()
    limits = {"seconds": seconds(duration, where="--for"), "timeout": seconds(timeout, where="--timeout")}
    with _folder() as folder, ExitStack() as stack:
        what: Rollout | None
        if own:
            fleet, what = _own_fleet(stack, folder, wanted, size(model_size, where="--size"), waves)
        else:
            fleet, what = Fleet.connect(data), _rollout(rollout, waves) if rollout else None
            asked = f"Enrol {wanted.size} simulated devices, group {wanted.group}, at {fleet.url}?"
            confirm(asked, yes=yes)
        scene = run.Scene(plan=wanted, fleet=fleet, folder=folder, processes=processes, rollout=what, **limits)
        result = _play(scene, as_json=as_json)
    show(result, as_json, views.summary(result))
    if not own and not as_json:
        errors.print("The devices stay in the fleet's books, and their keys are gone: shoal simulate --remove")
    if what is not None and result["rollout"]["state"] != "done":
        raise Refused(f"the rollout ended {result['rollout']['state']}: {'; '.join(result['rollout']['reasons'])}")


def _plan(file: Path | None, devices: int | None, profiles: list[str], assignments: list[str]) -> Plan:
    from cli.simulate.plan import Plan  # noqa: PLC0415

    if file is not None and (devices is not None or profiles):
        raise BadInput("--plan: it says how many devices each profile has: leave --devices and --profile out")
    value = _read(file) if file is not None else {"profiles": _profiles(devices, profiles)}
    return Plan.from_value({**value, **dict(_setting(text) for text in assignments)}, str(file or "options"))


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as e:
        raise BadInput(f"{file}: not readable: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadInput(f"{file}: not TOML: {e}") from e


def _profiles(devices: int | None, profiles: list[str]) -> dict[str, dict[str, int]]:
    if devices is not None and profiles:
        raise BadInput("--devices and --profile: name either a number, or a number for each profile")
    if not profiles:
        return {"x86-64": {"devices": devices or 50}}
    found = {}
    for text in profiles:
        name, _, count = text.partition("=")
        if not (count.isascii() and count.isdigit()):
            raise BadInput(f"--profile {text!r}: expected NAME=COUNT, such as raspberry-pi-4=100")
        found[name] = {"devices": int(count)}
    return found


def _setting(text: str) -> tuple[str, object]:
    """A value is read as TOML has it, and a bare word as a text: `loss=0.05`, `cut_for=10 s`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--set {text!r}: expected NAME=VALUE, such as --set loss=0.05")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _rollout(text: str, waves: str) -> Rollout:
    from cli.simulate.run import Rollout  # noqa: PLC0415

    model, _, version = text.partition("@")
    family, _, name = model.partition("/")
    if not (family and name and version):
        raise BadInput(f"--rollout {text!r}: expected FAMILY/NAME@VERSION, such as intents/kitchen@1.2.0")
    return Rollout(family=family, name=name, version=version, waves=waves)


def _own_fleet(stack: ExitStack, folder: Path, plan: Plan, model: int, waves: str) -> tuple[Fleet, Rollout]:
    from cli.simulate import throwaway  # noqa: PLC0415

    fleet = stack.enter_context(throwaway.OwnFleet(folder)).api
    known = {p["name"]: p for p in fleet.get("/api/v1/profiles")}
    unknown = sorted(plan.profiles.keys() - known.keys())
    if unknown:
        raise BadInput(
            f"profile {', '.join(unknown)}: there is none of that name; known are {', '.join(sorted(known))}"
        )
    runtimes = {name: str(known[name]["runtimes"][0]["name"]) for name in plan.profiles}
    throwaway.publish(fleet, folder, runtimes, versions=["1.0.0"], size=model, seed=plan.seed)
    return fleet, _rollout(f"{throwaway.FAMILY}/{throwaway.MODEL}@1.0.0", waves)


def _play(scene: Scene, *, as_json: bool) -> dict[str, Any]:
    from cli.simulate import run  # noqa: PLC0415

    with _watched(as_json=as_json) as watch:
        return asyncio.run(run.simulate(scene, watch))


@contextmanager
def _watched(*, as_json: bool) -> Iterator[Watch]:
    """A table that moves, on a terminal; else a line now and then, on standard error."""
    from cli.simulate import views  # noqa: PLC0415

    if sys.stderr.isatty() and not as_json:
        from rich.live import Live  # noqa: PLC0415

        with Live(console=errors, refresh_per_second=2, transient=True) as moving:
            yield lambda progress: moving.update(views.live(progress))
        return
    last = 0.0

    def say(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_EVERY_S:
            last = time.monotonic()
            errors.print(views.line(progress), highlight=False, soft_wrap=True)

    yield say


def _remove(fleet: Fleet, plan: Plan, *, yes: bool, as_json: bool) -> None:
    from cli.simulate import run  # noqa: PLC0415

    confirm(f"Retire every simulated device {plan.prefix}-* of group {plan.group} at {fleet.url}?", yes=yes)
    count = run.remove(fleet, plan)
    show({"removed": count}, as_json, f"{count} simulated devices of group {plan.group} are retired")


def _check_installed() -> None:
    """The devices are the agent's own code."""
    try:
        import cli.simulate.device  # noqa: F401, PLC0415
    except ModuleNotFoundError as e:
        raise Unavailable(f"{e.name} is not installed: the simulated devices need the extra agent: shoal[agent]") from e


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory where there is such a place: thousands of devices flush their files."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  a folder of our own in it
    folder = Path(tempfile.mkdtemp(prefix=f"shoal-sim-{os.getpid()}-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
