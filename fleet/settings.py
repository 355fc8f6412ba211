"""Every setting of the fleet: name, default, unit and check, on one line each.

Values come from `<data>/fleet.toml`, then the environment (`SHOAL_FLEET_HTTPS_PORT`), then the command line; the later
one wins. A bad value stops the start, and the message names the place and the key.

    settings = load(Path("data"), environ=os.environ, overrides={"https_port": 0})
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import Malformed
from fleet.readers import (
    LEVELS,
    Read,
    choice,
    count,
    database_url,
    duration,
    file,
    names,
    number,
    port,
    setting,
    size,
    text,
    url,
)
from wire.errors import Malformed as WireMalformed

FILE = "fleet.toml"
PREFIX = "SHOAL_FLEET_"


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """Durations are held in seconds, sizes in bytes, rates in bytes per second."""

    data: Path
    https_host: str = setting(text, "0.0.0.0")  # noqa: S104  devices come from the network
    https_port: int = setting(port, 8443)
    broker_host: str = setting(text, "0.0.0.0")  # noqa: S104
    broker_port: int = setting(port, 8883)
    public_names: tuple[str, ...] = setting(names, "localhost")
    """Names and addresses in the server certificate; the first one goes into enrolment kits."""
    mosquitto: str = setting(text, "mosquitto")
    log_level: str = setting(choice(*LEVELS), "info")

    gather: float = setting(duration("0 ms", "10 s"), "50 ms")
    """How long wishes for a blob are gathered before it is sent; each newcomer prolongs that, up to ten times."""
    transfer_rate: int = setting(size("0 B", "10 GiB"), "32 MiB")
    """Bytes of chunks per second; 0 B sends as fast as the broker takes them."""
    offline_after: float = setting(duration("100 ms", "1 d"), "90 s")
    """How long a device that the broker remembers as online may stay silent after the broker came back."""
    late_after: float = setting(duration("100 ms", "1 d"), "30 s")
    """By how much a device's telemetry may be overdue, on top of its window, before it is late, its figures stale."""
    settle_after: float = setting(duration("100 ms", "30 d"), "10 min")
    """How long the devices of a wave have to answer before a failure aborts without the silent ones."""
    judge_every: float = setting(duration("100 ms", "1 d"), "30 s")
    """How often the gates of a rollout are asked while nothing else changes; devices report once a minute."""

    kit_lifetime: float = setting(duration("1 s", "365 d"), "1 d")
    server_lifetime: float = setting(duration("5 s", "3650 d"), "397 d")
    """Of the certificates of HTTPS port, broker and the fleet's own client; renewed when a third of it is left."""
    certificate_lifetime: float = setting(duration("1 s", "3650 d"), "365 d")
    ack_lifetime: float = setting(duration("1 s", "1 d"), "10 min")
    """How late a device may find an acknowledgement, counted from its report or batch."""
    command_lifetime: float = setting(duration("1 s", "30 d"), "10 min")
    wipe_lifetime: float = setting(duration("1 s", "3650 d"), "30 d")
    """How long a device that retires while it is away may find the command to wipe itself."""
    desired_lifetime: float = setting(duration("1 s", "3650 d"), "30 d")
    timestamp_lifetime: float = setting(duration("1 s", "365 d"), "7 d")
    snapshot_lifetime: float = setting(duration("1 s", "365 d"), "30 d")

    database: str = setting(database_url, "")
    """Address of a PostgreSQL database, `postgresql://user@host/name`; empty: SQLite in the data folder."""
    database_password_file: Path | None = setting(file, "")  # noqa: RUF009  it makes a field
    """File with the password for it, so that none stands in a setting."""
    telemetry_kept: float = setting(duration("0 s", "365 d"), "1 h")
    """How long telemetry records stay as they came; what they count stays for longer."""
    events_kept: float = setting(duration("0 s", "3650 d"), "90 d")
    """How long the events that devices tell of are kept."""
    windows_kept: float = setting(duration("10 min", "14 d"), "2 h")
    """How long evidence stays in windows of 10 minutes before they become hours."""
    hours_kept: float = setting(duration("1 h", "400 d"), "14 d")
    """How long evidence stays in hours before they become days."""
    days_kept: float = setting(duration("1 d", "3650 d"), "400 d")
    """How long evidence is kept at all."""

    session_lifetime: float = setting(duration("1 s", "30 d"), "12 h")
    """How long a login with a password lasts."""

    upstream: str = setting(url, "")
    """Base address of an OpenAI-compatible endpoint, up to and with /v1; empty: no cloud tier."""
    upstream_key_file: Path | None = setting(file, "")  # noqa: RUF009  it makes a field
    upstream_timeout: float = setting(duration("100 ms", "1 h"), "60 s")

    mqtt_rate: float = setting(number(1, 10_000), "20")
    """MQTT messages of each kind per second from one device, five seconds' worth at once."""
    http_rate: float = setting(number(1, 10_000), "100")
    """HTTPS requests per second from one source, ten times as many at once; a tenth of it for logins and enrolment."""
    max_connections: int = setting(count(10, 100_000), "800")
    """HTTPS connections at one time; from one source at most 200. All open files together have to stay below 1024: a
    common limit of a process, and what the MQTT client can wait on."""
    broker_connections: int = setting(count(10, 100_000), "10000")
    """MQTT connections at one time; each costs the broker 24 KiB."""
    max_body: int = setting(size("1 KiB", "1 GiB"), "16 MiB")
    max_blob: int = setting(size("1 KiB", "1024 GiB"), "4 GiB")

    compiler_python: Path | None = setting(file, "")  # noqa: RUF009  as above
    """Python of the environment that the compiler is installed in; empty: the fleet's own."""
    builds_at_once: int = setting(count(1, 64), "1")
    build_user: str = setting(text, "")
    """System user that the compiler runs as, when root runs the fleet; empty: as the fleet."""
    build_memory: int = setting(size("64 MiB", "1024 GiB"), "4 GiB")
    """Of a compiler with all that it starts; three quarters of it are for what it makes at the same time."""
    build_disk: int = setting(size("16 MiB", "1024 GiB"), "16 GiB")
    build_time: float = setting(duration("1 s", "30 d"), "2 h")
    max_source: int = setting(size("1 KiB", "1024 GiB"), "4 GiB")

    def __post_init__(self) -> None:
        if self.snapshot_lifetime < self.timestamp_lifetime:
            raise Malformed("snapshot_lifetime: expected at least timestamp_lifetime")
        if not self.windows_kept <= self.hours_kept <= self.days_kept:
            raise Malformed("windows_kept, hours_kept, days_kept: expected each to be at least the one before")
        if self.https_port == self.broker_port != 0:
            raise Malformed(f"https_port and broker_port: both are {self.https_port}: set two different ports")


_READERS: dict[str, Read] = {
    f.name: f.metadata["read"] for f in dataclasses.fields(FleetSettings) if "read" in f.metadata
}


def load(data: Path, *, environ: Mapping[str, str], overrides: Mapping[str, object]) -> FleetSettings:
    """The settings for a data folder. Raises `Malformed` that names the file or variable and the key."""
    values = {key: value for source in (_file_values(data), _env_values(environ)) for key, value in source}
    values |= {key: _read(key, value, f"option {key}") for key, value in overrides.items() if value is not None}
    return FleetSettings(data=data, **values)


def _file_values(data: Path) -> Iterator[tuple[str, Any]]:
    path = data / FILE
    try:
        table = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as e:
        raise Malformed(f"{path}: cannot be read: {e.strerror}: make it readable for this user") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise Malformed(f"{path}: not valid TOML: {e}") from e
    for key, value in table.items():
        yield key, _read(key, value, f"{path}: {key}")


def _env_values(environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for variable, value in sorted(environ.items()):
        if variable.startswith(PREFIX):
            key = variable.removeprefix(PREFIX).lower()
            yield key, _read(key, value, f"environment {variable}")


def _read(key: str, value: object, where: str) -> Any:
    if key not in _READERS:
        raise Malformed(f"{where}: there is no such setting: use one of {', '.join(sorted(_READERS))}")
    try:
        return _READERS[key](value, where)
    except WireMalformed as e:
        raise Malformed(str(e)) from e
