"""`gateway.toml` in the data folder: upstreams, routes, prices, limits, filters. Read at the start, and checked then.

Without the file the settings `upstream`, `upstream_key_file` and `upstream_timeout` make one upstream and one route
that takes any model. What the file says is told in docs/operate/gateway.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

from fleet.errors import Malformed
from fleet.gateway.filters import Filter
from fleet.gateway.limits import NO_LIMITS, Limits
from fleet.gateway.personal import Finder
from fleet.gateway.pricing import Price
from fleet.readers import (
    build,
    choice,
    count,
    duration,
    file,
    flag,
    needed,
    number,
    optional,
    setting,
    text,
    texts,
    url,
)
from fleet.settings import FleetSettings
from wire.document import check_name
from wire.errors import Malformed as WireMalformed

FILE: Final = "gateway.toml"
ANY: Final = "*"
"""The route that takes every model that no other route is for, by the name that the client gave it."""
ONLY: Final = "cloud"
"""The upstream that the settings make."""
ENTITIES: Final = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "MEDICAL_LICENSE",
    "PHONE_NUMBER",
    "US_ITIN",
    "US_SSN",
)
"""Of Presidio's: those that patterns and checksums find without a model, and that few other texts look like."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class UpstreamConfig:
    """One OpenAI-compatible endpoint. `compatible` and `openai` differ in how the longest answer is called."""

    name: str
    url: str = needed(url)
    kind: str = setting(choice("compatible", "openai"), "compatible")
    key_file: Path | None = optional(file)  # noqa: RUF009  it makes a field
    timeout: float = setting(duration("100 ms", "1 h"), "60 s")
    """Longest silence."""
    at_once: int = setting(count(1, 10_000), "64")
    waiting: int = setting(count(0, 10_000), "64")
    health: str = setting(text, "")
    """Path below `url` that is asked every `health_every`, such as /models; empty: only requests show its health."""
    health_every: float = setting(duration("1 s", "1 h"), "10 s")
    failures: int = setting(count(1, 1000), "5")
    """In a row: then it is left alone for `pause`, and twice as long each time it fails again."""
    pause: float = setting(duration("100 ms", "1 h"), "10 s")
    stream_usage: bool = setting(flag, True)
    """Whether it knows `stream_options.include_usage`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An upstream of a route, and what the model is called there; empty: as the client calls it."""

    upstream: str = needed(text)
    model: str = setting(text, "")
    weight: float = setting(number(0.001, 1000), "1")
    fallback: bool = setting(flag, False)
    """Asked only when the others did not answer, in the order of the file."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where requests for one model go."""

    name: str
    targets: tuple[Target, ...]
    deadline: float = setting(duration("100 ms", "1 h"), "2 min")
    """Until the answer is whole, or its first piece there where it is streamed; over all tries together."""
    attempts: int = setting(count(1, 20), "3")
    """Tries of one request; each target gets one at least."""
    max_output: int = setting(count(1, 1_000_000), "4096")
    """Tokens of an answer: what a request reserves, and asks its upstream for, when it names no number itself."""
    cache: float = setting(duration("0 s", "30 d"), "0 s")
    """How long an answer serves the same request again; 0 s: not at all."""
    cache_sampled: bool = setting(flag, False)
    """Also answers whose temperature is above 0."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A text classifier behind an agent's local API, or any other Open Inference Protocol v2 server."""

    name: str
    url: str = setting(url, "")
    socket: str = setting(text, "")
    """Unix socket, in place of `url`."""
    token_file: Path | None = optional(file)  # noqa: RUF009  as above
    model: str = needed(text)
    label: str = needed(text)
    """What it calls a prompt that is not wanted."""
    threshold: float = setting(number(0, 1), "0.5")
    action: str = setting(choice("note", "block"), "block")
    part: int = setting(count(16, 8192), "256")
    """Characters that it is asked about at once, a quarter of them again with the next: what is beyond the model's own
    `max_length` it would not see."""
    timeout: float = setting(duration("1 ms", "1 min"), "500 ms")
    on_failure: str = setting(choice("refuse", "pass"), "refuse")
    """What comes of a prompt that it could not judge."""


def _entities(value: object, where: str) -> tuple[str, ...]:
    found = texts(value, where)
    if not found:
        raise Malformed(f"{where}: expected one or more of Presidio's entities")
    return found


@dataclass(frozen=True, kw_only=True)
class PresidioConfig:
    """Microsoft Presidio, for filters with `personal_by = "presidio"`. Takes the extra `presidio`."""

    entities: tuple[str, ...] = setting(_entities, list(ENTITIES))
    language: str = setting(text, "en")
    model: str = setting(text, "")
    """A spaCy model that is installed as a package, which finds names and places; empty: patterns alone."""
    threshold: float = setting(number(0, 1), "0.4")
    hold: int = setting(count(16, 1024), "128")
    """Characters of a stream that wait, and so many before them that are looked at again."""
    workers: int = setting(count(1, 16), "1")
    """Processes; each has some 130 MB, more with a model."""
    timeout: float = setting(duration("10 ms", "1 min"), "2 s")
    """Of the wait for a process, and again of the look at one request, answer, or piece of a stream."""


@dataclass(frozen=True)
class GatewayConfig:
    """All of it."""

    upstreams: Mapping[str, UpstreamConfig] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    prices: Mapping[str, Mapping[str, Price]] = field(default_factory=dict)
    """By upstream, then by the model's name there."""
    total: Limits = NO_LIMITS
    each: Limits = NO_LIMITS
    groups: Mapping[str, Limits] = field(default_factory=dict)
    devices: Mapping[str, Limits] = field(default_factory=dict)
    filters: Mapping[str, Filter] = field(default_factory=dict)
    classifiers: Mapping[str, ClassifierConfig] = field(default_factory=dict)
    presidio: PresidioConfig = field(default_factory=PresidioConfig)
    audit_text: bool = False
    audit_kept: float = 90 * 86_400.0
    cache_size: int = 32 * 1024 * 1024
    currency: str = "USD"

    def route(self, model: str) -> Route | None:
        """Where a model is asked for."""
        return self.routes.get(model) or self.routes.get(ANY)

    def price(self, upstream: str, model: str) -> Price | None:
        """Of a model at an upstream."""
        prices = self.prices.get(upstream, {})
        return prices.get(model) or prices.get(ANY)

    @property
    def uses_presidio(self) -> bool:
        """Whether any filter asks it."""
        return any(rules.personal_by == "presidio" and rules.personal != "off" for rules in self.filters.values())

    def found_by(self, presidio: Finder) -> GatewayConfig:
        """The same, with what asks Presidio where a filter names it."""
        filters = {
            name: replace(rules, finder=presidio) if rules.personal_by == "presidio" else rules
            for name, rules in self.filters.items()
        }
        return replace(self, filters=filters)

    def unpriced(self) -> str:
        """A target without a price, as it is called in the file; empty when all have one."""
        for route in self.routes.values():
            for target in route.targets:
                model = target.model or (ANY if route.name == ANY else route.name)
                if self.price(target.upstream, model) is None:
                    return f'prices.{target.upstream}."{model}"'
        return ""


@dataclass(frozen=True, kw_only=True)
class _General:
    audit_text: bool = setting(flag, False)
    audit_kept: float = setting(duration("1 h", "3650 d"), "90 d")
    cache_size: int = setting(count(1024, 2**40), str(32 * 1024 * 1024))
    currency: str = setting(text, "USD")


def load(settings: FleetSettings) -> GatewayConfig:
    """The configuration of a data folder. Raises `Malformed` that names the place in the file."""
    path = settings.data / FILE
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return _of_settings(settings)
    except OSError as e:
        raise Malformed(f"{path}: cannot be read: {e.strerror}: make it readable for this user") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise Malformed(f"{path}: not valid TOML: {e}") from e
    if settings.upstream:
        raise Malformed(f"{path}: the setting upstream is set too: move it into the file, as [upstreams.NAME]")
    config = parse(table, str(path))
    _check(config, str(path))
    return config


def parse(table: Mapping[str, Any], where: str) -> GatewayConfig:
    """What a file says. Raises `Malformed`."""
    rest = dict(table)
    upstreams = _named(rest, "upstreams", where, lambda t, at, name: build(UpstreamConfig, t, at, name=name))
    routes = _named(rest, "routes", where, _route)
    prices = _named(rest, "prices", where, _prices)
    filters = _named(rest, "filters", where, lambda t, at, name: build(Filter, t, at, name=name))
    classifiers = _named(rest, "classifiers", where, _classifier)
    presidio = build(PresidioConfig, rest.pop("presidio", {}), f"{where}: presidio")
    limits = _table(rest.pop("limits", {}), f"{where}: limits")
    groups = _named(limits, "groups", f"{where}: limits", _limits)
    devices = _named(limits, "devices", f"{where}: limits", _limits)
    total, each = (_limits(limits.pop(name, {}), f"{where}: limits.{name}", name) for name in ("total", "each"))
    for name in limits:
        raise Malformed(f"{where}: limits.{name}: expected total, each, groups or devices")
    general = build(_General, rest, where)
    return GatewayConfig(
        upstreams=upstreams,
        routes=routes,
        prices=prices,
        total=total,
        each=each,
        groups=groups,
        devices=devices,
        filters=filters,
        classifiers=classifiers,
        presidio=presidio,
        audit_text=general.audit_text,
        audit_kept=general.audit_kept,
        cache_size=general.cache_size,
        currency=general.currency,
    )


def _of_settings(settings: FleetSettings) -> GatewayConfig:
    if not settings.upstream:
        return GatewayConfig()
    upstream = UpstreamConfig(
        name=ONLY, url=settings.upstream, key_file=settings.upstream_key_file, timeout=settings.upstream_timeout
    )
    # One upstream and the client's own retries: what it answers, errors too, is passed on as it is.
    route = Route(name=ANY, targets=(Target(upstream=ONLY),), attempts=1, deadline=settings.upstream_timeout)
    return GatewayConfig(upstreams={ONLY: upstream}, routes={ANY: route})


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{where}: expected a table, got {value!r:.60}")
    return dict(value)


def _named(table: dict[str, Any], key: str, where: str, read: Callable[[Any, str, str], T]) -> dict[str, T]:
    found = _table(table.pop(key, {}), f"{where}: {key}")
    return {name: read(value, f"{where}: {key}.{name}", name) for name, value in found.items()}


def _route(value: object, where: str, name: str) -> Route:
    table = _table(value, where)
    targets = table.pop("targets", None)
    if not isinstance(targets, list) or not targets:
        raise Malformed(f"{where}: targets: expected one [[routes.{name}.targets]] or more")
    read = tuple(build(Target, target, f"{where}: targets[{i}]") for i, target in enumerate(targets))
    if all(target.fallback for target in read):
        raise Malformed(f"{where}: targets: all are fallbacks: leave one without `fallback = true`")
    return build(Route, table, where, name=name, targets=read)


def _classifier(value: object, where: str, name: str) -> ClassifierConfig:
    read = build(ClassifierConfig, value, where, name=name)
    if bool(read.url) == bool(read.socket):
        raise Malformed(f"{where}: expected url or socket, one of them")
    return read


def _prices(value: object, where: str, _name: str) -> Mapping[str, Price]:
    return {model: build(Price, price, f'{where}."{model}"') for model, price in _table(value, where).items()}


def _limits(value: object, where: str, name: str) -> Limits:
    try:
        check_name(name, where)
    except WireMalformed as e:
        raise Malformed(str(e)) from e
    return build(Limits, value, where)


def _check(config: GatewayConfig, where: str) -> None:
    """Names that one part of the file gives another. Raises `Malformed`."""
    for route in config.routes.values():
        for target in route.targets:
            _known(target.upstream, config.upstreams, f"{where}: routes.{route.name}: upstream")
    for name in config.prices:
        _known(name, config.upstreams, f"{where}: prices")
    for at, limits in _all_limits(config):
        check_limits(config, limits, f"{where}: limits.{at}")
    for rules in config.filters.values():
        if rules.classifier:
            _known(rules.classifier, config.classifiers, f"{where}: filters.{rules.name}: classifier")
    if config.uses_presidio and find_spec("presidio_analyzer") is None:
        raise Malformed(
            f'{where}: personal_by = "presidio": the package presidio-analyzer is not installed: '
            "pip install 'shoal[presidio]', or leave it out for the built-in set"
        )


def check_limits(config: GatewayConfig, limits: Limits, where: str) -> None:
    """Whether the file has what limits name: filters, routes, prices. Raises `Malformed`."""
    for name in limits.filters or ():
        _known(name, config.filters, f"{where}: filters")
    if ANY not in config.routes:
        for name in limits.models or ():
            _known(name, config.routes, f"{where}: models")
    if limits.counts_money and config.unpriced():
        raise Malformed(f"{where}: money is limited, but {config.unpriced()} has no price: set it")


def _all_limits(config: GatewayConfig) -> Iterator[tuple[str, Limits]]:
    yield "total", config.total
    yield "each", config.each
    yield from ((f"groups.{name}", limits) for name, limits in config.groups.items())
    yield from ((f"devices.{name}", limits) for name, limits in config.devices.items())


def _known(name: str, there: Mapping[str, object], where: str) -> None:
    if name not in there:
        raise Malformed(f"{where}: {name!r}: there is none of that name: {', '.join(sorted(there)) or 'none at all'}")
