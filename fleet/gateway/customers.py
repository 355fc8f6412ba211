"""Who asks the gateway: what it pays with, which models it may ask for, which filters its texts pass. Pure.

A device pays for itself and with its groups, a person for all tokens of theirs together, a program by its key; and
everybody with what there is for all. `limits.each` stands for whoever has no limits of its own, so nobody has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fleet.access import Caller
from fleet.errors import Forbidden
from fleet.gateway.budgets import Account
from fleet.gateway.config import GatewayConfig
from fleet.gateway.filters import Filter
from fleet.gateway.limits import NO_LIMITS, Limits


@dataclass(frozen=True)
class Customer:
    """Somebody who asks. `tenant` is the first of its accounts: it alone is answered from its part of the cache."""

    who: str
    tenant: str
    groups: str
    accounts: tuple[Account, ...]
    filters: tuple[Filter, ...]

    def may_ask(self, model: str) -> bool:
        """Whether every account allows a model."""
        return all(a.limits.models is None or model in a.limits.models for a in self.accounts)

    def check_model(self, model: str) -> None:
        """Raises `Forbidden` for a model that is not on a list of allowed ones."""
        for account in self.accounts:
            allowed = account.limits.models
            if allowed is not None and model not in allowed:
                listed = ", ".join(allowed) or "none"
                raise Forbidden(f"{self.who}: {account.name} may ask for {listed}, not for {model!r}: ask an admin")


def customer_of(caller: Caller, config: GatewayConfig, keys: Mapping[str, Limits]) -> Customer:
    """`keys`: the limits of keys that have some of their own, by the id of the token."""
    groups = tuple(sorted(caller.groups))
    accounts = (
        *_own(caller, config, keys),
        *(Account(f"group:{name}", config.groups.get(name, NO_LIMITS)) for name in groups),
        Account("total", config.total),
    )
    named = dict.fromkeys(name for account in accounts for name in account.limits.filters or ())
    return Customer(
        who=caller.name,
        tenant=accounts[0].name,
        groups=",".join(groups),
        accounts=accounts,
        filters=tuple(config.filters[name] for name in named),
    )


def _own(caller: Caller, config: GatewayConfig, keys: Mapping[str, Limits]) -> tuple[Account, ...]:
    kind, _, name = caller.name.partition(":")
    if kind == "device" and not caller.token:
        return (Account(caller.name, config.devices.get(name, NO_LIMITS).over(config.each)),)
    own = keys.get(caller.token)
    key = Account(f"key:{caller.token}", (own or NO_LIMITS).over(config.each))
    if not caller.user:
        return (key,)
    person = Account(f"user:{caller.user}", config.each)
    # The person's account holds for all their tokens together: a second token is not a second budget.
    return (key, person) if own is not None else (person,)
