"""`shoal-agent`: enrol this machine, run the agent, ask how it is.

Exit codes: 0 done, 1 it did not work (one line on stderr says what to do), 2 wrong usage, 3 this device is not
enrolled, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib.resources
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.agent import Agent, locked
from agent.enrolment.wipe import finish_wipe
from agent.errors import AgentError, NotEnrolled, Unavailable
from agent.identity.credentials import Credentials
from agent.identity.identity import Identity
from agent.life.process import Process
from agent.life.ring import Ring
from agent.serving.doors import read_token
from agent.settings import AgentSettings, load
from agent.store.state import STATE_FILE, StateFile
from wire.errors import WireError
from wire.units import seconds

NOT_ENROLLED = 3
"""Exit code after which a service manager should not start the agent again by itself: the unit names it."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
REFUSED = 3
"""Refusals that the status shows, the newest ones."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options, os.environ)
    except (AgentError, WireError) as e:
        sys.stderr.write(f"shoal-agent {options.command}: {e}\n")
        return NOT_ENROLLED if isinstance(e, NotEnrolled) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"shoal-agent {options.command}: interrupted: the same command goes on where it was\n")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoal-agent", description="The Shoal agent of this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    enrolling = commands.add_parser("enrol", help="join a fleet with an enrolment kit")
    enrolling.add_argument("--kit", type=Path, required=True, help="the kit that the fleet made for this device")
    enrolling.add_argument(
        "--device", metavar="ID", help="name in a batch; default: made of the batch and this machine"
    )
    enrolling.add_argument(
        "--wait", metavar="TIME", help="how long to wait to be accepted, e.g. 10min; default: for ever"
    )
    enrolling.add_argument(
        "--keep-kit", action="store_true", help="do not remove a batch's kit from this machine after"
    )
    running = commands.add_parser("run", help="serve models until stopped")
    running.add_argument("--tcp", metavar="HOST:PORT", help="also answer on a loopback address, e.g. 127.0.0.1:8470")
    asking = commands.add_parser("status", help="how the agent of a state folder is")
    showing = commands.add_parser("token", help="print the token that a product app shows over TCP")
    commands.add_parser("unit", help="print the systemd unit of an agent")
    for command in (running, asking):
        command.add_argument("--socket", help="Unix socket of the local API; default STATE/agent.sock")
    for command in (enrolling, running, asking, showing):
        command.add_argument("--state", type=Path, required=True, help="folder with all that the agent keeps")
    for command in (enrolling, asking):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _enrol(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    from agent.enrolment.enrol import Patience, enrol  # noqa: PLC0415  what a device needs once is not in the memory of its agent

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    patience = Patience(seconds(options.wait, where="--wait") if options.wait else None, _tell)
    joined = enrol(options.kit, options.state.absolute(), options.device, patience, keep_kit=options.keep_kit)
    _print(
        options.json,
        {"device": joined.device, "profile": joined.profile.name, "fleet": joined.fleet},
        f"{joined.device} is enrolled at {joined.fleet} as {joined.profile.name}.\n"
        f"Start it: shoal-agent run --state {options.state}",
    )
    return 0


def _tell(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ring = Ring()
    logging.getLogger().addHandler(ring)
    settings = _settings(options, environment)
    if not settings.state.is_dir():
        Identity.load(settings.state)
    with locked(settings.state):
        finish_wipe(settings.state)
        credentials = Credentials.open(settings.state)
        again = asyncio.run(_serve(credentials, settings, environment, ring))
        if finish_wipe(settings.state):
            _tell(f"{settings.state}: wiped by the fleet: this device is not enrolled any more")
            return 0
    if again:
        _tell("starting again: the fleet asked for it")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  the same program once more
    return 0


async def _serve(credentials: Credentials, settings: AgentSettings, environment: Mapping[str, str], ring: Ring) -> bool:
    """Run the agent until it ends; whether it should be started again."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    state, clean = StateFile.open(settings.state / STATE_FILE), False
    process = Process.begin(settings.state, state, environment, ring)
    try:
        ending = await Agent(credentials, settings, state, process).run(stop)
        clean = True
    finally:
        process.close(clean=clean)
        state.close()
    return ending == "restart"


def _status(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(options, environment)
    status = _ask(settings)
    _print(options.json, status, _in_words(status))
    return 0


def _settings(options: argparse.Namespace, environment: Mapping[str, str]) -> AgentSettings:
    flags = {"socket": options.socket, "tcp": getattr(options, "tcp", None)}
    return load(options.state.absolute(), environment, flags)


def _ask(settings: AgentSettings) -> dict[str, Any]:
    path = settings.socket
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(5)
        connection.sock.connect(str(path))
        connection.request("GET", "/shoal/status")
        response = connection.getresponse()
        value: dict[str, Any] = json.loads(response.read())
        if response.status != http.client.OK:
            raise Unavailable(f"{path}: the agent cannot say how it is: {value.get('error', response.status)}")
    except (OSError, http.client.HTTPException, ValueError) as e:
        Identity.load(settings.state)  # says so when this device is not enrolled at all
        raise Unavailable(f"{path}: no agent answers ({e}): start it with shoal-agent run") from e
    finally:
        connection.close()
    return value


def _in_words(status: Mapping[str, Any]) -> str:
    emulated = ", emulated" if status["emulated"] else ""
    lines = [
        f"{status['device']}: {status['profile']}{emulated} on {status['hardware']}",
        f"line to the fleet: {_line_in_words(status['link'])}",
    ]
    if disk := status.get("disk"):
        lines.append(f"disk: NOTHING IS KEPT: {disk}")
    if certificate := status.get("certificate"):
        lines.append(f"certificate until {certificate['expires'][:10]}, renewal {certificate['renewal']}")
    if trust := status.get("trust"):
        lines.append(_trust_in_words(trust))
    lines += [f"{slot['slot']:<10} {slot['target']} {slot['digest'][:19]}" for slot in status["slots"]]
    lines += [f"update     {u['target']}: {u['phase']} {u['reason']}".rstrip() for u in status["updates"]]
    lines += [f"shadow     {_shadow_in_words(shadow)}" for shadow in status.get("shadows", [])]
    lines.append("telemetry  " + ", ".join(f"{n} {what}" for what, n in status["telemetry"].items()))
    lines += [f"refused    {e['at']} {e['subject']}: {e['reason']}" for e in status.get("security", [])[-REFUSED:]]
    return "\n".join(lines)


def _shadow_in_words(shadow: Mapping[str, Any]) -> str:
    counts = shadow["requests"]
    said = f", {counts.get('agreed', 0)} of {counts.get('compared', 0)} answers agree" if counts else ""
    return f"{shadow['target']}: {shadow['phase']} {shadow['reason']}".rstrip() + said


def _line_in_words(link: Mapping[str, Any]) -> str:
    since = f" since {link['since']}" if link.get("since") else ""
    if link["up"]:
        return f"up{since}" + ("" if link["fleet"] else ", and the fleet is away: it says so, or said nothing yet")
    why = f" ({link['why']})" if link.get("why") else ""
    return f"down{since or ' since the start'}{why}: models go on answering"


def _trust_in_words(trust: Mapping[str, Any]) -> str:
    if trust["frozen_since"]:
        return f"trust: FROZEN since {trust['frozen_since']}: {trust['why']}"
    heard = f"heard the fleet {trust['heard']}" if trust["heard"] else "the fleet was not heard since the start"
    return f"trust: {heard}, time by {'the fleet' if trust['time'] == 'signed' else 'the clock of this machine'}"


def _print(as_json: bool, value: Mapping[str, Any], words: str) -> None:
    sys.stdout.write((json.dumps(value) if as_json else words) + "\n")


def _token(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    sys.stdout.write(f"{read_token(options.state.absolute())}\n")
    return 0


def _unit(_options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    unit = importlib.resources.files("firmware_profiles") / "systemd" / "shoal-agent.service"
    sys.stdout.write(unit.read_text())
    return 0


_COMMANDS = {"enrol": _enrol, "run": _run, "status": _status, "token": _token, "unit": _unit}

if __name__ == "__main__":
    sys.exit(main())
