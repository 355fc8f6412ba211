from __future__ import annotations

import asyncio
import threading

from agent.errors import Incompatible
from agent.install.fetch import to_the_end
from agent.update import ModelState
from wire import topics
from wire.chunks import digest

ON = "turn the light on"


def refuses(*_: object) -> None:
    raise Incompatible("no runtime")


def test_a_release_is_fetched_tested_switched_to_and_committed(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        answer = await device.service.infer("kitchen", (ON,))
        assert (answer.digest, answer.results[0].labels[0]) == (bundles["one"].digest, "light-on")
        assert device.active() == [bundles["one"].digest]
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_lost_repeated_shuffled_and_flipped_chunks_are_repaired(new_device, sim, bundles) -> None:
    """Accident: a line that loses a third of the chunks, flips bits in some, repeats and reorders."""
    sim.faults.lose, sim.faults.corrupt, sim.faults.repeat, sim.faults.shuffle = 0.3, 0.2, 0.2, True

    async def story() -> None:
        device = new_device(bad_chunks=1000)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        assert sim.faults.fired.keys() >= {"lost", "corrupt", "repeat"}
        assert any("does not open" in reason for _, reason in device.events)
        for path in device.store.folder.iterdir():
            assert digest(path.read_bytes()) == f"sha256:{path.name}"
        await device.stop()

    asyncio.run(story())


def test_a_tampered_chunk_is_refused_before_it_is_stored_and_the_old_model_answers(new_device, sim, bundles) -> None:
    """Attack: the source, which holds the key, encrypts a chunk with one bit flipped, every time."""

    async def story() -> None:
        device = new_device(bad_chunks=3)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        sim.release(bundles["two"])
        sim.faults.tampered = {2}
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await device.until_phase("refused")
        model = bundles["two"].manifest.file("model")
        assert sim.faults.fired["tampered"] >= 3
        assert model.digest in device.phases()["refused"]
        assert "chunk 2 came with another digest" in device.phases()["refused"]
        assert [subject for subject, _ in device.events] == [model.digest]
        await device.until(lambda: not list(device.store.folder.glob("*.partial")))
        assert not device.store.has(model.digest)
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await device.stop()

    asyncio.run(story())


def test_a_broken_bundle_fails_its_self_test_and_the_old_model_answers(new_device, sim, bundles) -> None:
    """Accident: the weights were scrambled after the golden set was made; every signature and digest is right."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        sim.release(bundles["broken"])
        sim.desire(bundles["broken"], rollout="r2")
        device.hear_retained()
        await device.until_phase("failed")
        assert "golden cases do not hold" in device.phases()["failed"]
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        assert device.active() == [bundles["one"].digest]
        await device.until(lambda: not device.store.has(bundles["broken"].manifest.file("model").digest))
        await device.stop()

    asyncio.run(story())


def test_an_update_can_be_rolled_back_by_a_newer_desired_state_without_fetching(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.release(bundles["two"])
        for name in ("one", "two"):
            sim.desire(bundles[name], rollout=name)
            device.hear_retained() if device.link.up else device.connect()
            await device.until(lambda name=name: device.active() == [bundles[name].digest])
        before = sim.sent_chunks
        sim.desire(bundles["one"], rollout="two")
        device.hear_retained()
        await device.until(lambda: device.active() == [bundles["one"].digest])
        assert sim.sent_chunks == before
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await device.stop()

    asyncio.run(story())


def test_a_restart_without_network_answers_with_the_last_model(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        await device.stop()
        again = new_device()
        await again.installer.restore()
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await again.stop()

    asyncio.run(story())


def test_models_that_do_not_load_at_a_start_are_not_swept_and_answer_at_the_next(
    new_device, sim, bundles, monkeypatch
) -> None:
    """Accident: the runtime is broken or gone for one start, and takes neither the active model nor the previous."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.release(bundles["two"])
        for name in ("one", "two"):
            sim.desire(bundles[name], rollout=name)
            device.hear_retained() if device.link.up else device.connect()
            await device.until(lambda name=name: device.active() == [bundles[name].digest])
        await device.stop()
        with monkeypatch.context() as patch:
            patch.setattr("agent.install.installer.Served.load", refuses)
            broken = new_device()
            await broken.installer.restore()
            await broken.stop()  # waits for the sweep
        assert all(broken.store.has(blob) for name in ("one", "two") for blob in blobs(bundles[name]))
        again = new_device()
        await again.installer.restore()
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["two"].digest
        await again.stop()

    asyncio.run(story())


def test_models_that_did_not_load_go_when_a_newer_desired_state_brings_another(
    new_device, sim, bundles, monkeypatch
) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        await device.stop()
        again = new_device()
        with monkeypatch.context() as patch:
            patch.setattr("agent.install.installer.Served.load", refuses)
            await again.installer.restore()
        sim.release(bundles["two"])
        sim.desire(bundles["two"], rollout="r2")
        again.connect()
        await again.until(lambda: again.active() == [bundles["two"].digest])
        await again.until(lambda: not again.store.has(bundles["one"].digest))
        await again.stop()

    asyncio.run(story())


def blobs(bundle) -> set[str]:
    return {bundle.digest, *(file.digest for file in bundle.manifest.files)}


def test_an_interrupted_fetch_goes_on_with_what_was_verified(new_device, sim, bundles) -> None:
    """Accident: the line, then the agent, dies in the middle of the model's file; one chunk on disk is torn."""
    model = bundles["one"].manifest.file("model")

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        partial = (device.store.folder / model.digest.removeprefix("sha256:")).with_suffix(".partial")
        arrive, chunks = device.link._arrive, 0

        def cut_after_three(topic: str, payload: bytes) -> None:
            nonlocal chunks
            chunks += model.digest.removeprefix("sha256:") in topic
            if chunks > 3:
                device.link.up = False
            arrive(topic, payload)

        device.link._arrive = cut_after_three
        device.connect()
        await device.until(lambda: chunks > 3)
        await device.stop()
        with partial.open("r+b") as file:
            file.write(b"torn")
        again = new_device()
        await again.installer.restore()
        sent = sim.sent_chunks
        again.connect()
        await again.until_phase("committed")
        refetched = sim.sent_chunks - sent
        total = -(-model.size // 65536) + 5
        assert 0 < refetched <= total - 2
        await again.stop()

    asyncio.run(story())


def test_a_release_that_is_not_listed_yet_waits_and_goes_on_when_it_is(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.bundles.append(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: "waiting" in device.phases().get("fetching", ""))
        assert sim.sent_chunks == 0
        sim.repo.release(bundles["one"].target, bundles["one"].manifest_bytes)
        device.hear_retained()
        await device.until_phase("committed")
        assert device.phases()["committed"] == ""
        await device.stop()

    asyncio.run(story())


def test_a_release_with_another_digest_than_desired_is_refused(new_device, sim, bundles) -> None:
    """Attack: the fleet names other bytes under a target that the release role lists."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        swapped = bundles["two"]
        sim.desire(type(swapped)(swapped.layout, bundles["one"].target, swapped.digest, swapped.manifest))
        device.connect()
        await device.until_phase("refused")
        assert "the release role" in device.phases()["refused"]
        assert sim.sent_chunks == 0
        await device.stop()

    asyncio.run(story())


def test_a_newer_desired_state_supersedes_an_update_that_waits_for_ever(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.release(bundles["two"])
        sim.faults.lose = 1.0
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        sim.faults.lose = 0.0
        sim.desire(bundles["two"])
        device.hear_retained()
        await device.until_phase("committed")
        assert device.active() == [bundles["two"].digest]
        await device.stop()

    asyncio.run(story())


def test_a_model_that_is_no_longer_desired_is_removed_with_its_files(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        sim.desire()
        device.hear_retained()
        await device.until(lambda: device.service.names() == [] and not list(device.store.folder.iterdir()))
        assert device.installer.slots() == ()
        await device.stop()

    asyncio.run(story())


def test_a_disk_without_room_fails_the_update_before_the_model_is_fetched(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device(min_free=1 << 60)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("failed")
        assert "make room" in device.phases()["failed"]
        assert not device.store.has(bundles["one"].manifest.file("model").digest)
        await device.stop()

    asyncio.run(story())


def test_an_error_on_probation_brings_the_old_model_back(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device(probation_time=30.0)
        sim.release(bundles["one"])
        sim.release(bundles["two"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("probation")
        for _ in range(2):
            await device.service.infer("kitchen", (ON,))
        await device.until_phase("committed")
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await device.until_phase("probation")
        candidate = device.service.answering("kitchen")
        assert candidate.digest == bundles["two"].digest
        await device.until(lambda: candidate.on_outcome is not None)
        candidate.note(0.0, "the graph gave nothing")
        await device.until_phase("failed")
        assert device.phases()["failed"] == "probation: 1 of 1 requests failed: the graph gave nothing"
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await device.stop()

    asyncio.run(story())


def test_a_file_that_the_disk_changed_is_not_loaded_and_comes_again_with_the_next_update(
    new_device, sim, bundles
) -> None:
    """Accident: one bit of the active model flips on the memory card; the bytes would still load."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        path = device.store.path(bundles["one"].manifest.file("model").digest)
        await device.stop()
        with path.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
        again = new_device()
        await again.installer.restore()
        assert (again.service.names(), again.active()) == ([], [])
        sim.desire(bundles["one"], rollout="r2")
        again.connect()
        await again.until(lambda: again.active() == [bundles["one"].digest])
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await again.stop()

    asyncio.run(story())


def test_a_model_that_the_disk_changed_is_fetched_again_though_the_fleet_says_nothing_new(
    new_device, sim, bundles
) -> None:
    """Accident: the same, on one board of thousands: nobody makes a rollout for it."""

    async def story() -> None:
        device = new_device()
        for number, name in enumerate(("one", "two"), start=1):
            sim.release(bundles[name], counter=number)
            device.connect()
            device.hear_retained()
            device.hear(topics.Desired("kitchen-1"), sim.desire(bundles[name], rollout=name))
            await device.until(lambda name=name: device.active() == [bundles[name].digest])
        path = device.store.path(bundles["two"].manifest.file("model").digest)
        await device.stop()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        again = new_device()
        await again.installer.restore()
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        again.connect()
        await again.until(lambda: again.active() == [bundles["two"].digest])
        assert (again.state.last_desired(), again.events) == ((1, 2), [])
        await again.stop()

    asyncio.run(story())


def test_what_a_killed_update_left_behind_is_removed_at_the_next_start(new_device) -> None:
    async def story() -> None:
        device = new_device()
        left = device.store.path("sha256:" + "3" * 64).with_suffix(".partial")
        left.write_bytes(b"left behind")
        await device.installer.restore()
        await device.until(lambda: not left.exists())
        await device.stop()

    asyncio.run(story())


def test_a_model_that_cannot_be_restored_for_any_reason_keeps_the_agent_alive(
    new_device, sim, bundles, monkeypatch
) -> None:
    """Accident: the runtime's package broke in a system upgrade."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        await device.stop()

        def broken(_bundle: object) -> None:
            raise ImportError("libstdc++ is gone")

        monkeypatch.setattr("agent.serving.service.Served.load", broken)
        again = new_device()
        await again.installer.restore()
        assert again.service.names() == []
        await again.stop()

    asyncio.run(story())


def test_no_superseded_update_takes_a_step_while_another_one_ends(new_device, sim) -> None:
    """Accident: two models are superseded at once, and what one of them is doing is slow to end."""

    async def story() -> None:
        device = new_device()
        begun, steps, ended = 0, 0, asyncio.Event()

        async def update() -> None:
            nonlocal begun, steps
            begun += 1
            try:
                while True:
                    await asyncio.sleep(0.001)
                    steps += ended.is_set()
            finally:
                ended.set()
                await asyncio.sleep(0.05)  # slow to end: the other one would have its turn many times over

        for name in ("a", "b"):
            device.installer._models[name] = ModelState()
            device.installer._tasks[name] = asyncio.create_task(update())
        await device.until(lambda: begun == 2)
        sim.desire()
        device.connect()
        await device.until(lambda: device.state.last_desired() == (1, 1) and ended.is_set())
        await device.until(lambda: device.installer.slots() == () and not device.installer._tasks)
        assert steps == 0
        await device.stop()

    asyncio.run(story())


def test_a_cancelled_step_waits_for_its_thread_and_undoes_what_it_made() -> None:
    """Accident: a newer desired state comes while a thread opens a file that the next update opens too."""
    undone: list[str] = []
    begun, finish = threading.Event(), threading.Event()

    def open_file() -> str:
        begun.set()
        assert finish.wait(10)
        return "file"

    async def story() -> None:
        task = asyncio.create_task(to_the_end(open_file, undo=undone.append))
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        for _ in range(10):  # the cancellation arrives at the loop's next turn
            await asyncio.sleep(0)
        assert not task.done()
        finish.set()
        await asyncio.gather(task, return_exceptions=True)
        assert (task.cancelled(), undone) == (True, ["file"])

    asyncio.run(story())
