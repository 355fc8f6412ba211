"""Rules of alerts and where they go: `alerts.toml` in the data folder, every key checked. Values only.

every = "10 s"
[channels.ops]
kind = "webhook"
url = "https://hooks.example.org/shoal"
secret_file = "/etc/shoal/hook-secret"
[rules.kitchens-offline]
kind = "device-offline"
group = "kitchens"
for = "10 min"

rules = load(data)              # raises Malformed that names the file, the rule and the key
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from fleet import queries
from fleet.errors import Malformed
from fleet.readers import (
    build,
    choice,
    count,
    duration,
    file,
    flag,
    hidden_file,
    number,
    port,
    setting,
    text,
    texts,
    url,
)

FILE: Final = "alerts.toml"


class Kind(NamedTuple):
    """What a kind of rule looks at. `of`: what an alert is about. `above` bounds its threshold, None: it has none.

    `event`: it tells of something that happened; there is no recovery from it. `over`: it looks at a stretch of time.
    """

    of: str
    about: str
    above: tuple[float, float] | None = None
    below: bool = False
    event: bool = False
    over: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "device-offline": Kind("device", "its will or its absence says that it is away"),
    "device-late": Kind("device", "it is connected and says nothing"),
    "offline-share": Kind("fleet", "share of the enrolled devices that are offline", (0, 1)),
    "errors": Kind("model", "share of requests that failed", (0, 1), over=True),
    "latency-p99": Kind("model", "p99 in ms", (0, 1e9), over=True),
    "accuracy": Kind("model", "share of feedback that says the answer was right", (0, 1), below=True, over=True),
    "agreement": Kind("model", "share of answers that are those of the reference", (0, 1), below=True, over=True),
    "temperature": Kind("device", "degrees Celsius", (-50, 200)),
    "memory": Kind("device", "share of its memory in use", (0, 1)),
    "disk": Kind("device", "share of its disk in use", (0, 1)),
    "restarts": Kind("device", "restarts that nobody asked for", (0, 1e6), over=True),
    "rollout-hold": Kind("rollout", "it is held by its gates or its devices"),
    "rollout-aborted": Kind("rollout", "it was aborted", event=True, over=True),
    "drift": Kind("model", "its inputs or answers drift"),
    "security": Kind("device", "something was refused because it could not be trusted", event=True, over=True),
    "certificate": Kind("certificate", "days that are left", (0, 3650), below=True),
    "gateway-budget": Kind("fleet", "requests that were over a budget", (0, 1e9), over=True),
    "gateway-blocked": Kind("fleet", "requests that a filter blocked", (0, 1e9), over=True),
    "gateway-errors": Kind("fleet", "share of requests to the cloud tier that failed", (0, 1), over=True),
}
_DEFAULTS: Final[Mapping[str, float]] = {
    "offline-share": 0.1, "errors": 0.05, "temperature": 80, "memory": 0.95, "disk": 0.95, "restarts": 3,
    "gateway-budget": 0, "gateway-blocked": 0, "gateway-errors": 0.1, "certificate": 14,
}  # fmt: skip
_NO_DEVICES: Final = ("certificate", "rollout", "fleet")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Where messages go: `webhook` (JSON by HTTPS, signed) or `mail`. Secrets are files, never a part of this one."""

    name: str
    kind: str = setting(choice("webhook", "mail"), "webhook")
    url: str = setting(url, "")
    secret_file: Path | None = setting(hidden_file, "")  # noqa: RUF009  it makes a field
    ca_file: Path | None = setting(file, "")  # noqa: RUF009
    """Authority (PEM) that the server's certificate has to come from; without it those of the system."""
    timeout: float = setting(duration("100 ms", "5 min"), "10 s")
    retry: float = setting(duration("10 ms", "1 h"), "5 s")
    """Until a message is tried again; doubles up to 15 min."""
    host: str = setting(text, "")
    port: int = setting(port, 587)
    security: str = setting(choice("starttls", "tls", "none"), "starttls")
    user: str = setting(text, "")
    password_file: Path | None = setting(hidden_file, "")  # noqa: RUF009
    sender: str = setting(text, "")
    to: tuple[str, ...] = setting(texts, [])


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. `hold` is `for` in the file: how long it has to be wrong before it is told, in seconds."""

    name: str
    kind: str = setting(choice(*KINDS), "device-offline")
    hold: float = setting(duration("0 s", "30 d"), "0 s")
    recover: float = setting(duration("0 s", "1 d"), "0 s")
    """How long it has to be right again before that is told: something that flaps is told once."""
    repeat: float = setting(duration("0 s", "30 d"), "4 h")
    """How often it is told again while it is open and nobody acknowledged it; 0 s: never."""
    over: float = setting(duration("1 min", "30 d"), "1 h")
    """The stretch of time that is looked at, up to now."""
    above: float | None = None
    below: float | None = None
    samples: int = setting(count(1, 1_000_000_000), "20")
    """Requests, or answers with a label, below which nothing is said of a share or a percentile."""
    where: str = setting(text, "")
    group: str = setting(text, "")
    severity: str = setting(choice("page", "warning", "info"), "warning")
    channels: tuple[str, ...] = setting(texts, [])
    """None named: all that there are."""
    enabled: bool = setting(flag, True)

    @property
    def about(self) -> Kind:
        """What its kind looks at."""
        return KINDS[self.kind]

    @property
    def threshold(self) -> float:
        """The figure beyond which it is wrong."""
        found = self.below if self.about.below else self.above
        return _DEFAULTS.get(self.kind, 0) if found is None else found


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The file. `wait`: so long new alerts of a rule are gathered into one message."""

    every: float = setting(duration("100 ms", "1 h"), "10 s")
    wait: float = setting(duration("0 s", "1 h"), "30 s")
    channels: Mapping[str, Channel] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)


def load(data: Path) -> Rules:
    """The rules of a data folder; none without the file. Raises `Malformed`."""
    path = data / FILE
    try:
        table = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return Rules()
    except OSError as e:
        raise Malformed(f"{path}: cannot be read: {e.strerror}: make it readable for this user") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise Malformed(f"{path}: not valid TOML: {e}") from e
    return read(table, str(path))


def read(table: Mapping[str, Any], where: str) -> Rules:
    """Rules of a parsed file. Raises `Malformed` that names the place."""
    rest = dict(table)
    channels = {
        name: _channel(value, f"{where}: channels.{name}", name)
        for name, value in _tables(rest.pop("channels", {}), f"{where}: channels").items()
    }
    rules = {
        name: _rule(value, f"{where}: rules.{name}", name, tuple(channels))
        for name, value in _tables(rest.pop("rules", {}), f"{where}: rules").items()
    }
    for rule in rules.values():
        for name in rule.channels:
            if name not in channels:
                raise Malformed(f"{where}: rules.{rule.name}: channels: there is no [channels.{name}]")
    return build(Rules, rest, where, channels=channels, rules=rules)


def _tables(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Malformed(f"{where}: expected tables with a name each, got {type(value).__name__}")
    return value


def _channel(value: object, where: str, name: str) -> Channel:
    table = {"sender" if key == "from" else key: one for key, one in _tables(value, where).items()}
    channel = build(Channel, table, where, name=name)
    needed = ("url",) if channel.kind == "webhook" else ("host", "sender", "to")
    missing = [one for one in needed if not getattr(channel, one)]
    if missing:
        raise Malformed(f"{where}: {', '.join(missing)}: has to be set for a {channel.kind}".replace("sender", "from"))
    if bool(channel.user) != (channel.password_file is not None):
        raise Malformed(f"{where}: user and password_file: set both or neither")
    if channel.user and channel.security == "none":
        raise Malformed(f"{where}: security: a password is not sent in the clear: use starttls or tls")
    return channel


def _rule(value: object, where: str, name: str, everywhere: tuple[str, ...]) -> Rule:
    table = {"hold" if key == "for" else key: one for key, one in _tables(value, where).items()}
    kind = KINDS[choice(*KINDS)(table.get("kind"), f"{where}: kind")]
    bounds: dict[str, object] = {key: table.pop(key) for key in ("above", "below") if key in table}
    rule = build(Rule, table, where, name=name, **_threshold(kind, bounds, where))
    rule = rule if rule.channels else replace(rule, channels=everywhere)
    if rule.where:
        try:
            queries.parse(rule.where)
        except Malformed as e:
            raise Malformed(f"{where}: where: {e}") from e
    if (rule.where or rule.group) and kind.of in _NO_DEVICES and rule.kind != "offline-share":
        raise Malformed(f"{where}: where and group: a rule of kind {rule.kind} looks at no devices")
    if "over" in table and not kind.over:
        raise Malformed(f"{where}: over: a rule of kind {rule.kind} looks at now: use for")
    return rule


def _threshold(kind: Kind, given: Mapping[str, object], where: str) -> dict[str, float]:
    """The one that its kind has: `above`, or `below`."""
    mine = "below" if kind.below else "above"
    for key in given:
        if kind.above is None or key != mine:
            raise Malformed(f"{where}: {key}: this kind has {'no threshold' if kind.above is None else mine}")
    return {key: number(*kind.above)(value, f"{where}: {key}") for key, value in given.items() if kind.above}
