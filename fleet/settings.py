"""Every setting of the fleet: name, default, unit and check, on one line each.

Values come from `<data>/fleet.toml`, then the environment (`SHOAL_FLEET_HTTPS_PORT`), then the command line; the later
one wins. A bad value stops the start, and the message names the place and the key.

    settings = load(Path("data"), environ=os.environ, overrides={"https_port": 0})
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.errors import Malformed
from wire.errors import Malformed as WireMalformed
from wire.units import seconds, size

FILE = "fleet.toml"
PREFIX = "SHOAL_FLEET_"
LEVELS = ("debug", "info", "warning", "error")

Read = Callable[[object, str], Any]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{where}: expected a text, got {value!r}")
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise Malformed(f"{where}: expected one or more host names or addresses, got {value!r}")
    return tuple(n.strip() for n in names)


def _port(value: object, where: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise Malformed(f"{where}: expected a port from 1 to 65535, or 0 to choose a free one, got {value!r}")
    return int(text)


def _level(value: object, where: str) -> str:
    if value not in LEVELS:
        raise Malformed(f"{where}: expected one of {', '.join(LEVELS)}, got {value!r}")
    return str(value)


def _url(value: object, where: str) -> str:
    text = _text(value, where).rstrip("/")
    if text and not text.startswith(("http://", "https://")):
        raise Malformed(f"{where}: expected an address that starts with http:// or https://, got {value!r}")
    return text


def _file(value: object, where: str) -> Path | None:
    path = Path(_text(value, where)) if value else None
    if path is not None and not path.is_file():
        raise Malformed(f"{where}: there is no file {path}")
    return path


def _duration(low: str, high: str) -> Read:
    def read(value: object, where: str) -> float:
        number = seconds(_text(value, where), where=where)
        if not seconds(low) <= number <= seconds(high):
            raise Malformed(f"{where}: expected {low} to {high}, got {value!r}")
        return number

    return read


def _number(low: float, high: float) -> Read:
    def read(value: object, where: str) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise Malformed(f"{where}: expected a number from {low:g} to {high:g}, got {value!r}")
        return number

    return read


def _count(low: int, high: int) -> Read:
    def read(value: object, where: str) -> int:
        text = str(value)
        if isinstance(value, bool) or not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise Malformed(f"{where}: expected a whole number from {low} to {high}, got {value!r}")
        return int(text)

    return read


def _size(low: str, high: str) -> Read:
    def read(value: object, where: str) -> int:
        number = size(_text(value, where), where=where)
        if not size(low) <= number <= size(high):
            raise Malformed(f"{where}: expected {low} to {high}, got {value!r}")
        return number

    return read


def _setting(read: Read, default: object) -> Any:
    """A field whose default is written as a person writes it, and read by the same reader."""
    return field(default_factory=lambda: read(default, "default"), metadata={"read": read})


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """Durations are held in seconds, sizes in bytes, rates in bytes per second."""

    data: Path
    https_host: str = _setting(_text, "0.0.0.0")  # noqa: S104  devices come from the network
    https_port: int = _setting(_port, 8443)
    broker_host: str = _setting(_text, "0.0.0.0")  # noqa: S104
    broker_port: int = _setting(_port, 8883)
    public_names: tuple[str, ...] = _setting(_names, "localhost")
    """Names and addresses in the server certificate; the first one goes into enrolment kits."""
    mosquitto: str = _setting(_text, "mosquitto")
    log_level: str = _setting(_level, "info")

    gather: float = _setting(_duration("0 ms", "10 s"), "50 ms")
    """How long wishes for a blob are gathered before it is sent; each newcomer prolongs that, up to ten times."""
    transfer_rate: int = _setting(_size("0 B", "10 GiB"), "32 MiB")
    """Bytes of chunks per second; 0 B sends as fast as the broker takes them."""
    offline_after: float = _setting(_duration("100 ms", "1 d"), "90 s")
    """How long a device that the broker remembers as online may stay silent after the broker came back."""
    settle_after: float = _setting(_duration("100 ms", "30 d"), "10 min")
    """How long the devices of a wave have to answer before a failure aborts without the silent ones."""

    kit_lifetime: float = _setting(_duration("1 s", "365 d"), "1 d")
    server_lifetime: float = _setting(_duration("5 s", "3650 d"), "397 d")
    """Of the certificates of HTTPS port, broker and the fleet's own client; renewed when a third of it is left."""
    certificate_lifetime: float = _setting(_duration("1 s", "3650 d"), "365 d")
    ack_lifetime: float = _setting(_duration("1 s", "1 d"), "10 min")
    """How late a device may find an acknowledgement, counted from its report or batch."""
    command_lifetime: float = _setting(_duration("1 s", "30 d"), "10 min")
    wipe_lifetime: float = _setting(_duration("1 s", "3650 d"), "30 d")
    """How long a device that retires while it is away may find the command to wipe itself."""
    desired_lifetime: float = _setting(_duration("1 s", "3650 d"), "30 d")
    timestamp_lifetime: float = _setting(_duration("1 s", "365 d"), "7 d")
    snapshot_lifetime: float = _setting(_duration("1 s", "365 d"), "30 d")

    session_lifetime: float = _setting(_duration("1 s", "30 d"), "12 h")
    """How long a login with a password lasts."""

    upstream: str = _setting(_url, "")
    """Base address of an OpenAI-compatible endpoint, up to and with /v1; empty: no cloud tier."""
    upstream_key_file: Path | None = _setting(_file, "")  # noqa: RUF009  it makes a field
    upstream_timeout: float = _setting(_duration("100 ms", "1 h"), "60 s")

    mqtt_rate: float = _setting(_number(1, 10_000), "20")
    """MQTT messages of each kind per second from one device, five seconds' worth at once."""
    http_rate: float = _setting(_number(1, 10_000), "100")
    """HTTPS requests per second from one source, ten times as many at once; a tenth of it for logins and enrolment."""
    max_connections: int = _setting(_count(10, 100_000), "800")
    """HTTPS connections at one time; from one source at most 200. All open files together have to stay below 1024: a
    common limit of a process, and what the MQTT client can wait on."""
    broker_connections: int = _setting(_count(10, 100_000), "10000")
    """MQTT connections at one time; each costs the broker 24 KiB."""
    max_body: int = _setting(_size("1 KiB", "1 GiB"), "16 MiB")
    max_blob: int = _setting(_size("1 KiB", "1024 GiB"), "4 GiB")

    compiler_python: Path | None = _setting(_file, "")  # noqa: RUF009  as above
    """Python of the environment that the compiler is installed in; empty: the fleet's own."""
    builds_at_once: int = _setting(_count(1, 64), "1")
    build_user: str = _setting(_text, "")
    """System user that the compiler runs as, when root runs the fleet; empty: as the fleet."""
    build_memory: int = _setting(_size("64 MiB", "1024 GiB"), "4 GiB")
    """Of a compiler with all that it starts; three quarters of it are for what it makes at the same time."""
    build_disk: int = _setting(_size("16 MiB", "1024 GiB"), "16 GiB")
    build_time: float = _setting(_duration("1 s", "30 d"), "2 h")
    max_source: int = _setting(_size("1 KiB", "1024 GiB"), "4 GiB")

    def __post_init__(self) -> None:
        if self.snapshot_lifetime < self.timestamp_lifetime:
            raise Malformed("snapshot_lifetime: expected at least timestamp_lifetime")
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
