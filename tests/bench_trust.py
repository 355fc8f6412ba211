"""`scripts/bench trust`: what trust costs a device: CPU to verify one push, and memory that the trust code adds.

A push is what arrives when a release is published: timestamp, snapshot, targets (2 of 3 signed), a release role of ten
targets (2 of 2) and a desired state. The agent's own keeper takes it into its state file, in one transaction. CPU is
that of the process (`time.process_time`): the wait for the disk is no part of it. The floor, taken in turn with it in
the same run, is the bare Ed25519 check of every one of these signatures over the same bytes.

Memory: processes that import what an agent imports anyway, with and without the trust code and a loaded trusted set,
in turn; RSS, because a device has nobody to share the pages with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from trust_repository import Repository
from tuf.api.metadata import Metadata

from agent.store.state import StateFile
from agent.trust.clock import Clock
from agent.trust.keeper import TrustKeeper
from wire import topics
from wire.admission import check_order, check_release
from wire.chunks import digest
from wire.dsse import open_by_role, seal
from wire.orders import Desired, DesiredModel
from wire.release import Release
from wire.units import show_instant

DEVICE = "bench"
TARGETS = 10
BASE = """
import asyncio, base64, binascii, contextlib, dataclasses, hashlib, http.client, json, logging, re, shutil, signal
import socket, sqlite3, ssl, tempfile, tomllib, typing, urllib.parse
import paho.mqtt.client, psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ec.generate_private_key(ec.SECP256R1()).sign(b"", ec.ECDSA(hashes.SHA256()))
"""
TRUST = """
from datetime import datetime
import wire.admission, wire.dsse
from wire.trust import TrustedSet
documents = {name: text.encode() for name, text in json.loads(sys.argv[1]).items()}
trust = TrustedSet.from_root(documents["root/1"])
assert trust.offer(documents, datetime.fromisoformat(sys.argv[2])) == ()
del documents
"""
MEASURE = """
import gc
gc.collect()
print(psutil.Process().memory_info().rss, flush=True)
"""


@dataclass(frozen=True)
class Push:
    """One publication, as a device receives it."""

    documents: dict[str, bytes]
    desired: bytes
    target: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=60, help="pushes verified, the floor in turn (default 60)")
    parser.add_argument("--starts", type=int, default=9, help="processes with and without trust code (default 9)")
    options = parser.parse_args()
    repo = Repository(release_threshold=2)
    pushes = [new_push(repo, i) for i in range(options.pushes + 5)]
    verify, floor = measure_cpu(repo, pushes)
    added, base = measure_memory(repo, options.starts)
    report(verify[5:], floor[5:], added, base)  # the first ones warm up


def new_push(repo: Repository, i: int) -> Push:
    repo.releases.clear()
    targets = [f"models/intents/kitchen/{i}.{n}.0/x86-64" for n in range(TARGETS)]
    for target in targets[1:]:
        repo.releases[target] = Release(target, digest(target.encode()), 1, "x86-64", "onnxruntime", counter=i + 1)
    repo.sign_targets()
    repo.release(targets[0], b"manifest", counter=i + 1)
    statement = Desired(
        device=DEVICE,
        epoch=1,
        seq=i + 1,
        issued=show_instant(repo.now),
        expires=show_instant(repo.now + timedelta(days=1)),
        models=(DesiredModel(target=targets[0], digest=digest(b"manifest")),),
    )
    return Push(dict(repo.documents), seal(statement, repo.keys["fleet"][0]), targets[0])


def measure_cpu(repo: Repository, pushes: list[Push]) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU for each push, and for the bare checks of its signatures."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        state = StateFile.open(Path(folder) / "agent.db")
        state.save_trust({"root": repo.roots[1]})
        keeper = TrustKeeper(state, Clock(state, wall=lambda: repo.now))
        ours, bare = [], []
        for i, push in enumerate(pushes):
            checks = bare_checks(repo, push)
            ours.append(cpu_ms(lambda push=push, i=i: verify(keeper, push, repo, i)))
            bare.append(cpu_ms(lambda checks=checks: [check() for check in checks]))
        state.close()
    return ours, bare


def verify(keeper: TrustKeeper, push: Push, repo: Repository, i: int) -> None:
    """Everything between the arrival of a push and the decision to install."""
    for name, data in push.documents.items():
        keeper.take(topics.TrustRole(name), data)
    keeper.settle()
    desired = open_by_role(push.desired, Desired, keeper.trusted.targets())
    check_order(desired, device=DEVICE, last=(1, i), now=repo.now)
    (model,) = desired.models
    release = keeper.trusted.release(model.target, repo.now)
    runtimes = frozenset({"onnxruntime"})
    check_release(release, digest=model.digest, profile="x86-64", runtimes=runtimes, floor=0)


def bare_checks(repo: Repository, push: Push) -> list[Callable[[], None]]:
    """One call per signature of the push, with nothing left to do but the arithmetic."""
    keys = {s.public_key.keyid: s._private_key.public_key() for role in repo.keys.values() for s in role}
    signed = [
        (s, md.signed_bytes) for md in map(Metadata.from_bytes, push.documents.values()) for s in md.signatures.values()
    ]
    signed.append((repo.keys["fleet"][0].sign(push.desired), push.desired))
    return [partial(keys[s.keyid].verify, bytes.fromhex(s.signature), data) for s, data in signed]


def cpu_ms(action: Callable[[], object]) -> float:
    begun = time.process_time_ns()
    action()
    return (time.process_time_ns() - begun) / 1e6


def measure_memory(repo: Repository, starts: int) -> tuple[list[float], list[float]]:
    """MB (10^6 bytes) of RSS that the trust code adds in each pair of starts, and those without it."""
    documents = json.dumps({name: data.decode() for name, data in repo.offered().items()})
    arguments = [documents, repo.now.isoformat()]
    pairs = [(rss_mb(BASE + TRUST, arguments), rss_mb(BASE, arguments)) for _ in range(starts)]
    return [with_trust - without for with_trust, without in pairs], [without for _, without in pairs]


def rss_mb(program: str, arguments: list[str]) -> float:
    command = [sys.executable, "-P", "-c", f"import sys\n{program}{MEASURE}", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1e6


def report(verify: list[float], floor: list[float], added: list[float], base: list[float]) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, measured")
    print(f"{'':44}{'n':>4}{'median':>9}{'p25':>9}{'p75':>9}{'worst':>9}")
    row("verify and save a push, CPU ms", verify)
    row("floor: its signatures alone, CPU ms", floor)
    row("RSS that the trust code adds, MB", added)
    row("floor: RSS of the rest of an agent, MB", base)
    cpu, ratio = statistics.median(verify), statistics.median(v / f for v, f in zip(verify, floor, strict=True))
    print(f"verification is {ratio:.1f} times its floor")
    figures = {"verify_cpu_ms": round(cpu, 2), "verify_to_floor": round(ratio, 1)}
    figures["trust_added_mb"] = round(statistics.median(added), 2)
    print(json.dumps({"bench": "trust", "figures": figures}))


def row(what: str, values: list[float]) -> None:
    low, median, high = statistics.quantiles(values, n=4)
    print(f"{what:44}{len(values):4}{median:9.2f}{low:9.2f}{high:9.2f}{max(values):9.2f}")


if __name__ == "__main__":
    main()
