"""Which of the wanted models fit: decided before anything is fetched, in the order of the desired state."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import make_layout

from agent.capacity import Need, Room, estimated_memory, misfits
from agent.install.releases import Releases
from wire.errors import Malformed
from wire.messages import Want
from wire.profile import Limits

MB = 1024 * 1024
ROOM = Room(disk=100 * MB, free=1000 * MB, memory=100 * MB)


def need(model: str, **figures: Any) -> Need:
    return Need(model=model, **{name: n * MB if name != "wants" else n for name, n in figures.items()})


def test_what_fits_together_is_taken() -> None:
    assert misfits([need("a", coming=50, memory=40), need("b", coming=50, memory=60)], ROOM) == {}


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"coming": 51}, "it needs 51.0 MiB more disk, 50.0 MiB of the 100.0 MiB that the profile gives to models"),
        ({"memory": 61}, "it needs 61.0 MiB more memory, 60.0 MiB of the 100.0 MiB that the profile gives to models"),
    ],
)
def test_the_first_in_the_desired_state_takes_its_room_and_the_second_is_refused_with_the_figures(
    figures, words
) -> None:
    found = misfits([need("a", coming=50, memory=40), need("b", **figures)], ROOM)
    assert list(found) == ["b"]
    assert words in found["b"]


def test_a_model_that_is_refused_takes_no_room_from_those_after_it() -> None:
    found = misfits([need("a", coming=200), need("b", coming=100)], ROOM)
    assert list(found) == ["a"]


def test_the_free_disk_is_shared_by_all_that_come() -> None:
    """Accident: two models that fit one by one, and not together: the second stopped in the middle of its download."""
    found = misfits([need("a", fetch=6), need("b", fetch=6)], replace(ROOM, free=10 * MB))
    assert "4.0 MiB this device has now are left: make room" in found["b"]


def test_what_stands_in_slots_has_its_room_whatever_its_place_in_the_order() -> None:
    assert list(misfits([need("a", coming=10), need("b", held=95, wants=False)], ROOM)) == ["a"]
    assert list(misfits([need("a", memory=30), need("b", memory=80, stays=80, wants=False)], ROOM)) == ["a"]


def test_a_new_version_of_the_same_size_needs_no_more_memory() -> None:
    assert misfits([need("a", memory=90, stays=90)], ROOM) == {}


@given(
    st.lists(
        st.builds(
            lambda model, held, coming, stays, more, wants: need(
                str(model), held=held, coming=coming, stays=stays, memory=stays + more, wants=wants
            ),
            *(st.integers(0, 50) for _ in range(5)),
            st.booleans(),
        ),
        max_size=8,
        unique_by=lambda n: n.model,
    )
)
def test_what_is_accepted_never_takes_more_than_there_is(needs) -> None:
    refused = misfits(needs, ROOM)
    taken = [n for n in needs if n.wants and n.model not in refused]
    assert not refused.keys() - {n.model for n in needs if n.wants}
    if sum(n.held for n in needs) <= ROOM.disk:
        assert sum(n.held for n in needs) + sum(n.coming for n in taken) <= ROOM.disk or not taken
    if sum(n.stays for n in needs) <= ROOM.memory and taken:
        grown = sum(n.memory if n in taken else n.stays for n in needs)
        assert grown <= ROOM.memory


def test_the_estimate_is_what_was_measured() -> None:
    """The runtime's own figures, in MB: file and growth of a process that loaded it and ran it three times."""
    for file, measured in ((0.25, 9.9), (8.4, 26.1), (8.4, 26.7), (33.6, 72.3), (33.6, 77.7), (134.2, 219.3)):
        estimate = estimated_memory(int(file * 1e6)) / 1e6
        assert measured <= estimate <= 1.35 * measured + 2


def test_a_profile_gives_three_bundles_of_disk_unless_it_says_otherwise() -> None:
    assert Limits(disk="64 MiB", memory="160 MiB").store_bytes == 192 * MB
    assert Limits(disk="64 MiB", memory="160 MiB", store="100 MiB").store_bytes == 100 * MB
    with pytest.raises(Malformed, match=r"limits\.store"):
        _ = Limits(disk="64 MiB", memory="160 MiB", store="much").store_bytes


@pytest.mark.parametrize("held_up", [False, True])
@pytest.mark.parametrize("named", [True, False])
def test_the_model_that_does_not_fit_is_refused_before_it_is_fetched_and_the_other_one_runs(
    new_device, sim, tmp_path, monkeypatch, named, held_up
) -> None:
    """The size is in the signed release; where an older signer left it out, the manifest is fetched to know it.

    `held_up`: the model that comes first in the desired state is looked at last.
    """
    first = make_layout(tmp_path / "layout", name="kitchen")
    second = make_layout(tmp_path / "layout", name="lock", version="2.0.0")
    keyless, looked = Releases._keyless, []

    def slowly(self: Releases, manifest: str) -> set[str]:
        if held_up and manifest == first.digest and not looked:
            looked.append(manifest)
            time.sleep(0.5)  # a thread that gets no processor; the other model is at its lock long before
        return keyless(self, manifest)

    monkeypatch.setattr(Releases, "_keyless", slowly)

    async def story() -> None:
        device = new_device()
        rooms = device.installer._rooms
        disk = f"{(first.manifest.size + second.manifest.size // 2)} B"
        device.installer._rooms = replace(rooms, limits=Limits(disk=disk, memory="1 GiB", store=disk))
        for bundle in (first, second):
            sim.release(bundle)
            listed = sim.repo.releases[bundle.target]
            sim.repo.releases[bundle.target] = replace(listed, size=bundle.manifest.size if named else 0)
        sim.repo.sign_release()
        sim.desire(first, second)
        device.connect()
        await device.until(lambda: {"committed", "failed"} <= device.phases().keys())
        assert device.service.names() == ["kitchen"]
        reason = device.phases()["failed"]
        assert reason.startswith("lock does not fit: it needs ")
        assert f"of the {int(disk[:-2]) / 1024:.1f} KiB that the profile gives to models are left" in reason
        wanted = [Want.from_bytes(data).digest for topic, data in device.link.published if topic.endswith("/want")]
        assert (second.digest in wanted) is not named
        assert second.manifest.file("model").digest not in wanted
        assert bool(looked) is held_up
        assert not device.store.has(second.manifest.file("model").digest)
        await device.stop()

    asyncio.run(story())


def test_what_the_self_test_measured_counts_more_than_the_estimate(new_device, sim, bundles) -> None:
    """A model file says little of the memory of its graph: the device knows it before the model answers anybody."""

    async def story() -> None:
        device = new_device()
        device.installer._rooms = replace(device.installer._rooms, limits=Limits(disk="1 GiB", memory="13 MiB"))
        assert estimated_memory(bundles["one"].manifest.file("model").size) < 13 * MB
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("failed")
        assert "more memory, 13.0 MiB of the 13.0 MiB that the profile gives to models" in device.phases()["failed"]
        assert device.service.names() == []
        await device.stop()

    asyncio.run(story())


def test_a_model_whose_file_alone_says_that_it_is_too_heavy_is_not_fetched(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        device.installer._rooms = replace(device.installer._rooms, limits=Limits(disk="1 GiB", memory="12 MiB"))
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("failed")
        assert "more memory" in device.phases()["failed"]
        assert not device.store.has(bundles["one"].manifest.file("model").digest)
        await device.stop()

    asyncio.run(story())
