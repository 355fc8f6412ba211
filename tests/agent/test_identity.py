"""The identity folder: two slots that survive a kill at any point, and a wipe that does."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from agent.agent import locked
from agent.enrolment.wipe import MARKER, OURS, begin_wipe, finish_wipe
from agent.errors import Malformed, Unavailable
from agent.identity.credentials import REFUSALS, Credentials
from agent.identity.identity import FOLDER, Identity, Joined
from agent.identity.keys import key_pem, new_key
from agent.identity.slots import NEXT, OLD
from agent.main import NOT_ENROLLED, main
from agent.store.state import StateFile
from wire.profile import Profile

PROFILE = Profile.from_toml((Path(__file__).parents[2] / "firmware-profiles/x86-64.toml").read_bytes())


@pytest.fixture
def state(authority, tmp_path) -> Path:
    """A state folder with an identity in it."""
    folder = tmp_path / "state"
    (folder / FOLDER).mkdir(parents=True)
    key = new_key()
    certificate = authority.issue("kitchen-1", key.public_key()).public_bytes(Encoding.PEM)
    joined = Joined(device="kitchen-1", fleet="https://localhost:1", broker="localhost:1", profile=PROFILE)
    files = {"key.pem": key_pem(key), "cert.pem": certificate, "ca.pem": authority.pem.encode()}
    files |= {"sealing.pem": key_pem(new_key()), "device.json": joined.to_bytes()}
    for name, data in files.items():
        (folder / FOLDER / name).write_bytes(data)
    return folder


@pytest.fixture
def renew(authority):
    """Give the credentials a renewed certificate, and say its serial number."""

    def give(credentials: Credentials) -> int:
        key = new_key()
        certificate = authority.issue("kitchen-1", key.public_key())
        credentials.store_renewed(key, certificate)
        return certificate.serial_number

    return give


# --- which slot is shown ----------------------------------------------------------------------------------------


def test_a_renewed_certificate_takes_over_when_the_broker_accepts_it_and_not_before(state, renew) -> None:
    credentials = Credentials.open(state)
    signer, old_key = credentials.signer(), credentials.signer().public_key
    first, renewed = credentials.certificate.serial_number, renew(credentials)
    assert credentials.offer().certificate.serial_number == renewed
    assert credentials.certificate.serial_number == first, "HTTPS and signatures stay with the one in use"
    assert signer.public_key == old_key
    sealing = credentials.sealing_key().public_key()
    credentials.accepted(credentials.offer())
    assert credentials.certificate.serial_number == renewed
    assert signer.public_key != old_key, "the signer that everybody holds went along"
    assert credentials.sealing_key().public_key() == sealing
    assert [path.name for path in state.iterdir()] == [FOLDER]
    credentials.tls()


def test_one_refusal_is_not_enough_to_turn_back(state, renew) -> None:
    """Accident: the broker is restarted in the middle of a handshake."""
    credentials = Credentials.open(state)
    renewed = renew(credentials)
    for _ in range(REFUSALS - 1):
        credentials.refused(credentials.offer())
    assert credentials.offer().certificate.serial_number == renewed


def test_a_renewed_certificate_is_given_up_only_when_the_one_before_it_is_accepted(state, renew) -> None:
    """Accident: the broker refuses both for a while; the device must not throw away the one that it will take."""
    credentials = Credentials.open(state)
    first, renewed = credentials.certificate.serial_number, renew(credentials)
    shown = []
    for _ in range(4 * REFUSALS):
        shown.append(credentials.offer().certificate.serial_number)
        credentials.refused(credentials.offer())
    assert shown == ([renewed] * REFUSALS + [first] * REFUSALS) * 2
    assert (state / NEXT).exists()
    for _ in range(REFUSALS):
        credentials.refused(credentials.offer())
    credentials.accepted(credentials.offer())
    assert (credentials.certificate.serial_number, credentials.renewed, credentials.lost_renewed) == (
        first,
        False,
        True,
    )
    assert not (state / NEXT).exists()


def test_a_connection_of_before_the_renewal_says_nothing_about_it(state, renew) -> None:
    """Accident: the broker accepts a connection that was begun before the renewed certificate came."""
    credentials = Credentials.open(state)
    before, terms = credentials.offer(), credentials.terms()
    renew(credentials)
    credentials.accepted(before)
    assert credentials.renewed
    assert credentials.terms() != terms


def test_a_damaged_second_slot_does_not_stop_the_first(state, renew) -> None:
    renew(Credentials.open(state))
    (state / NEXT / "key.pem").write_text("torn")
    credentials = Credentials.open(state)
    assert not credentials.renewed
    credentials.tls()


def test_authorities_that_are_none_change_nothing(state, authority) -> None:
    credentials = Credentials.open(state)
    with pytest.raises(Malformed, match="not PEM"):
        credentials.believe(["nonsense"])
    assert credentials.authorities() == authority.pem
    credentials.tls()


def test_the_sealing_key_is_made_once_where_an_older_agent_enrolled(state) -> None:
    path = state / FOLDER / "sealing.pem"
    path.unlink()
    made = Identity.load(state).sealing_key()
    assert Identity.load(state).sealing_key().public_key() == made.public_key()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- killed at every step ---------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from agent.enrolment import wipe
from agent.identity.credentials import Credentials
from agent.identity.keys import load_key
from cryptography import x509

def renew(state, given):
    credentials = Credentials.open(state)
    key = load_key((given / "key.pem").read_bytes())
    credentials.store_renewed(key, x509.load_pem_x509_certificate((given / "cert.pem").read_bytes()))
    credentials.accepted(credentials.offer())

def wiped(state, given):
    wipe.begin_wipe(state)
    wipe.finish_wipe(state)

def killed(state, step, act, given):
    def hook(event, args):
        nonlocal step
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            return
        # shutil.rmtree names what it removes relative to a folder that it holds open
        if str(args[0]).startswith(str(state)) or not os.path.isabs(str(args[0])):
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        sys.addaudithook(hook)
        act(state, given)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

act = {"renew": renew, "wipe": wiped}[sys.argv[1]]
for line in sys.stdin:
    state, step, given = line.split()
    print(killed(Path(state), int(step), act, Path(given)), flush=True)
"""


class Killer:
    """Runs an act on a copy of a state folder in a process that is killed at the n-th file operation."""

    def __init__(self, act: str, state: Path, given: Path) -> None:
        self.state, self.given = state, given
        self.process = subprocess.Popen(
            [sys.executable, "-c", KILLED, act], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=20)

    def kill_at(self, step: int) -> Path | None:
        """The folder as the kill left it, None when the act was through before."""
        copy = self.state.with_name(f"state-{step}")
        shutil.copytree(self.state, copy)
        self.process.stdin.write(f"{copy} {step} {self.given}\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return copy if code else None


def test_a_device_that_is_killed_at_any_step_of_a_renewal_has_an_identity_that_works(
    state, authority, tmp_path
) -> None:
    """Accident: SIGKILL before the n-th file operation while a renewed certificate is stored and takes over."""
    given = tmp_path / "given"
    given.mkdir()
    key = new_key()
    certificate = authority.issue("kitchen-1", key.public_key())
    (given / "key.pem").write_bytes(key_pem(key))
    (given / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    first = Identity.load(state).certificate().serial_number
    sealing = Identity.load(state).sealing_key().public_key()
    seen: dict[str, int] = {}
    with Killer("renew", state, given) as killer:
        for step in range(200):
            left = killer.kill_at(step)
            if left is None:
                break
            names = "+".join(sorted(path.name for path in left.iterdir()))
            seen[names] = seen.get(names, 0) + 1
            credentials = Credentials.open(left)
            credentials.tls()
            assert credentials.signer().public_key.keyid
            assert credentials.sealing_key().public_key() == sealing
            serial = credentials.certificate.serial_number
            assert serial in (first, certificate.serial_number)
            if serial == first and credentials.renewed:
                credentials.tls_of(credentials.offer())
                credentials.accepted(credentials.offer())
                assert credentials.certificate.serial_number == certificate.serial_number
            assert {path.name for path in left.iterdir()} == {FOLDER}
            Credentials.open(left)
    assert step >= 20, "the fault must fire"
    assert {FOLDER, f"{FOLDER}+{NEXT}", f"{NEXT}+{OLD}", f"{FOLDER}+{OLD}"} <= seen.keys(), (
        "also between the two renames"
    )


def test_a_wipe_that_is_killed_at_any_step_goes_on_at_the_next_start(state, tmp_path) -> None:
    """Accident: SIGKILL before the n-th file operation of a wipe. From its mark on the device is enrolled no more."""
    fill(state)
    with Killer("wipe", state, tmp_path) as killer:
        for step in range(200):
            left = killer.kill_at(step)
            if left is None:
                break
            begun = (left / MARKER).exists()
            assert finish_wipe(left) == begun
            assert not finish_wipe(left)
            if begun:
                assert sorted(path.name for path in left.iterdir()) == ["agent.toml", "notes.txt"]
                with pytest.raises(Unavailable, match="not enrolled"):
                    Credentials.open(left)
            elif (left / FOLDER).exists():
                Credentials.open(left)
    assert step >= 20, "the fault must fire"


def fill(state: Path) -> None:
    """What an agent leaves in its folder, and what others did."""
    StateFile.open(state / "agent.db").close()
    (state / "blobs").mkdir()
    (state / "blobs" / "ab").write_bytes(b"a model")
    (state / "renewal.pem").write_bytes(key_pem(new_key()))
    for folder in (NEXT, OLD, "enrolling"):
        shutil.copytree(state / FOLDER, state / folder)
    for name in ("agent.toml", "notes.txt"):
        (state / name).write_text("")


def test_a_wipe_takes_everything_of_the_fleet_and_leaves_what_is_the_owners(state) -> None:
    fill(state)
    assert not finish_wipe(state), "nobody asked for it"
    with locked(state):
        begin_wipe(state)
        assert finish_wipe(state)
    assert sorted(path.name for path in state.iterdir()) == ["agent.lock", "agent.toml", "notes.txt"]


def test_the_keys_go_first(state) -> None:
    keys = [name for name in OURS if name.startswith((FOLDER, "enrolling", "renewal"))]
    assert OURS[: len(keys)] == tuple(keys)


def test_a_wiped_device_says_that_it_is_not_enrolled(state, capsys) -> None:
    fill(state)
    begin_wipe(state)
    assert main(["run", "--state", str(state)]) == NOT_ENROLLED
    assert "not enrolled: run shoal-agent enrol" in capsys.readouterr().err
    assert not (state / FOLDER).exists()
