"""A real fleet for tests: a process of its own on free ports, trust made with fresh keys, bundles released to it.

    with FleetProcess(tmp_path / "fleet") as fleet:
        publisher = initialise_trust(fleet)
        publisher.release_layout(tmp_path / "layout")
        kit = fleet.api("POST", "/api/v1/devices", {"device": "kitchen-1", "profile": "x86-64"})
        fleet.kill(); fleet.start()          # the same ports and everything else come back

Every key is made here, at run time.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Key

from wire.bundle import EVIDENCE_ARTIFACT, MODEL_ARTIFACT, BundleConfig, BundleFile, BundleManifest
from wire.chunks import WHOLE, ChunkList, ChunkRef, digest
from wire.release import Release
from wire.signing import RoleKeys, release_document, release_role, root_document, targets_document

READY_WITHIN = 30.0


class ApiError(Exception):
    """The fleet answered with an error."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


def until(condition: Callable[[], Any], *, within: float = 15.0, what: str = "the condition") -> Any:
    """Wait for a condition to become true and give back its value."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not hold within {within} s"
        time.sleep(0.02)
    return value


def listens(host: str, port: int) -> bool:
    """Whether somebody answers on a port."""
    with socket.socket() as tried:
        return tried.connect_ex((host, port)) == 0


class FleetProcess:
    """`python -m fleet up` on a data folder. `settings` are those of `fleet.settings`, by keyword."""

    def __init__(self, data: Path, **settings: object) -> None:
        self.data = data
        self.settings: dict[str, object] = {"https_port": 0, "broker_port": 0, **settings}
        self.url = self.broker = self.token = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ca_file(self) -> Path:
        return self.data / "ca" / "ca.pem"

    @property
    def log(self) -> str:
        return (self.data.parent / f"{self.data.name}.log").read_text()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        options = [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-P", "-m", "fleet", "up", "--data", str(self.data), *options]
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=_repository())
        words = self._ready_line().split()
        if words[:1] != ["ready"]:
            self.stop()  # a `with` that was not entered does not end it
            raise AssertionError(f"the fleet did not come up: {self.log[-3000:]}")
        self.url, self.broker = words[1], words[3]
        self.token = (self.data / "operator-token").read_text().strip()

    def stop(self) -> int:
        """Stop it as Ctrl-C would, and give back its exit code."""
        return self._end(lambda process: process.terminate())

    def wait(self) -> int:
        """Wait until it ends by itself, and give back its exit code."""
        return self._end(lambda _process: None)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(lambda process: process.kill())

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> tuple[int, bytes]:
        """One HTTPS request with exactly these headers; `body` is bytes or becomes JSON."""
        host, port = self.url.removeprefix("https://").split(":")
        connection = http.client.HTTPSConnection(host, int(port), context=tls or self.tls(), timeout=30)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None and not isinstance(body, bytes) else {}
        try:
            connection.request(method, path, data, {**kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def api(self, method: str, path: str, json: object = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """A request of the operator: the parsed answer. Raises `ApiError`."""
        all_headers = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        status, data = self.request(method, path, json, headers=all_headers)
        value = _parse(data)
        if status >= 400:
            raise ApiError(status, value)
        return value

    def tls(self) -> ssl.SSLContext:
        """A context that trusts this fleet."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _ready_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], READY_WITHIN)
        return self._process.stdout.readline().decode() if ready else ""

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            how(process)
            try:
                return process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def initialise_trust(fleet: FleetProcess, family: str = "intents") -> Publisher:
    """Make offline keys and publish root and targets that name this fleet's online keys."""
    publisher = Publisher(fleet, family)
    publisher.publish_roles()
    return publisher


@dataclass
class Publisher:
    """The offline side of releasing. Change its parts and publish again to make an attack."""

    fleet: FleetProcess
    family: str
    releases: dict[str, Release] = field(default_factory=dict)
    version: int = 0
    expires: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(days=30))

    def __post_init__(self) -> None:
        self.root, self.targets, self.release_signer = new_signer(), new_signer(), new_signer()

    def role_documents(self) -> dict[str, bytes]:
        """The first root and targets."""
        online = {role: _key(value) for role, value in self.fleet.api("GET", "/api/v1/trust")["online"].items()}
        roles = {
            "root": RoleKeys((self.root.public_key,)),
            "targets": RoleKeys((self.targets.public_key,)),
            "snapshot": RoleKeys((online["snapshot"],)),
            "timestamp": RoleKeys((online["timestamp"],)),
        }
        families = {self.family: RoleKeys((self.release_signer.public_key,))}
        fleet = RoleKeys((online["fleet"],))
        return {
            "root/1": root_document(1, roles, self.expires, [self.root]),
            "targets": targets_document(1, fleet, families, self.expires, [self.targets]),
        }

    def publish_roles(self) -> None:
        self.post({**self.role_documents(), **self.release_documents()})

    def release_documents(self) -> dict[str, bytes]:
        self.version += 1
        listed = list(self.releases.values())
        return {release_role(self.family): release_document(self.version, listed, self.expires, [self.release_signer])}

    def post(self, documents: Mapping[str, bytes]) -> None:
        texts = {name: data.decode() for name, data in documents.items()}
        self.fleet.api("POST", "/api/v1/trust", {"documents": texts})

    def upload(self, blobs: Iterable[bytes]) -> None:
        for data in blobs:
            self.fleet.api("PUT", f"/api/v1/blobs/{digest(data)}", data)

    def release(self, manifest: BundleManifest, blobs: Iterable[bytes], *, counter: int = 1) -> Release:
        """Upload a bundle and publish a release that names it."""
        self.upload([manifest.to_bytes(), *blobs])
        release = self.list(manifest, counter=counter)
        self.post(self.release_documents())
        return release

    def list(self, manifest: BundleManifest, *, counter: int = 1) -> Release:
        """Add a bundle to what will be signed next."""
        data = manifest.to_bytes()
        release = Release(manifest.target, digest(data), len(data), manifest.profile, manifest.runtime, counter)
        self.releases[release.target] = release
        return release

    def release_layout(self, layout: Path, *, counter: int = 1) -> tuple[Release, ...]:
        """Upload every blob of an OCI image layout and release all bundles that its index names."""
        read = lambda name: (layout / "blobs" / "sha256" / name.removeprefix("sha256:")).read_bytes()  # noqa: E731
        self.upload(path.read_bytes() for path in sorted((layout / "blobs" / "sha256").iterdir()))
        manifests = [read(d["digest"]) for d in json.loads((layout / "index.json").read_text())["manifests"]]
        by_type = {data: json.loads(data).get("artifactType") for data in manifests}
        bundles = [BundleManifest.from_bytes(data) for data, kind in by_type.items() if kind == MODEL_ARTIFACT]
        releases = tuple(self.list(manifest, counter=counter) for manifest in bundles)
        self.post(self.release_documents())
        for data, kind in by_type.items():
            if kind == EVIDENCE_ARTIFACT:
                self._post_evidence(json.loads(data))
        return releases

    def _post_evidence(self, manifest: Mapping[str, Any]) -> None:
        """The layer that is `results.json` by its title or path annotation."""
        for layer in manifest["layers"]:
            if "results.json" in (layer.get("annotations") or {}).values():
                self.fleet.api("POST", "/api/v1/evidence", {"digest": layer["digest"]})


def tiny_bundle(
    version: str = "1.0.0",
    *,
    profile: str = "x86-64",
    family: str = "intents",
    size: int = 300_000,
    name: str = "kitchen",
) -> tuple[BundleManifest, list[bytes]]:
    """A well-formed bundle whose files mean nothing: its manifest and blobs. The model has a chunk list."""
    config, labels = b'{"model":{}}', b'{"labels":["a","b"]}'
    model = b"".join(f"{version} {i:10d}\n".encode() for i in range(size // 12))[:size]
    pieces = [model[i : i + 65_536] for i in range(0, len(model), 65_536)]
    refs = tuple(ChunkRef(digest=digest(p), size=len(p)) for p in pieces)
    chunks = ChunkList(blob=digest(model), size=len(model), chunks=refs).to_bytes()
    listed = digest(chunks) if len(model) > WHOLE else None
    files = (
        BundleFile(role="model", path="model.onnx", digest=digest(model), size=len(model), chunks=listed),
        BundleFile(role="labels", path="labels.json", digest=digest(labels), size=len(labels)),
        BundleFile(role="chunks", path="model.chunks.json", digest=digest(chunks), size=len(chunks)),
    )
    manifest = BundleManifest(
        family=family,
        name=name,
        version=version,
        profile=profile,
        runtime="onnxruntime",
        precision="int8",
        config=BundleConfig(digest=digest(config), size=len(config)),
        files=files if listed else files[:2],
        annotations={},
    )
    return manifest, [config, model, labels, *([chunks] if listed else [])]


def new_signer() -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.generate())


def _key(value: Mapping[str, Any]) -> Key:
    fields = dict(value)
    return Key.from_dict(fields.pop("keyid"), fields)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data


def _repository() -> Path:
    return Path(__file__).resolve().parent.parent
