"""Enrolment against a real TLS server that speaks EST."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from est_server import Est
from trust_repository import Repository

from agent.enrolment import enrol as enrolment
from agent.enrolment.claim import device_id
from agent.enrolment.enrol import Patience, enrol, time_of
from agent.errors import AgentError, Malformed, Unavailable, Untrusted
from agent.identity.credentials import Credentials
from agent.identity.identity import Identity
from agent.identity.keys import key_pem, new_key
from agent.main import NOT_ENROLLED, main
from agent.store.state import StateFile
from wire.kit import EnrolmentKit
from wire.profile import Detect, Hardware, Limits, Profile, ProfileRuntime
from wire.units import show_instant

PROFILE = Profile(
    name="x86-64",
    title="PC",
    status="supported",
    hardware=Hardware(machine="x86_64", cpu="any", features=(), memory="1 GiB"),
    detect=Detect(machines=("x86_64",)),
    runtimes=(ProfileRuntime(name="onnxruntime", version="1"),),
    limits=Limits(disk="1 GiB", memory="1 GiB"),
    sources=(),
)


@pytest.fixture
def est(authority) -> Est:
    return Est(authority)


@pytest.fixture
def kit_file(tmp_path, authority):
    """Write a kit for a fleet address; `changes` replace its fields."""
    repo = Repository()
    repo.expires = datetime.now(UTC) + timedelta(days=30)
    repo.versions = dict.fromkeys(repo.versions, 0)
    repo.sign_root()
    repo.sign_targets()
    repo.sign_release()

    def write(address: str, **changes: object):
        kit = {
            "contract": "1.0",
            "device": "kitchen-1",
            "token": "secret",
            "issued": show_instant(datetime.now(UTC) - timedelta(hours=1)),
            "expires": show_instant(datetime.now(UTC) + timedelta(days=7)),
            "fleet": address,
            "broker": "localhost:8883",
            "ca": authority.pem,
            "trust": {name: data.decode() for name, data in repo.offered().items()},
            "profile": PROFILE.to_value(),
            **changes,
        }
        kit = {name: value for name, value in kit.items() if value is not None}
        path = tmp_path / "kit.json"
        path.write_text(json.dumps(kit))
        return path

    return write


@pytest.fixture
def claim(authority):
    """Fields of a kit that turn it into one of the batch `hall`."""
    key = new_key()
    certificate = authority.issue("hall", key.public_key()).public_bytes(Encoding.PEM).decode()
    return {
        "device": None,
        "token": None,
        "claim": {"batch": "hall", "certificate": certificate, "key": key_pem(key).decode()},
    }


def test_a_device_enrols_and_keeps_key_certificate_trust_and_profile(est, kit_file, tmp_path) -> None:
    state = tmp_path / "state"
    with est.running() as url:
        assert main(["enrol", "--kit", str(kit_file(url)), "--state", str(state)]) == 0
    identity = Identity.load(state)
    assert (identity.device, identity.profile, identity.broker_port) == ("kitchen-1", PROFILE, 8883)
    for name in ("key.pem", "sealing.pem"):
        assert stat.S_IMODE((identity.folder / name).stat().st_mode) == 0o600
    assert identity.sealing_key().public_key() != est.requests[0].public_key()
    assert stat.S_IMODE(identity.folder.stat().st_mode) == 0o700
    assert "secret" not in "".join(path.read_text() for path in identity.folder.iterdir())
    file = StateFile.open(state / "agent.db")
    assert file.trust_documents().keys() == {"root", "timestamp", "snapshot", "targets", "release-intents"}
    assert file.newest_time() > datetime.now(UTC) - timedelta(hours=2), "the kit says that it is at least this late"
    file.close()
    identity.tls()
    assert identity.certificate().public_key() == est.requests[0].public_key()
    assert isinstance(est.requests[0].public_key(), ec.EllipticCurvePublicKey)


def test_a_used_token_is_refused_and_says_to_make_a_new_kit(est, kit_file, tmp_path, capsys) -> None:
    with est.running() as url:
        kit = kit_file(url)
        assert main(["enrol", "--kit", str(kit), "--state", str(tmp_path / "one")]) == 0
        assert main(["enrol", "--kit", str(kit), "--state", str(tmp_path / "two")]) == 1
    assert "token used or wrong: make a new kit if kitchen-1 is to join" in capsys.readouterr().err
    assert not (tmp_path / "two" / "identity").exists()


def test_enrolling_twice_in_one_folder_is_refused_before_the_token_is_spent(est, kit_file, tmp_path) -> None:
    with est.running() as url:
        enrol(kit_file(url), tmp_path / "state")
        est.tokens["kitchen-1"] = "secret"
        with pytest.raises(Malformed, match="enrolled here already"):
            enrol(kit_file(url), tmp_path / "state")
    assert est.tokens == {"kitchen-1": "secret"}


def test_an_enrolment_that_was_interrupted_is_repeated_with_the_same_key(est, kit_file, tmp_path) -> None:
    """Accident: the fleet is not there the first time."""
    state = tmp_path / "state"
    with pytest.raises(Unavailable, match="is the fleet up"):
        enrol(kit_file("https://localhost:1"), state)
    with est.running() as url:
        est.answers = [(500, b"")]
        with pytest.raises(Unavailable, match="status 500"):
            enrol(kit_file(url), state)
        begun = (state / "enrolling" / "key.pem").read_bytes()
        enrol(kit_file(url), state)
    assert (state / "identity" / "key.pem").read_bytes() == begun
    assert not (state / "enrolling").exists()


KILLED_AT_A_STEP = """
import os, signal, sys
from agent.main import main
kit, folder = sys.argv[1:]
def enrol(state, step):
    def hook(event, args):
        nonlocal step
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(args[0]).startswith(state):
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        sys.addaudithook(hook)
        sys.stdout = sys.stderr
        os._exit(main(["enrol", "--kit", kit, "--state", state]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for step in map(int, sys.stdin):
    print(enrol(f"{folder}/{step}", step), enrol(f"{folder}/{step}", 10**6), flush=True)
"""


KILLED_AT_THE_END = """
import os, signal, sys
from pathlib import Path
from agent.main import main
from agent.enrolment import enrol
folder, left = Path(sys.argv[1]), int(sys.argv[2])
at_the_end = False
def hook(event, arguments):
    global left
    if at_the_end and event in ("open", "os.rename", "os.remove", "os.mkdir"):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
def check(*arguments, before=enrol.check_answer):
    global at_the_end
    before(*arguments)
    at_the_end = True  # the fleet has answered
enrol.check_answer = check
sys.addaudithook(hook)
os._exit(main(["enrol", "--kit", str(folder / "kit.json"), "--device", "hall-1", "--state", str(folder / "state")]))
"""


def test_an_enrolment_that_is_killed_at_any_step_goes_on_and_the_fleet_sees_one_key(est, kit_file, tmp_path) -> None:
    """Accident: SIGKILL before the n-th file operation in the state folder, for n = 0, 1, 2..., and it is run again."""
    asked_twice = 0
    with est.running() as url:
        command = [sys.executable, "-c", KILLED_AT_A_STEP, str(kit_file(url)), str(tmp_path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as enrolling:
            for step in range(100):
                est.tokens, est.signed, est.requests = {"kitchen-1": "secret"}, set(), []
                enrolling.stdin.write(f"{step}\n")
                enrolling.stdin.flush()
                first, then = map(int, enrolling.stdout.readline().split())
                if first == 0:
                    break  # no operation is left to kill it at
                assert (first, then) == (-signal.SIGKILL, 0) or (tmp_path / str(step) / "identity").exists()
                assert len(est.signed) == 1, step
                asked_twice += len(est.requests) == 2
                identity = Identity.load(tmp_path / str(step))
                identity.tls()
                identity.sealing_key()
                names = sorted(p.name for p in identity.folder.parent.iterdir())
                assert names == ["agent.db", "agent.spare", "identity"]
            enrolling.stdin.close()
    assert step >= 15, "the fault must fire"
    assert asked_twice >= 2, "it was also killed after the fleet had answered"


def test_a_fleet_with_another_ca_gets_no_token(est, kit_file, tmp_path) -> None:
    """Attack: a server in the middle with a certificate of its own CA."""
    other = type(est.authority)(tmp_path)
    with est.running() as url, pytest.raises(Unavailable, match="and the kit its own"):
        enrol(kit_file(url, ca=other.pem), tmp_path / "state")
    assert est.tokens == {"kitchen-1": "secret"}


def test_an_expired_server_certificate_is_refused(est, kit_file, tmp_path) -> None:
    """TLS does not look at dates here, so we do."""
    expired = datetime.now(UTC) - timedelta(hours=1)
    with est.running(expired) as url, pytest.raises(Untrusted, match="the server's certificate expired"):
        enrol(kit_file(url), tmp_path / "state")
    assert est.tokens == {"kitchen-1": "secret"}


def test_a_certificate_for_another_name_or_key_is_not_taken(est, kit_file, tmp_path) -> None:
    """Attack: the server answers with somebody else's certificate."""
    with est.running() as url:
        for name, key in (("other", None), (None, ec.generate_private_key(ec.SECP256R1()).public_key())):
            est.tokens["kitchen-1"], est.name, est.key = "secret", name, key
            with pytest.raises(Untrusted, match="for another key or device"):
                enrol(kit_file(url), tmp_path / "state")
    assert not (tmp_path / "state" / "identity").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trust": {}}, "no root metadata"),
        ({"trust": {"root/1": "{}"}}, "root: not TUF metadata"),
        ({"fleet": "http://localhost:1"}, "is not an https address"),
        ({"broker": "localhost"}, "expected host:port"),
        ({"device": "Kitchen!"}, "device id"),
        ({"contract": "2.0"}, "written for contract 2.0"),
        ({"ca": "nothing"}, "CA certificates: not PEM"),
    ],
)
def test_a_bad_kit_is_refused_with_its_fault_and_nothing_is_enrolled(kit_file, tmp_path, capsys, changes, said) -> None:
    path = kit_file("https://localhost:1", **changes)
    assert main(["enrol", "--kit", str(path), "--state", str(tmp_path / "state")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state" / "identity").exists()


def test_a_tampered_document_in_the_kit_is_refused(kit_file, tmp_path) -> None:
    """Attack: one version number in the kit's targets was edited."""
    path = kit_file("https://localhost:1")
    kit = json.loads(path.read_text())
    kit["trust"]["targets"] = kit["trust"]["targets"].replace('"version":', '"version":1')
    path.write_text(json.dumps(kit))
    with pytest.raises(AgentError, match="enrolment kit: targets"):
        enrol(path, tmp_path / "state")


def test_running_before_enrolling_says_what_to_do(tmp_path, capsys) -> None:
    assert main(["run", "--state", str(tmp_path)]) == NOT_ENROLLED
    assert "not enrolled: run shoal-agent enrol" in capsys.readouterr().err


def test_a_kit_is_what_the_contract_says(kit_file) -> None:
    kit = EnrolmentKit.from_bytes(kit_file("https://localhost:1").read_bytes())
    assert kit.profile == PROFILE


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)])
def test_a_machine_whose_clock_is_lost_enrols_by_the_time_of_its_kit(
    est, kit_file, tmp_path, monkeypatch, clock
) -> None:
    """Accident: no battery behind the clock. By its own time the kit is from the future, or expired."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return clock.astimezone(tz)

    monkeypatch.setattr(enrolment, "datetime", Clock)
    with est.running() as url:
        path = kit_file(url)
        kit = EnrolmentKit.from_bytes(path.read_bytes())
        assert show_instant(time_of(kit)) == kit.issued
        enrol(path, tmp_path / "state")
    file = StateFile.open(tmp_path / "state" / "agent.db")
    assert show_instant(file.newest_time()) >= kit.issued
    file.close()


# --- batches ----------------------------------------------------------------------------------------------------


def test_a_device_of_a_batch_waits_until_it_is_accepted_and_keeps_no_claim(est, kit_file, claim, tmp_path) -> None:
    told: list[str] = []
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            est.accepted.add("hall-1")

    with est.running() as url:
        path = kit_file(url, **claim)
        found = enrol(path, tmp_path / "state", "hall-1", Patience(None, told.append, sleep))
    assert (found.device, est.paths) == ("hall-1", ["simpleenroll"] * 3)
    assert pauses == [1.0, 1.0], "as the fleet's Retry-After says"
    asked, removed = told
    assert "shoal device accept hall-1" in asked
    assert "was removed" in removed
    assert len(est.signed) == 1
    kept = b"".join(p.read_bytes() for p in (tmp_path / "state").rglob("*") if p.is_file())
    assert claim["claim"]["key"].splitlines()[1].encode() not in kept


def test_the_command_removes_the_kit_of_a_batch_and_says_so(est, kit_file, claim, tmp_path, capsys) -> None:
    est.accepted.add("hall-1")
    with est.running() as url:
        path = kit_file(url, **claim)
        words = ["enrol", "--kit", str(path), "--device", "hall-1", "--state"]
        assert main([*words, str(tmp_path / "kept"), "--keep-kit"]) == 0
        assert path.exists()
        est.keys.clear()
        assert main([*words, str(tmp_path / "state")]) == 0
    assert not path.exists()
    assert "the key of its batch must not stay" in capsys.readouterr().err


def test_a_device_of_a_batch_that_is_killed_at_any_step_never_works_with_the_kit_beside_it(
    est, kit_file, claim, tmp_path
) -> None:
    """Accident: SIGKILL between the last steps. An agent that starts then goes on; the kit is gone before it does."""
    est.accepted.add("hall-1")
    half_way = 0
    with est.running() as url:
        kit = kit_file(url, **claim)
        for step in range(100):
            folder = tmp_path / "killed" / str(step)
            folder.mkdir(parents=True)
            shutil.copy(kit, folder / "kit.json")
            est.keys.clear()
            command = [sys.executable, "-c", KILLED_AT_THE_END, str(folder), str(step)]
            code = subprocess.run(command, capture_output=True, timeout=30, check=False).returncode
            if code == 0:
                break
            assert code == -signal.SIGKILL
            gone = not (folder / "kit.json").exists()
            assert gone or not (folder / "state" / "identity").exists()
            half_way += gone and not (folder / "state" / "identity").exists()
            if gone:
                Credentials.open(folder / "state").tls()
    assert half_way, "the fault must fire"
    assert not (folder / "kit.json").exists()


def test_an_enrolment_whose_kit_is_gone_already_ends_well(est, kit_file, claim, tmp_path, monkeypatch) -> None:
    """Accident: killed between the removal of the kit and the last rename; the installer runs the command again."""
    est.accepted.add("hall-1")
    state = tmp_path / "state"
    with est.running() as url:
        words = ["enrol", "--kit", str(kit_file(url, **claim)), "--device", "hall-1", "--state", str(state)]
        with monkeypatch.context() as patch:
            patch.setattr("agent.identity.slots.finish_enrolment", lambda _state: False)
            assert main(words) == 0
        assert not (state / "identity").exists()
        assert main(words) == 0
    assert Identity.load(state).device == "hall-1"


def test_patience_ends_and_the_next_run_goes_on_with_the_same_key(est, kit_file, claim, tmp_path, capsys) -> None:
    with est.running() as url:
        words = ["enrol", "--kit", str(kit_file(url, **claim)), "--device", "hall-1", "--state", str(tmp_path / "s")]
        assert main([*words, "--wait", "1 s"]) == 1
        assert "not accepted yet" in capsys.readouterr().err
        est.accepted.add("hall-1")
        assert main(words) == 0
    assert len(est.keys) == 1


def test_a_device_that_waits_outlives_a_restart_of_the_fleet_and_ctrl_c(est, kit_file, claim, tmp_path) -> None:
    """Accidents: the fleet is gone for a moment while a device waits, then somebody presses Ctrl-C."""
    state = tmp_path / "state"
    with est.running() as url:
        est.answers = [(202, b""), (503, b"")]
        command = [sys.executable, "-m", "agent.main", "enrol", "--kit", str(kit_file(url, **claim))]
        command += ["--device", "hall-1", "--state", str(state)]
        # A job in the background of a shell is started with SIGINT ignored, and hands that on.
        hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        run = f"import sys; {hearing}; from agent.main import main; sys.exit(main())"
        heard = [sys.executable, "-c", run, *command[3:]]
        with subprocess.Popen(heard, stderr=subprocess.PIPE, text=True) as waiting:
            try:
                until(lambda: len(est.paths) >= 3)
                waiting.send_signal(signal.SIGINT)
                _, said = waiting.communicate(timeout=10)
            finally:
                waiting.kill()
        assert waiting.returncode == 130
        assert "status 503" in said
        assert "the same command goes on" in said
        est.accepted.add("hall-1")
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    assert Identity.load(state).device == "hall-1"


def test_a_rejected_device_is_told_so(est, kit_file, claim, tmp_path) -> None:
    est.rejected.add("hall-1")
    with est.running() as url, pytest.raises(Untrusted, match="an operator rejected it"):
        enrol(kit_file(url, **claim), tmp_path / "state", "hall-1")


def test_another_machine_with_the_same_name_is_told_so(est, kit_file, claim, tmp_path) -> None:
    """Accident: two machines with one name in a batch; the first key wins."""
    est.accepted.add("hall-1")
    with est.running() as url:
        enrol(kit_file(url, **claim), tmp_path / "one", "hall-1")
        with pytest.raises(Malformed, match="another key asked for this id"):
            enrol(kit_file(url, **claim), tmp_path / "two", "hall-1")


def test_a_device_of_a_batch_names_itself_by_its_serial_number(tmp_path) -> None:
    """Copies of one disk image share the machine id, so the board's own number goes first."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "machine-id").write_text("abc\n")
    by_image = device_id("hall", tmp_path)
    assert by_image == device_id("hall", tmp_path)
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "device-tree" / "serial-number").write_text("10000000abcdef\0")
    by_board = device_id("hall", tmp_path)
    assert by_board.startswith("hall-")
    assert by_board != by_image
    assert len(device_id("b" * 63, tmp_path)) == 63
    with pytest.raises(Malformed, match="give one with --device"):
        device_id("hall", tmp_path / "nothing")


def test_a_token_kit_is_for_one_name(kit_file, tmp_path) -> None:
    with pytest.raises(Malformed, match="the kit is for kitchen-1"):
        enrol(kit_file("https://localhost:1"), tmp_path / "state", "other")


def test_a_claim_that_is_no_certificate_is_refused(kit_file, claim, tmp_path) -> None:
    claim["claim"]["key"] = key_pem(new_key()).decode()
    with pytest.raises(Malformed, match="the claim of batch hall"):
        enrol(kit_file("https://localhost:1", **claim), tmp_path / "state", "hall-1")


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
