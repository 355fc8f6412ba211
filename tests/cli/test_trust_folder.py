"""The folder that travels: whole or not at all, and two copies of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from offline_signers import NOW, Desk, OnlineSide, found, manifest
from trust_repository import new_signer

from cli.errors import BadInput
from cli.trust import ceremony, listing
from cli.trust.folder import TrustFolder


def test_a_folder_gives_back_what_it_was_given(desk: Desk, tmp_path: Path) -> None:
    folder = TrustFolder(tmp_path / "other")
    staged, _, _ = listing.list_bundles(desk.book, [manifest("1.0.0")], NOW)
    folder.save(staged)
    assert folder.book() == staged
    folder.save(desk.sign(staged))
    assert folder.book() == desk.book
    assert list((tmp_path / "other" / "staged").iterdir()) == []


def test_a_staged_document_that_was_overtaken_is_dropped(desk: Desk, tmp_path: Path) -> None:
    folder = TrustFolder(tmp_path / "other")
    staged, _, _ = listing.list_bundles(desk.book, [manifest("1.0.0")], NOW)
    folder.save(staged)
    desk.list(manifest("2.0.0"))
    assert folder.book().take(desk.book.signed) == desk.book


def test_two_who_signed_the_same_version_apart_are_told(desk: Desk) -> None:
    """Accident: two copies of a trust folder, both signed on."""
    other = Desk(desk.fleet, desk.keys, desk.book)
    desk.list(manifest("1.0.0"))
    other.list(manifest("2.0.0"))
    with pytest.raises(BadInput, match="apart from each other"):
        desk.book.take(other.book.signed)
    with pytest.raises(BadInput, match="apart from each other"):
        desk.book.newer_than(other.book.signed)


def test_documents_of_another_fleet_do_not_fit_a_folder(desk: Desk, tmp_path: Path) -> None:
    """Attack: a hostile fleet hands out a root that our root's keys did not sign."""
    other = found(tmp_path / "other", OnlineSide())
    other.rotate("root", other.book.roles().ids("root")[0])
    with pytest.raises(BadInput, match="do not fit"):
        desk.book.take({"root/2": other.book.signed["root/2"]})


def test_a_signed_document_that_lost_its_keys_is_named(desk: Desk) -> None:
    roles = desk.book.roles()
    for old in roles.ids("release-intents"):
        roles = ceremony.rotated(roles, "release-intents", old, new_signer().public_key)
    unsigned = ceremony.with_roles(desk.book, roles, NOW)
    half = unsigned.sign(desk.keys.signers(unsigned.wanted()))
    assert list(half.faults()) == ["release-intents: signed by 0 of 2 keys of release-intents"]


SAVE = """
import os, signal, sys
from pathlib import Path
from cli.trust.folder import TrustFolder
before, after = (TrustFolder(Path(p)) for p in sys.argv[1:3])
book, left = after.book(), int(sys.argv[3])
def count(event, args):
    global left
    if event in ("os.rename", "os.remove") and "shoal-cut" in str(args):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
before.save(book)
"""


def test_a_command_that_is_killed_at_any_write_leaves_the_old_or_the_new_documents(desk: Desk, tmp_path: Path) -> None:
    """Accident: SIGKILL at each rename and removal of a save; the next command goes on and ends with the new ones."""
    desk.list(manifest("1.0.0"))
    before = desk.book
    desk.rotate("release-intents", before.roles().ids("release-intents")[0])
    TrustFolder(tmp_path / "after").save(desk.book)
    fired = 0
    for cut in range(20):
        folder = TrustFolder(tmp_path / f"shoal-cut-{cut}")
        folder.save(before)
        program = [sys.executable, "-P", "-c", SAVE, str(folder.folder), str(tmp_path / "after"), str(cut)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        code = subprocess.run(program, env=environment, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        held = folder.book()
        assert not list(held.faults())
        desk.fleet.device_view(held)
        if code == 0:
            assert held == desk.book
            break
        fired += 1
        goes_on = held.sign(desk.keys.signers(held.wanted()))
        folder.save(goes_on)
        assert folder.book().staged == {}
    assert fired >= 4
