"""Who asks, and what they may do. Pure: a role is a set of permissions, a caller has roles and groups.

    caller.check("devices.revoke")        # raises Forbidden
    caller.check_group(device.group)      # raises Forbidden for an operator of other groups
    caller.check_may_give(roles, groups)  # raises Forbidden: nobody gives what they do not have

`ROLES` is the one table of what a role may; which permission a route needs stands in `fleet.api.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fleet.errors import Forbidden, Malformed

_READ: Final = frozenset({"status.read", "devices.read", "releases.read", "rollouts.read", "authorities.read"})
_OPERATE: Final = frozenset(
    {"devices.enrol", "devices.revoke", "devices.command", "alerts.manage", "rollouts.run", "gateway.use"}
)
_PUBLISH: Final = frozenset({"releases.publish"})
# What people mean by a name; `production` is what the fleet relies on, and takes more.
_ALIAS: Final = frozenset({"models.alias"})
_PROMOTE: Final = frozenset({"models.alias", "models.promote"})
# Whoever judges what others did has to see it; operators and release-managers are those it tells of.
_AUDIT: Final = frozenset({"audit.read"})
# What everybody asked and what it cost, without the texts.
_WATCH: Final = frozenset({"gateway.read"})
# Whoever made a rollout does not approve it: that is the rollout's own affair.
_APPROVE: Final = frozenset({"rollouts.approve"})
_MANAGE: Final = frozenset({"authorities.manage", "people.manage"})

ROLES: Final[Mapping[str, frozenset[str]]] = {
    "viewer": _READ,
    "operator": _READ | _OPERATE | _WATCH,
    "release-manager": _READ | _PUBLISH | _ALIAS,
    "approver": _READ | _AUDIT | _WATCH | _APPROVE | _PROMOTE,
    # Everything that this server decides. Signing a model takes an offline key, which no role has.
    "admin": _READ | _OPERATE | _PUBLISH | _PROMOTE | _AUDIT | _WATCH | _APPROVE | _MANAGE,
    # A key of the cloud tier: it opens nothing else.
    "gateway": frozenset({"gateway.use"}),
}
PERMISSIONS: Final = frozenset().union(*ROLES.values())


def permissions_of(roles: Iterable[str]) -> frozenset[str]:
    """All that some roles may. A role that is not in the table may nothing."""
    return frozenset[str]().union(*(ROLES.get(role, frozenset()) for role in roles))


def check_roles(roles: Iterable[str]) -> None:
    """Raises `Malformed` for no role at all, and for one that is not in the table."""
    unknown = set(roles) - set(ROLES)
    if unknown or not list(roles):
        named = ", ".join(sorted(repr(r[:40]) for r in unknown)) or "none given"
        raise Malformed(f"roles: {named}: choose from {', '.join(ROLES)}")


@dataclass(frozen=True)
class Caller:
    """An authenticated user, program or device. Without groups it acts on every group.

    `name` is how logs and the audit log call it: `alice` logged in with a password, `alice:laptop` is a token of hers,
    `token:ci` a program, `device:kitchen-1` a device. `user` is the person behind it, or empty.
    """

    name: str
    roles: frozenset[str]
    groups: frozenset[str] = frozenset()
    user: str = ""
    token: str = ""
    """Id of the token that was shown."""
    session: bool = False
    """Came by name and password, not by a token that was made for a purpose."""

    @property
    def permissions(self) -> frozenset[str]:
        """All that its roles may."""
        return permissions_of(self.roles)

    def check(self, permission: str) -> None:
        """Raises `Forbidden` for what none of this caller's roles may."""
        if permission not in self.permissions:
            able = ", ".join(role for role, permitted in ROLES.items() if permission in permitted)
            raise Forbidden(f"{self.name}: {permission} takes one of the roles {able}: ask an admin")

    def check_group(self, group: str) -> None:
        """Raises `Forbidden` for a group that this caller is not given."""
        if self.groups and group not in self.groups:
            raise Forbidden(
                f"{self.name}: may not act on group {group!r}, only on {', '.join(sorted(self.groups))}: "
                "ask an admin for the group"
            )

    def check_may_give(self, roles: Iterable[str], groups: Iterable[str]) -> None:
        """Raises `Forbidden` for roles and groups that allow more than this caller may. No group is every group."""
        for role in roles:
            if not permissions_of([role]) <= self.permissions:
                raise Forbidden(f"{self.name}: may not give or touch the role {role}, which may more: ask an admin")
        if self.groups and not (set(groups) and set(groups) <= self.groups):
            only = ", ".join(sorted(self.groups))
            raise Forbidden(f"{self.name}: may give groups of {only} only, and must name at least one: ask an admin")
