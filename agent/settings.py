"""The settings of an agent: one frozen value, from `<state>/agent.toml`, `SHOAL_AGENT_*` and flags, in rising order.

Durations and sizes carry their unit (`window = "60 s"`, `SHOAL_AGENT_QUEUE="8 MiB"`). An unknown name, a missing unit
or a value out of bounds is an error at start that names the place.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.errors import Malformed
from wire.errors import WireError
from wire.units import seconds, size

SOCKET_LIMIT: Final = 107
"""Longest path of a Unix socket in bytes (`sun_path`, unix(7))."""
WORKERS: Final = ("tflite-runtime", "torchscript", "onnxruntime-genai", "gguf")
"""Runtimes that never share the agent's interpreter."""
PREFIX: Final = "SHOAL_AGENT_"


def _duration(default: str, low: str, high: str) -> Any:
    return _setting(default, low, high, lambda text, where: seconds(text, where=where))


def _size(default: str, low: str, high: str) -> Any:
    return _setting(default, low, high, lambda text, where: size(text, where=where))


def _count(default: str, low: str, high: str) -> Any:
    return _setting(default, low, high, _whole_number)


def _setting(default: str, low: str, high: str, read: Callable[[str, str], float]) -> Any:
    def parse(text: str, where: str) -> float:
        value = read(text, where)
        if not read(low, where) <= value <= read(high, where):
            raise Malformed(f"{where}: {text} is out of bounds, expected {low} to {high}")
        return value

    return field(default=read(default, "default"), metadata={"parse": parse})


def _whole_number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise Malformed(f"{where}: expected a whole number, got {text!r}")
    return int(text)


def _loopback(text: str, where: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not port.isdigit() or int(port) > 65535:
        raise Malformed(f"{where}: expected a loopback address such as 127.0.0.1:8470, got {text!r}")
    return text


def _alias(text: str, where: str) -> str:
    if len(text) > 200 or not text.isprintable():
        raise Malformed(f"{where}: expected the name of a model of the cloud tier, at most 200 characters")
    return text


def _data(text: str, where: str) -> str:
    if text not in ("open", "private"):
        raise Malformed(f"{where}: expected open or private, got {text[:40]!r}")
    return text


def _path(text: str, where: str) -> Path:
    path = Path(text).absolute()
    if len(str(path).encode()) > SOCKET_LIMIT:
        raise Malformed(f"{where}: {path} is longer than {SOCKET_LIMIT} bytes: choose a shorter path with --socket")
    return path


def _workers(text: str, where: str) -> Mapping[str, str]:
    """`runtime=/path/of/python`, more of them with commas."""
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        runtime, _, python = pair.partition("=")
        if runtime not in WORKERS or not Path(python).is_absolute():
            raise Malformed(f"{where}: expected {WORKERS[0]}=/path/of/python, of {' or '.join(WORKERS)}, got {pair!r}")
        found[runtime] = python
    return found


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """Times in seconds, sizes in bytes."""

    state: Path
    """Folder with all that the agent keeps."""
    socket: Path = field(metadata={"parse": _path})
    """The local API's Unix socket; default `<state>/agent.sock`."""
    tcp: str | None = field(default=None, metadata={"parse": _loopback})
    """Also answer on this loopback address; off by default. Port 0 chooses a free one."""
    window: float = _duration("60 s", "100 ms", "1 d")
    """Length of one telemetry record."""
    shapes: float = _duration("1 h", "100 ms", "1 d")
    """How often it holds what inputs and answers look like, in at most 2 KB for all models: `agent.life.shapes`."""
    queue: int = _size("8 MiB", "64 KiB", "10 GiB")
    """Telemetry kept on disk while the fleet is away; beyond it records give way by the rules of their streams."""
    ack_timeout: float = _duration("10 s", "100 ms", "1 h")
    """How long to wait for the fleet's acknowledgement before a batch is sent again."""
    freeze_after: float = _duration("30 s", "100 ms", "1 d")
    """How long the fleet may be silent, or its newest desired state on the way, before this device counts as frozen."""
    fetch_timeout: float = _duration("2 s", "50 ms", "10 min")
    """Silence after which missing chunks are asked for again; doubles up to a minute while nothing comes."""
    slow_rate: int = _size("1 KiB", "0 B", "1 GiB")
    """Bytes per second below which a transfer counts as kept slow; 0 B never does."""
    slow_after: float = _duration("5 min", "1 s", "1 d")
    """Time over which that is looked at."""
    bad_chunks: int = _count("5", "1", "1000")
    """How often one chunk may arrive with another digest before the update is refused."""
    selftest_timeout: float = _duration("2 min", "1 s", "1 h")
    """Time that the self-test's process may take."""
    stage_timeout: float = _duration("10 min", "1 s", "1 h")
    """Time that the files of an update may take to be read and checked once they are here."""
    switch_timeout: float = _duration("5 min", "1 s", "1 h")
    """Time that a candidate may take to be loaded, and to answer its golden set again at the end of its probation."""
    measure_timeout: float = _duration("10 min", "1 s", "1 h")
    """Time that the process of a measuring job may take."""
    probation_requests: int = _count("20", "1", "1000000")
    """Answers without an error after which a new model is committed,"""
    probation_time: float = _duration("30 s", "100 ms", "1 d")
    """or the time without an error, whichever is first."""
    probation_errors: int = _count("0", "0", "100")
    """Percent of a candidate's requests that may fail; as many as of the active model before it, if that failed too."""
    probation_slowdown: int = _count("3", "1", "1000")
    """Times the active model's median latency above which a candidate is rolled back."""
    renewal_spread: float = _duration("10 min", "0 s", "1 d")
    """Time over which the devices of a fleet renew their certificates when all have to at once."""
    min_free: int = _size("16 MiB", "0 B", "1 GiB")
    """Room that stays free on the disk: an update that would take it is not begun."""
    cloud_timeout: float = _duration("60 s", "1 s", "1 h")
    """Longest silence of the cloud tier in one request."""
    cloud_model: str = field(default="", metadata={"parse": _alias})
    """The model of the cloud tier that is asked where this device is unsure; without it no input goes up unasked."""
    cloud_answer: float = _duration("2 s", "50 ms", "10 min")
    """Time that the cloud has for such an answer when the request names none; then the device's own is given."""
    data: str = field(default="open", metadata={"parse": _data})
    """`private` keeps every input on this device, whatever a request says."""
    unsure_below: int = _count("0", "0", "100")
    """Percent of confidence below which the cloud is asked; 0 takes the threshold of each model's bundle."""
    words_below: int = _count("0", "0", "100")
    """The same for a language model: of the probability that all but a tenth of its answer's tokens reach; 0: never."""
    escalations: int = _count("60", "0", "1000000")
    """Inputs that may go up in an hour by this device's own will, checks included; a sixth of them at once."""
    checked: int = _count("1", "0", "100")
    """Percent of the answers given here that are also asked of the cloud, to know how often both agree."""
    queue_requests: int = _count("16", "0", "1000")
    """Requests that may wait for the line at one time."""
    queue_longest: float = _duration("10 min", "1 s", "1 d")
    """Longest that one may ask to wait."""
    workers: Mapping[str, str] = field(default_factory=dict, metadata={"parse": _workers})
    """The Python of each runtime that needs a process and an environment of its own; none by default."""
    language_queue: int = _count("4", "0", "1000")
    """Requests that may wait for one language model while it answers another; the next one is refused at once."""
    body_limit: int = _size("1 MiB", "1 KiB", "64 MiB")
    """Largest request body of the local API."""
    connections: int = _count("256", "1", "4096")
    """Connections to the local API at one time."""
    capture: int = _count("0", "0", "100")
    """Percent of the requests that are kept, redacted, in the memory of this device; 0: none."""
    capture_size: int = _size("256 KiB", "1 KiB", "64 MiB")
    """Room for them; the oldest give way."""
    model_queue: int = _count("64", "1", "10000")
    """Requests to one model that run or wait at one time; one more is refused at once."""
    request_timeout: float = _duration("30 s", "10 ms", "1 h")
    """Time that a request to a model may wait and run."""


def load(state: Path, environment: Mapping[str, str], flags: Mapping[str, str | None]) -> AgentSettings:
    """The settings of the agent in a state folder. Raises `Malformed`."""
    raw = {"socket": (str(state / "agent.sock"), "--state")}
    raw |= _from_file(state / "agent.toml")
    raw |= {
        key.removeprefix(PREFIX).lower(): (text, key) for key, text in environment.items() if key.startswith(PREFIX)
    }
    raw |= {name: (text, f"--{name}") for name, text in flags.items() if text is not None}
    return AgentSettings(state=state, **{name: _parsed(name, text, where) for name, (text, where) in raw.items()})


def _from_file(path: Path) -> dict[str, tuple[str, str]]:
    try:
        pairs = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise Malformed(f"{path}: not readable as TOML: {e}") from e
    return {name: (str(value), f"{path}: {name}") for name, value in pairs.items()}


def _parsed(name: str, text: str, where: str) -> Any:
    parsers = {f.name: f.metadata["parse"] for f in dataclasses.fields(AgentSettings) if "parse" in f.metadata}
    if name not in parsers:
        raise Malformed(f"{where}: no setting of this name, there are: {', '.join(sorted(parsers))}")
    try:
        return parsers[name](text, where)
    except WireError as e:
        raise Malformed(str(e)) from e
