"""A fleet with one released blob, and devices that may fetch it, for the tests and the benchmark of the transfer.

with TransferFleet(folder, size=64 << 20, devices=10) as fleet:
    with fleet.agents(range(10)) as agents:         # a process (tests/transfer_agents.py), connected and waiting
        agents.go()
        done = agents.all_done()                    # a dict for each device
    fleet.sent()                                    # bytes of chunks published, and answered over HTTPS
"""

from __future__ import annotations

import dataclasses
import json
import queue
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fleet_process import FleetProcess, initialise_trust, tiny_bundle

from agent.enrolment.enrol import Patience, enrol
from wire.bundle import BundleManifest
from wire.chunks import ChunkList, digest
from wire.secrecy import blob_key

PROGRAM = Path(__file__).with_name("transfer_agents.py")


class TransferFleet:
    """`settings` are those of the fleet."""

    def __init__(self, folder: Path, *, size: int, devices: int, **settings: object) -> None:
        self.folder = folder
        self.process = FleetProcess(folder / "fleet", http_rate=10000, **settings)
        self._size, self._devices = size, devices
        self._runs, self._counter, self._rollout = 0, 1, ""

    def __enter__(self) -> Self:
        self.process.start()
        try:
            self.publisher = initialise_trust(self.process)
            for number in range(self._devices):
                self._enrol(f"device-{number}")
            self.release("1.0.0")
        except BaseException:
            self.process.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()

    def _enrol(self, device: str) -> None:
        kit = self.process.api("POST", "/api/v1/devices", {"device": device, "profile": "x86-64"})
        path = self.folder / f"{device}.kit"
        path.write_text(json.dumps(kit))
        enrol(path, self.state(device), None, Patience(None, lambda _words: None))

    def release(self, version: str) -> None:
        """Release a blob of its own, and assign it to every device."""
        self._release(*tiny_bundle(version, size=self._size))

    def release_blob(self, version: str, model: bytes, chunks: ChunkList) -> None:
        """The same with a model of one's own."""
        manifest, (config, _, labels, _) = tiny_bundle(version, size=len(model))
        listed = chunks.to_bytes()
        files = {
            "model": {"digest": digest(model), "chunks": digest(listed)},
            "chunks": {"digest": digest(listed), "size": len(listed)},
        }
        changed = tuple(dataclasses.replace(f, **files.get(f.role, {})) for f in manifest.files)
        self._release(dataclasses.replace(manifest, files=changed), [config, model, labels, listed])

    def _release(self, manifest: BundleManifest, blobs: list[bytes]) -> None:
        self.publisher.release(manifest, blobs, counter=self._counter)
        self._counter += 1
        model = manifest.file("model")
        assert model.chunks is not None
        self.chunk_list = blobs[-1]
        self.chunks = ChunkList.from_bytes(self.chunk_list)
        (self.folder / "chunks.json").write_bytes(self.chunk_list)
        self.key = blob_key((self.process.data / "keys" / "chunk-secret").read_bytes(), model.digest, model.chunks)
        body = {
            "family": "intents",
            "name": manifest.name,
            "version": manifest.version,
            "waves": [100],
            "gates": "install",
        }
        if self._rollout:
            self.process.api("POST", f"/api/v1/rollouts/{self._rollout}/abort", {"reason": "the next one"})
        self._rollout = self.process.api("POST", "/api/v1/rollouts", body)["rollout"]

    def state(self, device: str) -> Path:
        """The state folder of a device."""
        return self.folder / "states" / device

    def store(self, device: str) -> Path:
        """Where it keeps blobs, for all its runs until `empty`."""
        return self.folder / "stores" / device

    def empty(self) -> None:
        """Every device forgets its blobs."""
        shutil.rmtree(self.folder / "stores", ignore_errors=True)

    def sent(self) -> tuple[int, int]:
        """Bytes of chunks published, and answered over HTTPS, since the start."""
        transfer = self.process.api("GET", "/api/v1/status")["transfer"]
        return transfer["published"], transfer["ranges"]

    def agents(self, numbers: Iterable[int], *, broker: str = "", **spec: object) -> Agents:
        """A process with these devices; `broker` is another address for it, of somebody between."""
        self._runs += 1
        names = [f"device-{n}" for n in numbers]
        states = [self._state_for(name, broker) for name in names]
        full = {
            "states": [str(s) for s in states],
            "stores": [str(self.store(name)) for name in names],
            "chunks": str(self.folder / "chunks.json"),
            "key": self.key.hex(),
            "seed": self._runs,
            **spec,
        }
        return self.clients(full, PROGRAM)

    def clients(self, spec: dict[str, Any], program: Path) -> Agents:
        """A process of another program that speaks as `transfer_agents.py` does."""
        path = self.folder / f"spec-{secrets.token_hex(4)}.json"
        path.write_text(json.dumps(spec))
        return Agents(path, program)

    def _state_for(self, name: str, broker: str) -> Path:
        if not broker:
            return self.state(name)
        state = self.folder / f"{name}-{secrets.token_hex(4)}"
        shutil.copytree(self.state(name), state)
        joined = state / "identity" / "device.json"
        joined.write_text(json.dumps({**json.loads(joined.read_text()), "broker": broker}))
        return state


class Agents:
    """A process of devices."""

    def __init__(self, spec: Path, program: Path) -> None:
        self.count = len(json.loads(spec.read_text())["states"])
        self._errors = spec.with_suffix(".log")
        with self._errors.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(program), str(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.next("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def go(self) -> None:
        """Begin to fetch."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def next(self, event: str, *, within: float = 120) -> dict[str, Any]:
        """The next event of this kind; others before it are dropped."""
        while True:
            said = self._events.get(timeout=within)
            assert said is not None, self._errors.read_text()[-3000:]
            assert said["event"] != "failed", said
            if said["event"] == event:
                return said

    def all_done(self, *, within: float = 120) -> list[dict[str, Any]]:
        """What each device says at its end."""
        return [self.next("done", within=within) for _ in range(self.count)]

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(20)
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)
