"""Who is attacked: the agent's real parts, on a line that the attacker holds.

Every test here is one attack. `mutations.toml` names for each the defence whose removal makes it fail, and
`scripts/check-attacks` removes them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from simulators import simulator
from trust_repository import Repository

from agent.store.state import StateFile
from agent.trust.clock import Clock
from agent.trust.keeper import TrustKeeper
from wire import topics
from wire.errors import WireError

TARGET = "models/intents/kitchen/1.0.0/x86-64"


_agent = simulator("agent")
sim, new_device, bundles = _agent.sim, _agent.new_device, _agent.bundles
device_key, sealing_key = _agent.device_key, _agent.sealing_key


@pytest.fixture(autouse=True)
def soon_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent says after two quiet seconds that something was an attack; here after a tenth of that."""
    monkeypatch.setattr("agent.inbox.QUIET", 0.2)


class TrustedDevice:
    """A device that hears trusted metadata from whoever sends it, and keeps it in its state file."""

    def __init__(self, folder: Path, repo: Repository) -> None:
        self.repo = repo
        self.state = StateFile.open(folder / "agent.db")
        self.state.save_trust({"root": repo.roots[1]})
        clock = Clock(self.state, wall=lambda: repo.now, monotonic=lambda: 0.0)
        clock.learn(repo.now, latest=repo.expires)
        self.keeper = TrustKeeper(self.state, clock)

    def hear(self, documents: Mapping[str, bytes]) -> dict[str, WireError]:
        """What a quiet moment after these documents is judged to be an attack, by document."""
        for name, data in documents.items():
            root = name.startswith("root/")
            self.keeper.take(topics.TrustRoot(int(name[5:])) if root else topics.TrustRole(name), data)
        self.keeper.settle()
        return self.keeper.judge()

    @property
    def held(self) -> dict[str, bytes]:
        """What is trusted, as it is on disk."""
        return self.state.trust_documents()

    @property
    def trusted(self):
        return self.keeper.trusted


@pytest.fixture
def repo() -> Repository:
    repo = Repository()
    repo.release(TARGET, b"manifest")
    return repo


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Callable[[Repository], TrustedDevice]]:
    """Make a device that trusts the first root of a repository."""
    devices: list[TrustedDevice] = []

    def make(repo: Repository) -> TrustedDevice:
        folder = tmp_path / f"device-{len(devices)}"
        folder.mkdir()
        devices.append(TrustedDevice(folder, repo))
        return devices[-1]

    yield make
    for device in devices:
        device.state.close()


@pytest.fixture
def device(repo: Repository, join: Callable[[Repository], TrustedDevice]) -> TrustedDevice:
    """A device that holds what the repository has published."""
    device = join(repo)
    assert device.hear(repo.offered()) == {}
    return device
