"""A fleet of the simulation's own: in a folder that goes, on loopback, with keys and a model that mean nothing.

with OwnFleet(folder) as fleet:
    publish(fleet.api, folder, {"x86-64": "onnxruntime"}, versions=["1.0.0"], size=256 * 1024, seed=1)
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Key

from cli.client import Fleet
from cli.errors import Unavailable
from cli.simulate.plan import chance_of
from wire.bundle import BundleConfig, BundleFile, BundleManifest, Role
from wire.chunks import AVERAGE, WHOLE, ChunkList, ChunkRef, digest
from wire.pipeline import SCORES, Golden, GoldenCase, Labels, Pipeline, TensorSpec, Tokenizer
from wire.processing import to_tensor
from wire.release import Release
from wire.signing import RoleKeys, release_document, release_role, root_document, targets_document

FAMILY: Final = "simulated"
MODEL: Final = "tide"
READY_WITHIN: Final = 60.0
LABELS: Final = ("low", "high", "turning")
SETTINGS: Final = {
    "https_host": "127.0.0.1",
    "https_port": "0",
    "broker_host": "127.0.0.1",
    "broker_port": "0",
    # All devices come from one address here, and all at once.
    "http_rate": "10000",
    "broker_connections": "60000",
    "log_level": "warning",
}


class OwnFleet:
    """`python -m fleet up` on a folder; it ends when this program does, however that ends. Its log is `fleet.log`."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.data, self._log = folder / "fleet", folder / "fleet.log"
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        words = [word for name, value in self._settings.items() for word in ("--set", f"{name}={value}")]
        fleet = [sys.executable, "-P", "-m", "fleet", "up", "--data", str(self.data), *words]
        tied = [sys.executable, "-P", "-m", "fleet.mqtt.child", str(os.getpid()), *fleet]
        with self._log.open("ab") as log:
            # Ctrl-C is for us: the devices end before their fleet.
            self._process = subprocess.Popen(
                tied, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, process_group=0
            )
        if not self._is_ready():
            self.__exit__()
            raise Unavailable(f"the fleet of the simulation did not come up: {self._log.read_text()[-2000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()

    @property
    def pid(self) -> int:
        """Process id of the fleet."""
        assert self._process is not None
        return self._process.pid

    @property
    def api(self) -> Fleet:
        """Its HTTPS interface, as its operator."""
        return Fleet.connect(self.data)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], READY_WITHIN)
        return bool(ready) and self._process.stdout.readline().startswith(b"ready")


def publish(
    fleet: Fleet, folder: Path, profiles: Mapping[str, str], *, versions: Iterable[str], size: int, seed: int
) -> None:
    """Make keys, sign the first metadata, and release made-up models. `profiles` name the runtime of each."""
    signers = {role: CryptoSigner(Ed25519PrivateKey.generate()) for role in ("root", "targets", "release")}
    made = [bundle(p, r, version, size, seed) for p, r in sorted(profiles.items()) for version in versions]
    blobs = {digest(data): data for manifest, files in made for data in (manifest.to_bytes(), *files)}
    for name, data in blobs.items():
        (folder / "blob").write_bytes(data)
        fleet.put_file(f"/api/v1/blobs/{name}", folder / "blob")
    releases = [_release(manifest, counter) for counter, (manifest, _) in enumerate(made, 1)]
    online = {role: _key(value) for role, value in fleet.get("/api/v1/trust")["online"].items()}
    documents = _documents(signers, online, releases, datetime.now(UTC) + timedelta(days=30))
    fleet.post("/api/v1/trust", {"documents": {name: data.decode() for name, data in documents.items()}})


def bundle(profile: str, runtime: str, version: str, size: int, seed: int) -> tuple[BundleManifest, list[bytes]]:
    """A well-formed bundle of about `size` bytes: its manifest and blobs. The model is noise: nothing runs it."""
    model = chance_of(f"{seed}/{version}").randbytes(size)
    case = GoldenCase(
        text="the tide", outputs={SCORES: to_tensor(np.array([0.2, 0.7, 0.1], np.float32))}, labels=("high",)
    )
    parts: list[tuple[Role, str, bytes]] = [
        ("model", "model.bin", model),
        ("tokenizer", "tokenizer.json", b"{}"),
        ("labels", "labels.json", Labels(labels=LABELS).to_bytes()),
        ("pipeline", "pipeline.json", _pipeline().to_bytes()),
        ("golden", "golden.json", Golden(max_abs=0.01, cases=(case,)).to_bytes()),
    ]
    config = b"{}"
    stored = [_stored(role, path, data) for role, path, data in parts]
    manifest = BundleManifest(
        family=FAMILY,
        name=MODEL,
        version=version,
        profile=profile,
        runtime=runtime,
        precision="int8",
        config=BundleConfig(digest=digest(config), size=len(config)),
        files=tuple(file for files, _ in stored for file in files),
        annotations={},
    )
    return manifest, [config, *(data for _, blobs in stored for data in blobs)]


def _stored(role: Role, path: str, data: bytes) -> tuple[list[BundleFile], list[bytes]]:
    """A file, with its chunk list where it needs one."""
    if len(data) <= WHOLE:
        return [BundleFile(role=role, path=path, digest=digest(data), size=len(data))], [data]
    pieces = [data[at : at + AVERAGE] for at in range(0, len(data), AVERAGE)]
    refs = tuple(ChunkRef(digest=digest(piece), size=len(piece)) for piece in pieces)
    listed = ChunkList(blob=digest(data), size=len(data), chunks=refs).to_bytes()
    chunks = BundleFile(role="chunks", path=f"{path}.chunks", digest=digest(listed), size=len(listed))
    file = BundleFile(role=role, path=path, digest=digest(data), size=len(data), chunks=chunks.digest)
    return [file, chunks], [data, listed]


def _pipeline() -> Pipeline:
    return Pipeline(
        task="text-classification",
        tokenizer=Tokenizer(kind="huggingface-json", file="tokenizer.json", max_length=16),
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, -1)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, len(LABELS))),),
        activation="softmax",
        labels="labels.json",
    )


def _release(manifest: BundleManifest, counter: int) -> Release:
    data = manifest.to_bytes()
    return Release(manifest.target, digest(data), len(data), manifest.profile, manifest.runtime, counter)


def _documents(
    signers: Mapping[str, CryptoSigner], online: Mapping[str, Key], releases: list[Release], expires: datetime
) -> dict[str, bytes]:
    roles = {name: RoleKeys((signers[name].public_key,)) for name in ("root", "targets")}
    roles |= {name: RoleKeys((online[name],)) for name in ("snapshot", "timestamp")}
    families = {FAMILY: RoleKeys((signers["release"].public_key,))}
    return {
        "root/1": root_document(1, roles, expires, [signers["root"]]),
        "targets": targets_document(1, RoleKeys((online["fleet"],)), families, expires, [signers["targets"]]),
        release_role(FAMILY): release_document(1, releases, expires, [signers["release"]]),
    }


def _key(value: Mapping[str, Any]) -> Key:
    fields = dict(value)
    return Key.from_dict(fields.pop("keyid"), fields)
