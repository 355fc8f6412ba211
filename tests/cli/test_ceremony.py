from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Key

from cli import ceremony
from cli.ceremony import TrustFolder
from cli.errors import BadInput
from cli.offline_keys import known_passphrase
from wire.bundle import BundleConfig, BundleFile, BundleManifest
from wire.chunks import digest
from wire.signing import snapshot_document, timestamp_document
from wire.trust import TrustedSet

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
DIGEST = digest(b"x")


def manifest(version: str, profile: str = "x86-64", name: str = "home") -> bytes:
    file = BundleFile(role="model", path="model.onnx", digest=DIGEST, size=1)
    return BundleManifest(
        family="intents", name=name, version=version, profile=profile, runtime="onnxruntime", precision="int8",
        config=BundleConfig(digest=DIGEST, size=1), files=(file,), annotations={},
    ).to_bytes()  # fmt: skip


class Online:
    """The fleet's online keys, and what it would sign with them."""

    def __init__(self) -> None:
        self.signers = {role: CryptoSigner(Ed25519PrivateKey.generate()) for role in ("fleet", "snapshot", "timestamp")}

    @property
    def keys(self) -> dict[str, Key]:
        return {role: signer.public_key for role, signer in self.signers.items()}

    def trust(self, folder: TrustFolder) -> TrustedSet:
        """A device's view of the folder's documents."""
        documents = folder.documents()
        roles = {name: data for name, data in documents.items() if not name.startswith("root/")}
        expires = NOW + timedelta(days=1)
        snapshot = snapshot_document(1, roles, expires, self.signers["snapshot"])
        timestamp = timestamp_document(1, snapshot, expires, self.signers["timestamp"])
        trust = TrustedSet.from_root(documents["root/1"])
        assert trust.offer({**documents, "snapshot": snapshot, "timestamp": timestamp}, NOW) == ()
        return trust


@pytest.fixture
def online() -> Online:
    return Online()


@pytest.fixture
def folder(tmp_path: Path, online: Online) -> TrustFolder:
    trust = TrustFolder(tmp_path / "trust")
    ceremony.found(trust, "intents", online.keys, NOW, release_threshold=2, passphrase="correct horse")
    return trust


def test_what_was_signed_offline_is_what_a_device_trusts(folder: TrustFolder, online: Online) -> None:
    ceremony.list_bundles(folder, [manifest("1.0.0")], NOW, "correct horse")
    release = online.trust(folder).release("models/intents/home/1.0.0/x86-64", NOW)
    assert release.digest == digest(manifest("1.0.0"))
    assert release.counter == 1


def test_earlier_releases_stay_listed_and_the_counter_rises(folder: TrustFolder, online: Online) -> None:
    ceremony.list_bundles(folder, [manifest("1.0.0")], NOW, "correct horse")
    ceremony.list_bundles(folder, [manifest("1.1.0"), manifest("1.1.0", "raspberry-pi-4")], NOW, "correct horse")
    releases = {r.target: r.counter for r in online.trust(folder).releases()}
    assert releases == {
        "models/intents/home/1.0.0/x86-64": 1,
        "models/intents/home/1.1.0/raspberry-pi-4": 2,
        "models/intents/home/1.1.0/x86-64": 2,
    }


def test_signing_the_same_bundles_again_changes_nothing(folder: TrustFolder) -> None:
    ceremony.list_bundles(folder, [manifest("1.0.0")], NOW, "correct horse")
    before = folder.documents()
    assert ceremony.list_bundles(folder, [manifest("1.0.0")], NOW + timedelta(hours=1), "correct horse") == []
    assert folder.documents() == before


def test_a_version_never_changes(folder: TrustFolder) -> None:
    ceremony.list_bundles(folder, [manifest("1.0.0")], NOW, "correct horse")
    before = folder.documents()
    changed = manifest("1.0.0").replace(b'"shoal.precision":"int8"', b'"shoal.precision":"fp32"')
    with pytest.raises(BadInput, match="a version never changes"):
        ceremony.list_bundles(folder, [changed], NOW, "correct horse")
    assert folder.documents() == before


def test_a_wrong_passphrase_signs_nothing(folder: TrustFolder) -> None:
    before = folder.documents()
    with pytest.raises(BadInput, match="wrong passphrase"):
        ceremony.list_bundles(folder, [manifest("1.0.0")], NOW, "wrong horse")
    assert folder.documents() == before


def test_keys_are_encrypted_and_readable_by_their_owner_only(folder: TrustFolder) -> None:
    paths = list(folder.keys.folder.iterdir())
    assert len(paths) == 3 + 3 + 2
    for path in paths:
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_is_founded_once(folder: TrustFolder, online: Online) -> None:
    before = folder.documents()
    with pytest.raises(BadInput, match="holds keys or metadata already"):
        ceremony.found(folder, "other", online.keys, NOW, release_threshold=1, passphrase=None)
    assert folder.documents() == before


def test_a_family_without_keys_says_how_to_make_them(folder: TrustFolder) -> None:
    other = manifest("1.0.0").replace(b'"shoal.family":"intents"', b'"shoal.family":"locks"')
    with pytest.raises(BadInput, match="release init --family locks"):
        ceremony.list_bundles(folder, [other], NOW, "correct horse")


def test_without_a_terminal_the_passphrase_comes_from_the_environment(
    folder: TrustFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOAL_KEY_PASSPHRASE", raising=False)
    with pytest.raises(BadInput, match="set SHOAL_KEY_PASSPHRASE"):
        known_passphrase(folder.keys)
    monkeypatch.setenv("SHOAL_KEY_PASSPHRASE", "correct horse")
    assert known_passphrase(folder.keys) == "correct horse"
