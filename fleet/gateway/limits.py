"""What a key, a device, a group, or all together may: models, requests, tokens, money, filters. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fleet.gateway.pricing import NANOS
from fleet.readers import Read, build, count, number, optional, texts


def _money(value: object, where: str) -> int:
    return round(float(number(0, 1_000_000_000)(value, where)) * NANOS)


_TOKENS: Final[Read] = count(1, 10**15)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """None: no limit of this kind here. Days and months are those of UTC."""

    models: tuple[str, ...] | None = optional(texts)
    requests_per_minute: int | None = optional(count(1, 1_000_000))
    tokens_per_day: int | None = optional(_TOKENS)
    tokens_per_month: int | None = optional(_TOKENS)
    money_per_day: int | None = optional(_money)
    """Nanos; in the file, units of the currency."""
    money_per_month: int | None = optional(_money)
    filters: tuple[str, ...] | None = optional(texts)

    @cached_property
    def is_unbudgeted(self) -> bool:
        """Whether it limits neither tokens nor money."""
        tokens = self.tokens_per_day is None and self.tokens_per_month is None
        return tokens and not self.counts_money

    @property
    def counts_money(self) -> bool:
        """Whether it takes prices to keep it."""
        return self.money_per_day is not None or self.money_per_month is not None

    def over(self, other: Limits) -> Limits:
        """These, and where they say nothing those of `other`."""
        own = {name: value for name, value in _values(self).items() if value is not None}
        return dataclasses.replace(other, **own)

    def to_value(self) -> dict[str, Any]:
        """As a person writes them; `limits_from` reads it."""
        value = {name: found for name, found in _values(self).items() if found is not None}
        for name in ("money_per_day", "money_per_month"):
            if name in value:
                value[name] = value[name] / NANOS
        return {name: list(found) if isinstance(found, tuple) else found for name, found in value.items()}


NO_LIMITS: Final = Limits()


def limits_from(value: object, where: str) -> Limits:
    """Limits as a person writes them. Raises `Malformed`."""
    return build(Limits, value, where)


def _values(limits: Limits) -> dict[str, Any]:
    return {f.name: getattr(limits, f.name) for f in dataclasses.fields(limits)}
