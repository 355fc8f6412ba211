"""The client protocol of the public TUF conformance suite, over the verifier of our devices (`wire.trust`).

    client --metadata-dir DIR init ROOT
    client --metadata-dir DIR --metadata-url URL refresh
    client --metadata-dir DIR --metadata-url URL --target-name PATH --target-base-url URL --target-dir DIR download

It adds what a device does in another way: fetching over HTTP, one role after another, and a folder of files. Every
decision is the verifier's. Exit code 0, or 1 with the reason on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Timestamp

from wire.errors import Untrusted, WireError
from wire.metadata import ROLE_LIMIT, ROOT_LIMIT, TIMESTAMP_LIMIT
from wire.trust import MAX_DELEGATIONS, MAX_ROOTS, NotHeld, TrustedSet


class Client:
    """One trusted set, its folder, and the repository that it is refreshed from."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url.rstrip("/")
        self.now = datetime.now(UTC)
        self.trust = TrustedSet.from_documents({unquote(p.stem): p.read_bytes() for p in folder.glob("*.json")})

    def refresh(self) -> None:
        """The top-level roles in the order of the specification's section 5. Raises `WireError`, `OSError`."""
        self._take_roots()
        self._take("timestamp", None, TIMESTAMP_LIMIT)
        self._bring_up_to_date("snapshot", self._signed_timestamp().snapshot_meta)
        self._bring_up_to_date("targets", self._named("targets"))

    def find(self, target: str) -> TargetFile:
        """The entry of a target; roles on the way to it are fetched as the search meets them (5.6.7)."""
        for _ in range(2 * MAX_DELEGATIONS):
            missing = self._missing_role(target)
            if missing is None:
                return self.trust.target_file(target, self.now)
            self._bring_up_to_date(missing, self._named(missing))
        raise Untrusted(f"{target}: more than {MAX_DELEGATIONS} roles on the way")

    def _missing_role(self, target: str) -> str | None:
        """The first role on the way that is not held as the snapshot names it; None when the answer is known."""
        try:
            for role in self.trust.search(target):
                if self.trust.versions()[role] != self._named(role).version:
                    return role
                if target in self.trust.targets(role).targets:
                    return None
        except NotHeld as e:
            return e.role
        return None

    def _take_roots(self) -> None:
        found = {}
        for version in range(self.trust.root_version + 1, self.trust.root_version + 1 + MAX_ROOTS):
            try:
                found[f"root/{version}"] = fetch(f"{self.url}/{version}.root.json", ROOT_LIMIT)
            except urllib.error.HTTPError:
                break
        self._offer(found)

    def _bring_up_to_date(self, role: str, named: MetaFile) -> None:
        if self.trust.versions().get(role) != named.version:
            self._take(role, named.version, named.length or ROLE_LIMIT)
        self.trust.check_current(role, self.now)

    def _take(self, role: str, version: int | None, limit: int) -> None:
        prefix = f"{version}." if version is not None and self.trust.root.consistent_snapshot else ""
        self._offer({role: fetch(f"{self.url}/{prefix}{quote(role, '')}.json", limit)})
        self.trust.check_current(role, self.now)

    def _offer(self, documents: dict[str, bytes]) -> None:
        refusals = self.trust.offer(documents, self.now)
        save(self.folder, self.trust.documents)
        if refusals:
            raise refusals[0].error

    def _signed_timestamp(self) -> Timestamp:
        return Metadata[Timestamp].from_bytes(self.trust.documents["timestamp"]).signed

    def _named(self, role: str) -> MetaFile:
        named = Metadata[Snapshot].from_bytes(self.trust.documents["snapshot"]).signed.meta.get(f"{role}.json")
        if named is None:
            raise Untrusted(f"{role}: the snapshot does not list it")
        return named


def download(client: Client, target: str, base_url: str, folder: Path) -> None:
    """One target into the folder, verified before it has a name there; nothing is fetched when it is there already."""
    entry = client.find(target)
    path = folder / quote(target, "")
    if path.exists() and is_entry(entry, path.read_bytes()):
        return
    directory, slash, name = target.rpartition("/")
    prefix = f"{next(iter(entry.hashes.values()))}." if client.trust.root.consistent_snapshot else ""
    data = fetch(f"{base_url.rstrip('/')}/{quote(directory + slash + prefix + name)}", entry.length)
    entry.verify_length_and_hashes(data)
    write(path, data)


def is_entry(entry: TargetFile, data: bytes) -> bool:
    """Whether these are the bytes that the entry names."""
    try:
        entry.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True


def fetch(url: str, limit: int) -> bytes:
    """The body, and no more than one byte over the limit: the verifier refuses what is too long."""
    with urllib.request.urlopen(url, timeout=30) as response:
        body: bytes = response.read(limit + 1)
    return body


def save(folder: Path, documents: dict[str, bytes]) -> None:
    """Each trusted document as a file under its role's name; what is trusted no more goes."""
    names = {f"{quote(name, '')}.json": data for name, data in documents.items()}
    for name, data in names.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            write(path, data)
    for path in folder.glob("*.json"):
        if path.name not in names:
            path.unlink()


def write(path: Path, data: bytes) -> None:
    """Whole or not at all, also after a power cut."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="client", description="TUF conformance client over wire.trust")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    if options.command == "init":
        write(options.metadata_dir / "root.json", options.trusted_root.read_bytes())
        return
    client = Client(options.metadata_dir, options.metadata_url)
    client.refresh()
    for target in options.target_name if options.command == "download" else ():
        download(client, target, options.target_base_url, options.target_dir)


def main() -> int:
    try:
        run(parse(sys.argv[1:]))
    except (WireError, RepositoryError, OSError) as e:
        print(f"client: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
