"""Releases as a role lists them, floors and marks, and the builders of signed metadata."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trust_repository import new_signer
from tuf.api.metadata import Metadata, Targets

from wire.chunks import digest
from wire.errors import Malformed
from wire.release import Mark, Release, floors, marks_of, model_of, releases_of
from wire.signing import RoleKeys, release_document, release_role, targets_document

EXPIRES = datetime(2027, 11, 22, 8, tzinfo=UTC)
COUNTS = st.integers(0, 2**53)
MODELS = st.sampled_from(["kitchen", "yard"])


def release(name: str = "kitchen", version: int = 1, counter: int = 1, floor: int = 0) -> Release:
    target = f"models/intents/{name}/{version}.0.0/x86-64"
    return Release(target, digest(target.encode()), 7, "x86-64", "onnxruntime", counter, floor)


def signed(*releases: Release, marks: dict[str, Mark] | None = None) -> Targets:
    data = release_document(1, releases, EXPIRES, [new_signer()], marks)
    return Metadata[Targets].from_bytes(data).signed


@st.composite
def listings(draw: st.DrawFn) -> list[Release]:
    versions = draw(st.lists(st.tuples(MODELS, st.integers(1, 99)), unique=True, max_size=6))
    return [release(name, version, draw(COUNTS), draw(COUNTS)) for name, version in versions]


@given(listings())
def test_what_a_role_lists_is_what_was_signed(listed: list[Release]) -> None:
    assert releases_of(signed(*listed)) == sorted(listed, key=lambda r: r.target)


@given(listings())
def test_the_floor_of_a_model_is_the_highest_that_any_of_its_releases_names(listed: list[Release]) -> None:
    found = floors(listed)
    for model in {r.model for r in listed}:
        assert found.get(model, 0) == max(r.floor for r in listed if r.model == model)
    assert all(floor > 0 for floor in found.values())


@given(listings(), st.dictionaries(MODELS.map("intents/{}".format), st.builds(Mark, COUNTS, COUNTS)))
def test_a_mark_is_never_below_what_is_listed_or_was_kept(listed: list[Release], kept: dict[str, Mark]) -> None:
    marks = marks_of(signed(*listed, marks=kept))
    for model, mark in kept.items():
        assert marks[model] == mark.above(marks[model])
    for each in listed:
        assert marks[each.model] == marks[each.model].above(Mark(each.counter, each.floor))
    assert marks.keys() == {*kept, *(r.model for r in listed)}


def test_a_release_without_a_floor_says_nothing_of_one() -> None:
    """What agents of before read stays as it was."""
    (entry,) = signed(release()).targets.values()
    assert entry.unrecognized_fields["custom"].keys() == {"profile", "runtime", "counter"}


@pytest.mark.parametrize("value", [-1, True, "3", 1.5, None])
@pytest.mark.parametrize("field", ["counter", "floor"])
def test_a_counter_or_floor_that_is_no_whole_number_is_malformed(field: str, value: object) -> None:
    targets = signed(release(floor=1))
    (entry,) = targets.targets.values()
    entry.unrecognized_fields["custom"][field] = value
    with pytest.raises(Malformed, match="counter and floor"):
        releases_of(targets)


def test_the_size_of_a_bundle_travels_with_its_release() -> None:
    (read,) = releases_of(signed(replace(release(), size=323_501)))
    assert read.size == 323_501


@pytest.mark.parametrize("value", [-1, True, "3", 1.5, None])
def test_a_size_that_is_no_whole_number_is_malformed(value: object) -> None:
    targets = signed(release())
    (entry,) = targets.targets.values()
    entry.unrecognized_fields["custom"]["size"] = value
    with pytest.raises(Malformed, match="size is no whole number of bytes"):
        releases_of(targets)


@pytest.mark.parametrize(
    "models", [[], {"intents/kitchen": 3}, {"intents/kitchen": {"counter": -1, "floor": 0}}, {"a": {"counter": 1}}]
)
def test_marks_of_another_form_are_malformed(models: Any) -> None:
    targets = signed()
    targets.unrecognized_fields["custom"] = {"models": models}
    with pytest.raises(Malformed, match="models"):
        marks_of(targets)


def test_a_model_is_family_and_name() -> None:
    assert model_of("models/intents/kitchen/1.0.0/x86-64") == release().model == "intents/kitchen"


def test_a_release_role_may_list_its_family_only_and_the_fleet_role_nothing() -> None:
    keys = RoleKeys((new_signer().public_key,))
    data = targets_document(1, keys, {"intents": keys}, EXPIRES, [], ["PEM"])
    targets = Metadata[Targets].from_bytes(data).signed
    assert targets.delegations is not None
    roles = targets.delegations.roles or {}
    assert (roles["fleet"].paths, roles[release_role("intents")].paths) == ([], ["models/intents/*/*/*"])
    assert targets.unrecognized_fields["custom"] == {"authorities": ["PEM"]}


@pytest.mark.parametrize("family", ["", "../x", "A", "x" * 80])
def test_a_family_that_is_no_name_has_no_role(family: str) -> None:
    with pytest.raises(Malformed):
        release_role(family)
