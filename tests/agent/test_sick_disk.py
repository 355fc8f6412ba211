"""A disk that is full or read-only, a real one: the last good model answers, and all else comes back by itself."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import power_cut
import pytest
from simulators import simulator

from agent.agent import locked
from agent.errors import Unavailable
from agent.store.state import StateFile
from wire import topics

Device = simulator("agent").Device
ON = "turn the light on"


class SmallDisk:
    """A file system in memory, mounted on a folder; `fault` makes it full or read-only, `mend` undoes that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fault(self, kind: str) -> None:
        if kind == "read-only":
            self.mount("remount,ro")
            return
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as e:
                assert e.errno == errno.ENOSPC  # noqa: PT017  thousands of writes, and only the last one raises

    def mend(self) -> None:
        self.mount("remount,rw")
        (self.folder / "filler").unlink(missing_ok=True)

    def mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"{options},size=4m", "shoal-test", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path, new_device: object) -> Iterator[SmallDisk]:
    """Under the state folder of the test's device."""
    disk = SmallDisk(tmp_path / "state")
    try:
        disk.mount("rw")
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no file system can be mounted here: {e}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


async def committed(new_device: Callable[..., object], sim, bundle) -> None:
    """A device with this model, switched off."""
    device = new_device()
    sim.release(bundle)
    sim.desire(bundle)
    device.connect()
    await device.until_phase("committed")
    await device.stop()


@pytest.mark.parametrize("kind", ["full", "read-only"])
@pytest.mark.parametrize("power_cut", [False, True])
def test_the_last_good_model_answers_and_the_device_is_back_when_the_disk_is(
    disk, new_device, sim, bundles, kind, power_cut
) -> None:
    """Accident: a device starts on a disk that takes nothing, after a clean end or with the log of a power cut."""

    async def story() -> None:
        await committed(new_device, sim, bundles["one"])
        if power_cut:
            log_left_behind(disk.folder)
        disk.fault(kind)
        reports = len(sim.reports)
        device = new_device()
        assert device.state.fault, "the fault must fire"
        await device.core.start()
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        assert device.state.last_desired() == (1, 1)
        assert device.state.last_command()[0] == ((1, 9) if power_cut else (0, 0)), "what stands in the log counts"
        device.connect()
        sim.release(bundles["two"], counter=2)
        device.hear(topics.Desired("kitchen-1"), sim.desire(bundles["two"]))
        device.core.close_window()
        assert device.core.status()["disk"] == device.state.fault
        await device.until(lambda: device.core.reporter._pause > 0.2)
        assert len(sim.reports) == reports, "nothing is said under a number that is not kept"
        disk.mend()
        await device.until(lambda: len(sim.reports) > reports)
        assert device.core.status()["disk"] == ""
        device.hear_retained()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        await device.stop()

    asyncio.run(story())


def log_left_behind(folder: Path) -> None:
    """The write-ahead log with the newest changes in it, and no index of it, as a power cut leaves them."""
    state = StateFile.open(folder / "agent.db")
    state.accept_command((1, 9), "done")
    files = {name: (folder / name).read_bytes() for name in ("agent.db", "agent.db-wal")}
    state.close()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_an_update_that_meets_a_full_disk_goes_on_when_there_is_room(new_device, sim, bundles, monkeypatch) -> None:
    """Accident: the disk takes no step of an update. It ended there without a word, until the next start."""
    monkeypatch.setattr("agent.install.installer.DISK_AGAIN", 0.05)

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.faults.lose = 1.0
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        device.state._db.execute("CREATE TRIGGER full BEFORE INSERT ON models BEGIN SELECT RAISE(ABORT, 'full'); END")
        sim.faults.lose = 0.0
        await device.until(lambda: "waiting: " in "".join(device.phases().values()))
        assert "make room" in "".join(device.phases().values())
        device.state._db.execute("DROP TRIGGER full")
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_a_disk_that_others_fill_during_a_transfer_fails_the_update_and_the_next_one_runs(
    disk, new_device, sim, bundles
) -> None:
    """Accident: there was room when it began; then a product app wrote its log."""

    async def story() -> None:
        await committed(new_device, sim, bundles["one"])
        device = new_device()
        await device.core.start()
        sim.faults.lose = 1.0
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        disk.fault("full")
        sim.faults.lose = 0.0
        await device.until(lambda: "make room" in "".join(device.phases().values()))
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        disk.mend()
        sim.desire(bundles["two"], rollout="r3")
        device.hear_retained()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        await device.stop()

    asyncio.run(story())


@pytest.mark.skipif(power_cut.why_not() is not None, reason=f"no disk to fail: {power_cut.why_not()}")
def test_a_disk_that_fails_under_a_running_agent_takes_no_answer_away(
    tmp_path, sim, bundles, device_key, sealing_key
) -> None:
    """Accident: the card stops taking anything, from one moment to the next, in the middle of an update."""
    with power_cut.Disk(tmp_path) as disk:

        def new_device() -> Device:
            return Device(disk.folder, sim, device_key, sealing_key)

        async def story() -> None:
            await committed(new_device, sim, bundles["one"])
            device = new_device()
            await device.core.start()
            sim.faults.lose = 1.0
            sim.release(bundles["two"], counter=2)
            sim.desire(bundles["two"], rollout="r2")
            device.connect()
            await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
            disk.cut()
            with pytest.raises(OSError, match="Input/output error"):
                (disk.folder / "anything").write_bytes(b"")
            sim.faults.lose = 0.0
            await device.until(lambda: device.phases().keys() & {"failed", "fetching"} and sim.wants > 2)
            for _ in range(20):
                assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
                device.core.close_window()
                device.core.look()
            await device.stop()

        asyncio.run(story())
        disk.unmount()
        disk.mount()

        async def after() -> None:
            device = new_device()
            await device.core.start()
            assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
            device.connect()
            await device.until(lambda: device.active() == [bundles["two"].digest])
            await device.stop()

        asyncio.run(after())


def test_a_desired_state_that_met_a_full_disk_is_asked_for_until_it_is_kept(new_device, sim, bundles) -> None:
    """Accident: it is retained, so the broker brings it on a new subscription only."""

    async def story() -> None:
        device = new_device(freeze_after=0.2, ack_timeout=0.05)
        await device.core.start()
        sim.release(bundles["one"])
        device.connect()
        await device.until(lambda: device.clock.learnt)
        full = (
            "CREATE TRIGGER full BEFORE INSERT ON meta WHEN NEW.key = 'desired' BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        device.state._db.execute(full)
        device.hear(topics.Desired("kitchen-1"), sim.desire(bundles["one"]))
        device.core.reporter.soon()
        await device.until(lambda: device.core._frozen() is not None)
        device.state._db.execute("DROP TRIGGER full")
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_one_agent_a_folder_also_on_a_disk_that_takes_nothing(disk, kind) -> None:
    with locked(disk.folder):
        pass
    disk.fault(kind)
    with locked(disk.folder), pytest.raises(Unavailable, match="an agent runs here already"), locked(disk.folder):
        pass


def test_a_folder_that_cannot_be_locked_at_all_says_why(disk) -> None:
    disk.fault("read-only")
    with pytest.raises(Unavailable, match=r"agent.lock: cannot be made: Read-only file system"), locked(disk.folder):
        pass
