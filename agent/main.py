"""`shoal-agent`: enrol this machine, run the agent, ask how it is.

Exit codes: 0 done, 1 it did not work (one line on stderr says what to do), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.agent import STATE_FILE, Agent, locked
from agent.enrol import enrol
from agent.errors import AgentError, Unavailable
from agent.identity import Identity
from agent.settings import AgentSettings, load
from agent.state import StateFile
from wire.errors import WireError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options, os.environ)
    except (AgentError, WireError) as e:
        sys.stderr.write(f"shoal-agent {options.command}: {e}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoal-agent", description="The Shoal agent of this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    enrolling = commands.add_parser("enrol", help="join a fleet with an enrolment kit")
    enrolling.add_argument("--kit", type=Path, required=True, help="the kit that the fleet made for this device")
    running = commands.add_parser("run", help="serve models until stopped")
    running.add_argument("--tcp", metavar="HOST:PORT", help="also answer on a loopback address, e.g. 127.0.0.1:8470")
    asking = commands.add_parser("status", help="how the agent of a state folder is")
    for command in (running, asking):
        command.add_argument("--socket", help="Unix socket of the local API; default STATE/agent.sock")
    for command in (enrolling, running, asking):
        command.add_argument("--state", type=Path, required=True, help="folder with all that the agent keeps")
    for command in (enrolling, asking):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _enrol(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    joined = enrol(options.kit, options.state.absolute())
    _print(
        options.json,
        {"device": joined.device, "profile": joined.profile.name, "fleet": joined.fleet},
        f"{joined.device} is enrolled at {joined.fleet} as {joined.profile.name}.\n"
        f"Start it: shoal-agent run --state {options.state}",
    )
    return 0


def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = _settings(options, environment)
    identity = Identity.load(settings.state)
    with locked(settings.state):
        asyncio.run(_serve(identity, settings))
    return 0


async def _serve(identity: Identity, settings: AgentSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    state = StateFile.open(settings.state / STATE_FILE)
    try:
        await Agent(identity, settings, state).run(stop)
    finally:
        state.close()


def _status(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(options, environment)
    Identity.load(settings.state)
    status = _ask(settings.socket)
    _print(options.json, status, _in_words(status))
    return 0


def _settings(options: argparse.Namespace, environment: Mapping[str, str]) -> AgentSettings:
    flags = {"socket": options.socket, "tcp": getattr(options, "tcp", None)}
    return load(options.state.absolute(), environment, flags)


def _ask(path: Path) -> dict[str, Any]:
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
        raise Unavailable(f"{path}: no agent answers ({e}): start it with shoal-agent run") from e
    finally:
        connection.close()
    return value


def _in_words(status: Mapping[str, Any]) -> str:
    emulated = ", emulated" if status["emulated"] else ""
    lines = [
        f"{status['device']}: {status['profile']}{emulated} on {status['hardware']}",
        f"line to the fleet: {'up' if status['link']['up'] else 'down: models go on answering'}",
    ]
    lines += [f"{slot['slot']:<10} {slot['target']} {slot['digest'][:19]}" for slot in status["slots"]]
    lines += [f"update     {u['target']}: {u['phase']} {u['reason']}".rstrip() for u in status["updates"]]
    lines.append("telemetry  " + ", ".join(f"{n} {what}" for what, n in status["telemetry"].items()))
    return "\n".join(lines)


def _print(as_json: bool, value: Mapping[str, Any], words: str) -> None:
    sys.stdout.write((json.dumps(value) if as_json else words) + "\n")


_COMMANDS = {"enrol": _enrol, "run": _run, "status": _status}

if __name__ == "__main__":
    sys.exit(main())
