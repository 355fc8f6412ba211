"""The documents of a trust folder as a value: what is signed, what waits for signatures, and who has to give them.

    book = book.stage({"targets": unsigned}).sign(signers)    # a document that has its signatures moves to `signed`
    book.missing()                                            # what is left, and whose keys could sign it

Documents are named as in `wire.trust`: `root/<version>`, `targets`, `release-<family>`. A staged document is always
one version above the signed one. It becomes signed when the keys above it agree: those that the signed documents name,
and those that a staged document above it will name. A root needs the keys of the root before it as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets, VerificationResult
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from cli.errors import BadInput
from cli.trust.roles import Roles


@dataclass(frozen=True)
class Missing:
    """What a staged document lacks: `keys` of `role` have signed or could sign; `threshold` of them must."""

    document: str
    role: str
    threshold: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many more keys must sign; 0 when it only waits for the document above it."""
        return max(0, self.threshold - len(self.signed))


@dataclass(frozen=True)
class Book:
    """Signed and staged documents by name."""

    signed: Mapping[str, bytes] = field(default_factory=dict)
    staged: Mapping[str, bytes] = field(default_factory=dict)

    # --- asking -----------------------------------------------------------------------------------------------

    def root_version(self) -> int:
        """Version of the newest signed root; 0 when there is none."""
        return max((int(n.removeprefix("root/")) for n in self.signed if n.startswith("root/")), default=0)

    def is_founded(self) -> bool:
        """Whether there are root and targets, signed or staged."""
        return self.newest("root") is not None and self.newest("targets") is not None

    def newest(self, role: str) -> Any:
        """The content of `root`, `targets` or a release role: staged, else signed; None when there is neither."""
        name = self._newest_name(role)
        data = self.staged.get(name) or self.signed.get(name)
        return parse(name, data).signed if data is not None else None

    def version(self, role: str) -> int:
        """The version that is signed; 0 for none."""
        name = f"root/{self.root_version()}" if role == "root" else role
        return int(parse(name, self.signed[name]).signed.version) if name in self.signed else 0

    def roles(self) -> Roles:
        """Who may sign what, once everything staged is signed. Raises `BadInput` for a folder without a root."""
        root, targets = self.newest("root"), self.newest("targets")
        if root is None or targets is None:
            raise BadInput("this trust folder has no root yet: run 'shoal release init', or 'shoal release fetch'")
        return Roles.read(root, targets)

    def order(self) -> list[str]:
        """Names of the staged documents in the order in which they have to be signed."""
        return sorted(self.staged, key=lambda name: (not name.startswith("root/"), name != "targets", name))

    def missing(self) -> list[Missing]:
        """What every staged document still lacks, in the order in which they have to be signed."""
        return [lack for name in self.order() for lack in self._lacks(name)]

    def faults(self) -> Iterator[str]:
        """Signed documents that their keys do not carry any more, in words: nobody would believe them."""
        for version in range(1, self.root_version()):
            if f"root/{version}" not in self.signed:
                yield f"root/{version}: is missing: a device that has it could not follow"
        for name in sorted(self.signed):
            yield from self._faults_of(name)

    def believed(self) -> Book:
        """Only the signed documents that a device would believe that starts from `root/1`."""
        book = Book()
        while (name := f"root/{book.root_version() + 1}") in self.signed:
            longer = Book({**book.signed, name: self.signed[name]})
            if any(longer._faults_of(name)):
                break
            book = longer
        for name in sorted(self.signed, key=lambda name: (name != "targets", name)):
            longer = Book({**book.signed, name: self.signed[name]})
            if (
                not name.startswith("root/")
                and longer._verifiers(name, final=True)
                and not any(longer._faults_of(name))
            ):
                book = longer
        return book

    def root_digest(self) -> str | None:
        """What `root/1` says, signed or staged, as sha256 in hexadecimal: by it people tell fleets apart."""
        data = self.signed.get("root/1") or self.staged.get("root/1")
        return hashlib.sha256(parse("root/1", data).signed_bytes).hexdigest() if data is not None else None

    def wanted(self) -> frozenset[str]:
        """Ids of keys whose signature a staged document could use."""
        return frozenset(keyid for lack in self.missing() for keyid in lack.unsigned)

    # --- changing ---------------------------------------------------------------------------------------------

    def stage(self, documents: Mapping[str, bytes]) -> Book:
        """With new documents that wait for signatures, in place of staged ones of the same name."""
        return Book(self.signed, {**self.staged, **documents})

    def sign(self, signers: Iterable[Signer], only: Iterable[str] | None = None) -> Book:
        """With the signatures that these keys may give, to everything staged or to `only` some of it."""
        staged, mine = dict(self.staged), list(signers)
        for name in self.order() if only is None else [n for n in self.order() if n in set(only)]:
            md = parse(name, staged[name])
            may = {k for verifier, role in self._verifiers(name) for k in verifier.get_delegated_role(role).keyids}
            for signer in mine:
                if signer.public_key.keyid in may:
                    md.sign(signer, append=True)
            staged[name] = md.to_bytes(JSONSerializer(compact=True))
        return Book(self.signed, staged).settle()

    def settle(self) -> Book:
        """With every staged document that has its signatures among the signed ones."""
        book = self
        for name in self.order():
            if all(check(v, role, parse(name, book.staged[name])) for v, role in book._all_verifiers(name)):
                data = book.staged[name]
                book = Book({**book.signed, name: data}, {n: d for n, d in book.staged.items() if n != name})
        return book

    def without_stale(self) -> Book:
        """Without staged documents that do not follow on the signed ones: another one was signed in their place."""
        return Book(self.signed, {n: d for n, d in self.staged.items() if self._follows(n, d)})

    def newer_than(self, published: Mapping[str, bytes]) -> dict[str, bytes]:
        """The signed documents that a fleet does not have yet. Raises `BadInput` when it has another of the version."""
        self._check_no_fork(published)
        theirs = {name: _number(name, published) for name in published}
        return {name: data for name, data in self.signed.items() if self._version_of(name) > theirs.get(name, 0)}

    def older_than(self, published: Mapping[str, bytes]) -> list[str]:
        """Names of documents that a fleet has in a newer version."""
        return [n for n in sorted(published) if n in self.signed and _number(n, published) > self._version_of(n)]

    def take(self, published: Mapping[str, bytes]) -> Book:
        """With the newer documents of a fleet. Raises `BadInput` when both sides signed a version of their own."""
        self._check_no_fork(published)
        mine = {name: self._version_of(name) for name in published}
        offline = {name: data for name, data in published.items() if name not in ("snapshot", "timestamp")}
        newer = {name: data for name, data in offline.items() if _number(name, published) > mine[name]}
        signed = {**self.signed, **newer}
        book = Book(signed, self.staged)
        if faults := list(book.faults()):
            raise BadInput(f"the fleet's documents do not fit this folder's: {'; '.join(faults)}")
        return book.without_stale().settle()

    # --- parts ------------------------------------------------------------------------------------------------

    def _faults_of(self, name: str) -> Iterator[str]:
        for verifier, role in self._verifiers(name, final=True):
            result = check(verifier, role, parse(name, self.signed[name]))
            if not result:
                yield f"{name}: signed by {len(result.signed)} of {result.threshold} keys of {role}"

    def _newest_name(self, role: str) -> str:
        if role != "root":
            return role
        following = f"root/{self.root_version() + 1}"
        return following if following in self.staged else f"root/{self.root_version()}"

    def _check_no_fork(self, published: Mapping[str, bytes]) -> None:
        for name, data in self.signed.items():
            version = self._version_of(name)
            if name not in published or _number(name, published) != version:
                continue
            if parse(name, published[name]).signed_bytes != parse(name, data).signed_bytes:
                raise BadInput(
                    f"{name}: version {version} of this folder is another one than the fleet's: two people signed it "
                    "apart from each other: fetch the fleet's documents into a new folder and sign the change again"
                )

    def _version_of(self, name: str) -> int:
        return int(parse(name, self.signed[name]).signed.version) if name in self.signed else 0

    def _follows(self, name: str, data: bytes) -> bool:
        if name.startswith("root/"):
            return name == f"root/{self.root_version() + 1}"
        return bool(parse(name, data).signed.version == self._version_of(name) + 1)

    def _lacks(self, name: str) -> Iterator[Missing]:
        md = parse(name, self.staged[name])
        results = [(role, check(verifier, role, md)) for verifier, role in self._verifiers(name)]
        lacking = [(role, result) for role, result in results if not result]
        lacks = (
            Missing(name, role, result.threshold, tuple(sorted(result.signed)), tuple(sorted(result.unsigned)))
            for role, result in lacking or results[-1:]
        )
        yield from dict.fromkeys(lacks)  # an old and a new root may ask for the same keys

    def _verifiers(self, name: str, *, final: bool = False) -> list[tuple[Root | Targets, str]]:
        """Who says whose signatures count for a document, with the role: staged documents above it go before signed
        ones. `final` looks at signed ones only.
        """
        if name.startswith("root/"):
            before = f"root/{int(name.removeprefix('root/')) - 1}"
            chain = {before: self.signed[before]} if before in self.signed else {}
            chain[name] = self.signed[name] if final else self.staged[name]
            return [(parse(each, data).signed, "root") for each, data in chain.items()]
        above = "root" if name == "targets" else "targets"
        verifier = Book(self.signed).newest(above) if final else self.newest(above)
        return [] if verifier is None or not _delegates(verifier, name) else [(verifier, name)]

    def _all_verifiers(self, name: str) -> list[tuple[Root | Targets, str]]:
        """Those of the staged and of the signed documents above it."""
        if name.startswith("root/"):
            return self._verifiers(name)
        above = "root" if name == "targets" else "targets"
        return [(v, name) for v in (Book(self.signed).newest(above), self.newest(above))]


def _number(name: str, documents: Mapping[str, bytes]) -> int:
    return int(parse(name, documents[name]).signed.version)


def parse(name: str, data: bytes) -> Metadata[Any]:
    """A document. Raises `BadInput` for what is none, or is of another role or root version than its name says."""
    try:
        md = Metadata[Any].from_bytes(data)
    except (DeserializationError, RecursionError) as e:
        raise BadInput(f"{name}: not TUF metadata: {e}") from e
    role, _, version = name.partition("/")
    if md.signed.type != (role if role in ("root", "snapshot", "timestamp") else "targets"):
        raise BadInput(f"{name}: holds {md.signed.type} metadata")
    if version and md.signed.version != int(version):
        raise BadInput(f"{name}: holds version {md.signed.version}")
    return md


def check(verifier: Root | Targets | None, role: str, md: Metadata[Any]) -> VerificationResult:
    """Which keys of a role signed a document; none when nobody names that role."""
    if verifier is None or not _delegates(verifier, role):
        return VerificationResult(1, {}, {})
    return verifier.get_verification_result(role, md.signed_bytes, md.signatures)


def _delegates(verifier: Root | Targets, role: str) -> bool:
    try:
        verifier.get_delegated_role(role)
    except ValueError:
        return False
    return True
