"""Who may sign what: the content of root and targets metadata as one value that can be changed and signed again.

roles = Roles.read(root, targets)
roles = roles.with_keys("timestamp", RoleKeys((key,)))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from tuf.api.metadata import Root, Targets

from cli.errors import BadInput
from wire.dsse import FLEET_ROLE
from wire.signing import RoleKeys, root_document, targets_document

ROOT_ROLES: Final = ("root", "targets", "snapshot", "timestamp")
"""Roles whose keys root names; targets names those of the fleet role and of the release roles."""
ONLINE_ROLES: Final = ("snapshot", "timestamp", FLEET_ROLE)
RELEASE: Final = "release-"


@dataclass(frozen=True)
class Roles:
    """Keys and threshold of every role, and the certificate authorities (PEM) that devices believe."""

    keys: Mapping[str, RoleKeys]
    authorities: tuple[str, ...] = ()

    @classmethod
    def read(cls, root: Root | None, targets: Targets | None) -> Roles:
        """What these two documents say, or one of them. Raises `BadInput` for authorities that are no texts."""
        keys: dict[str, RoleKeys] = {}
        if root is not None:
            keys |= {n: RoleKeys(tuple(root.keys[k] for k in r.keyids), r.threshold) for n, r in root.roles.items()}
        delegations = targets.delegations if targets is not None else None
        for name, role in ((delegations.roles or {}) if delegations else {}).items():
            assert delegations is not None
            keys[name] = RoleKeys(tuple(delegations.keys[k] for k in role.keyids), role.threshold)
        return cls(keys, _authorities(targets))

    def of(self, role: str) -> RoleKeys:
        """Keys and threshold of a role. Raises `BadInput` for a role that is not there."""
        if role not in self.keys:
            raise BadInput(f"role {role!r}: there is none: choose from {', '.join(sorted(self.keys))}")
        return self.keys[role]

    def ids(self, role: str) -> tuple[str, ...]:
        """Ids of the keys of a role."""
        return tuple(key.keyid for key in self.of(role).keys)

    def with_keys(self, role: str, keys: RoleKeys) -> Roles:
        """The same with other keys for one role. Raises `BadInput` for a threshold that cannot be reached."""
        if not 1 <= keys.threshold <= len(keys.keys):
            raise BadInput(f"role {role}: a threshold of {keys.threshold} does not fit {len(keys.keys)} keys")
        if len({key.keyval["public"] for key in keys.keys}) != len(keys.keys):
            raise BadInput(f"role {role}: names this key already: a threshold counts different keys")
        return replace(self, keys={**self.keys, role: keys})

    def families(self) -> dict[str, RoleKeys]:
        """Keys and threshold of each family's release role, by family."""
        return {name.removeprefix(RELEASE): keys for name, keys in self.keys.items() if name.startswith(RELEASE)}

    def root(self, version: int, expires: datetime) -> bytes:
        """Root metadata that says this, without a signature."""
        return root_document(version, {name: self.of(name) for name in ROOT_ROLES}, expires, [])

    def targets(self, version: int, expires: datetime) -> bytes:
        """Targets metadata that says this, without a signature."""
        return targets_document(version, self.of(FLEET_ROLE), self.families(), expires, [], self.authorities)

    def same_root(self, other: Roles) -> bool:
        """Whether root metadata would say the same."""
        return all(same(self.of(name), other.of(name)) for name in ROOT_ROLES)

    def same_targets(self, other: Roles) -> bool:
        """Whether targets metadata would say the same."""
        mine, theirs = ({n: k for n, k in each.keys.items() if n not in ROOT_ROLES} for each in (self, other))
        return (
            mine.keys() == theirs.keys()
            and all(same(mine[name], theirs[name]) for name in mine)
            and self.authorities == other.authorities
        )


def _authorities(targets: Targets | None) -> tuple[str, ...]:
    custom = targets.unrecognized_fields.get("custom") if targets is not None else None
    named = custom.get("authorities", []) if isinstance(custom, dict) else []
    if not isinstance(named, list) or not all(isinstance(pem, str) for pem in named):
        raise BadInput("targets: its certificate authorities are not a list of texts")
    return tuple(named)


def same(one: RoleKeys, other: RoleKeys) -> bool:
    """Whether two roles have the same keys and threshold."""
    ids = [{key.keyid for key in each.keys} for each in (one, other)]
    return ids[0] == ids[1] and one.threshold == other.threshold
