"""The ports that a fleet listens on: those asked for, those of last time, where devices look, or any that is free."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from fleet.api.server import Listener
from fleet.errors import Unavailable
from fleet.mqtt.broker import BrokerAddress, end_left_behind
from fleet.settings import FleetSettings
from fleet.store.folder import RunFile


@contextmanager
def listener(settings: FleetSettings) -> Iterator[socket.socket]:
    """The HTTPS port, taken at once so that a taken one is told before anything starts."""
    last = RunFile.load(settings.data)
    with (
        _bind(settings.https_host, settings.https_port, last.https if last else 0, "https") as bound,
        Listener(bound, most=settings.max_connections) as listener,
    ):
        yield listener


def broker_address(settings: FleetSettings) -> BrokerAddress:
    """The broker's port. mosquitto binds it itself, so a free one is found, let go and named in its configuration."""
    end_left_behind(settings.data / "broker")
    last = RunFile.load(settings.data)
    with _bind(settings.broker_host, settings.broker_port, last.broker if last else 0, "broker") as found:
        return BrokerAddress(settings.broker_host, found.getsockname()[1])


def _bind(host: str, port: int, last: int, option: str) -> socket.socket:
    """A socket on the port that was asked for; for 0 the one of last time, where devices look, or any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port else [last, 0] if last else [0]:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, candidate))
            bound.listen()  # a port that is only bound can be bound by another program too
        except OSError as e:
            bound.close()
            if candidate in (port, 0):
                raise Unavailable(
                    f"port {candidate} on {host}: {e.strerror}: free it, or choose another one with "
                    f"--{option} ADDRESS:PORT or the setting {option}_port"
                ) from e
        else:
            return bound
    raise AssertionError("unreachable: the last candidate returns or raises")
