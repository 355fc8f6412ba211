"""`shoal release add-key | rotate | renew`: whose signatures count. Works without network and without a fleet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import Yes
from cli.errors import BadInput
from cli.options import DEFAULT_TRUST, KeysFolder, TrustFolder, Unencrypted
from cli.output import Json

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from cli.trust.desk import Desk
    from cli.trust.roles import Roles

AUTHORITIES = "authorities"

Role = Annotated[str, typer.Argument(help="root, targets or release-FAMILY.")]
Public = Annotated[Path | None, typer.Option(help="Somebody else's public key (PEM) instead of a new one of yours.")]


def add_key(
    role: Role,
    public: Public = None,
    threshold: Annotated[int | None, typer.Option(min=1, help="How many keys must sign from now on.")] = None,
    unencrypted: Unencrypted = False,
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Give a role one more key: a new one of yours, or somebody else's."""
    from cli.trust import ceremony, desk  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book = at.trust.book()
    roles = book.roles()
    ceremony.check_offline(roles, role)
    key = _key(at, role, public, unencrypted=unencrypted)
    book = at.finish(ceremony.with_roles(book, ceremony.added(roles, role, key, threshold), datetime.now(UTC)), yes=yes)
    view = f"{role}: one more key {key.keyid}"
    desk.report({"role": role, "keyid": key.keyid}, view, book, as_json)


def rotate(
    role: Annotated[str, typer.Argument(help="A role of 'shoal release status', or authorities.")],
    old: Annotated[str | None, typer.Option(help="Id of the key to replace, or how it begins.")] = None,
    public: Public = None,
    unencrypted: Unencrypted = False,
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Replace a key of a role; for fleet, snapshot and timestamp by the one that the fleet has made to follow.

    `rotate authorities` lets devices believe the certificate authorities that the fleet has now.
    """
    from cli.trust import ceremony, desk  # noqa: PLC0415
    from cli.trust.roles import ONLINE_ROLES  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book = at.trust.book()
    roles = book.roles()
    after = roles
    if role == AUTHORITIES:
        after = ceremony.with_authorities(roles, at.trust.fetched())
        view = f"devices will believe {len(after.authorities)} certificate authorities"
    else:
        gone = ceremony.key_of(roles, role, old)
        new = _following(at, roles, role, public, unencrypted=unencrypted)
        after = ceremony.rotated(roles, role, gone, new)
        view = f"{role}: key {gone[:12]} is replaced by {new.keyid[:12]}"
    from_fleet = role == AUTHORITIES or role in ONLINE_ROLES
    book = at.finish(ceremony.with_roles(book, after, datetime.now(UTC)), yes=yes, ask=from_fleet)
    desk.report({"role": role}, f"{view} once this is signed and published", book, as_json)


def renew(
    role: Role,
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Sign a role's metadata for another year, as it is."""
    from cli.trust import ceremony, desk  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book = at.finish(ceremony.renewed(at.trust.book(), role, datetime.now(UTC)), yes=yes)
    desk.report({"role": role}, f"{role}: signed for another year", book, as_json)


def _following(at: Desk, roles: Roles, role: str, public: Path | None, *, unencrypted: bool) -> Key:
    from cli.trust import ceremony  # noqa: PLC0415
    from cli.trust.roles import ONLINE_ROLES  # noqa: PLC0415

    if role not in ONLINE_ROLES:
        return _key(at, role, public, unencrypted=unencrypted)
    if public is not None:
        raise BadInput(f"role {role}: the fleet makes its key: run 'shoal release fetch --prepare {role}'")
    return ceremony.next_online_key(roles, at.trust.fetched(), role)


def _key(at: Desk, role: str, public: Path | None, *, unencrypted: bool) -> Key:
    from cli.trust.desk import passphrase_for_new  # noqa: PLC0415
    from cli.trust.keys import read_public  # noqa: PLC0415

    if public is not None:
        return read_public(public)
    (made,) = at.keys.make(role, 1, passphrase_for_new(unencrypted))
    return made
