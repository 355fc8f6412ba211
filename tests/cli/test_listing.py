"""What may be installed: bundles listed, releases withdrawn, floors raised, on folders alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offline_signers import HOME, NOW, Desk, OnlineSide, found, manifest

from cli.errors import BadInput
from cli.trust import listing
from wire.errors import Untrusted
from wire.release import marks_of


def test_earlier_releases_stay_listed_and_the_counter_rises(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    desk.list(manifest("1.1.0"), manifest("1.1.0", "raspberry-pi-4"))
    releases = {r.target.removeprefix(f"{HOME}/"): r.counter for r in desk.fleet.device_view(desk.book).releases()}
    assert releases == {"1.0.0/x86-64": 1, "1.1.0/raspberry-pi-4": 2, "1.1.0/x86-64": 2}


def test_counters_belong_to_a_model_and_every_version_gets_its_own(desk: Desk) -> None:
    added = desk.list(manifest("1.0.0"), manifest("1.1.0"), manifest("1.0.0", name="yard"))
    assert added == {"1.0.0/x86-64": 1, "1.1.0/x86-64": 2, "models/intents/yard/1.0.0/x86-64": 1}


def test_signing_the_same_bundles_again_changes_nothing(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    before = desk.book
    assert desk.list(manifest("1.0.0")) == {}
    assert desk.book == before


def test_a_version_never_changes(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    changed = manifest("1.0.0").replace(b'"shoal.precision":"int8"', b'"shoal.precision":"fp32"')
    assert changed != manifest("1.0.0")
    with pytest.raises(BadInput, match="a version never changes"):
        desk.list(changed)


def test_a_family_without_keys_says_how_to_make_them(desk: Desk) -> None:
    with pytest.raises(BadInput, match="release init --family locks"):
        desk.list(manifest("1.0.0", family="locks"))


def test_a_withdrawn_release_is_not_listed_and_its_counter_is_not_used_again(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    desk.list(manifest("2.0.0"))
    book, gone = listing.withdraw(desk.book, [f"{HOME}/2.0.0/x86-64"], NOW)
    desk.sign(book)
    assert [r.counter for r in gone] == [2]
    assert [r.target for r in desk.fleet.device_view(desk.book).releases()] == [f"{HOME}/1.0.0/x86-64"]
    assert desk.list(manifest("2.0.1")) == {"2.0.1/x86-64": 3}


def test_the_last_release_of_a_model_can_be_withdrawn_and_leaves_its_mark(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    desk.list(manifest("2.0.0"))
    desk.sign(listing.raise_floor(desk.book, "intents/home", 2, NOW)[0])
    desk.sign(listing.withdraw(desk.book, [f"{HOME}/2.0.0/x86-64"], NOW)[0])
    assert list(desk.fleet.device_view(desk.book).releases()) == []
    assert desk.list(manifest("3.0.0")) == {"3.0.0/x86-64": 3}
    assert desk.fleet.device_view(desk.book).floors() == {"intents/home": 2}


def test_what_is_not_listed_is_not_withdrawn(desk: Desk) -> None:
    with pytest.raises(BadInput, match="not listed"):
        listing.withdraw(desk.book, [f"{HOME}/9.0.0/x86-64"], NOW)


def test_a_version_of_many_profiles_asks_which(desk: Desk) -> None:
    desk.list(manifest("1.0.0"), manifest("1.0.0", "raspberry-pi-4"))
    both = [f"{HOME}/1.0.0/raspberry-pi-4", f"{HOME}/1.0.0/x86-64"]
    with pytest.raises(BadInput, match="--all-profiles: raspberry-pi-4, x86-64"):
        listing.chosen(desk.book, "intents/home", "1.0.0", None, every=False)
    assert sorted(listing.chosen(desk.book, "intents/home", "1.0.0", None, every=True)) == both
    assert listing.chosen(desk.book, "intents/home", "1.0.0", "x86-64", every=False) == both[1:]


def test_a_floor_kills_what_is_below_and_stays_with_what_comes(desk: Desk) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        desk.list(manifest(version))
    assert [r.counter for r in listing.killed_by(desk.book, "intents/home", 3)] == [1, 2]
    desk.sign(listing.raise_floor(desk.book, "intents/home", 3, NOW)[0])
    desk.list(manifest("1.3.0"))
    trust = desk.fleet.device_view(desk.book)
    assert {r.counter: r.floor for r in trust.releases()} == {3: 3, 4: 3}
    with pytest.raises(Untrusted, match="no release role lists it"):
        trust.release(f"{HOME}/1.0.0/x86-64", NOW)


@pytest.mark.parametrize(
    ("floor", "why"), [(2, "never falls"), (1, "never falls"), (4, "kills every release"), (99, "kills every release")]
)
def test_a_floor_that_falls_or_kills_everything_is_refused(desk: Desk, floor: int, why: str) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        desk.list(manifest(version))
    desk.sign(listing.raise_floor(desk.book, "intents/home", 2, NOW)[0])
    with pytest.raises(BadInput, match=why):
        listing.raise_floor(desk.book, "intents/home", floor, NOW)


ACTS = st.lists(st.tuples(st.sampled_from(["release", "withdraw", "floor"]), st.integers(0, 6)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(acts=ACTS)
def test_whatever_is_done_no_floor_falls_no_counter_comes_twice_and_nothing_dead_is_listed(
    acts: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    desk = found(tmp_path_factory.mktemp("trust"), OnlineSide(), threshold=1)
    given_out: list[int] = []
    floor, serial = 0, 0
    for act, number in acts:
        try:
            if act == "release":
                serial += 1
                given_out += desk.list(manifest(f"1.0.{serial}")).values()
            elif act == "withdraw":
                listed = sorted(listing.Listing.of(desk.book, "intents").releases)
                desk.sign(listing.withdraw(desk.book, listed[number : number + 1], NOW)[0])
            else:
                desk.sign(listing.raise_floor(desk.book, "intents/home", number, NOW)[0])
        except BadInput:
            continue
        newest = desk.book.newest("release-intents")
        mark = marks_of(newest).get("intents/home")
        assert (mark.floor if mark else 0) >= floor
        floor = mark.floor if mark else 0
        assert given_out == sorted(set(given_out))
        assert all(r.counter >= floor and r.floor == floor for r in desk.fleet.device_view(desk.book).releases())
