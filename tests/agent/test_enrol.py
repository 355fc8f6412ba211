"""Enrolment against a real TLS server that speaks EST."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import stat
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from trust_repository import Repository

from agent.enrol import device_key, enrol
from agent.errors import AgentError, Malformed, Unavailable, Untrusted
from agent.identity import Identity
from agent.main import main
from agent.state import StateFile
from wire.messages import EnrolmentKit
from wire.profile import Detect, Hardware, Limits, Profile, ProfileRuntime

PROFILE = Profile(
    name="x86-64",
    title="PC",
    status="supported",
    hardware=Hardware(machine="x86_64", cpu="any", features=(), memory="1 GiB"),
    detect=Detect(machines=("x86_64",)),
    runtimes=(ProfileRuntime(name="onnxruntime", version="1"),),
    recipes=("onnx-fp32",),
    choose="first",
    limits=Limits(disk="1 GiB", memory="1 GiB"),
    sources=(),
)


class Est:
    """An EST server that can be bent: `name` and `key` of what it signs, and what becomes of the token."""

    def __init__(self, authority) -> None:
        self.authority = authority
        self.tokens = {"kitchen-1": "secret"}
        self.name: str | None = None
        self.key = None
        self.requests: list[x509.CertificateSigningRequest] = []

    def answer(self, authorization: str, body: bytes) -> tuple[int, bytes]:
        device, _, token = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if self.tokens.pop(device, None) != token:
            return 401, json.dumps({"error": {"code": "unauthorized", "message": "token used or wrong"}}).encode()
        request = x509.load_der_x509_csr(base64.b64decode(body))
        assert request.is_signature_valid
        self.requests.append(request)
        certificate = self.authority.issue(self.name or device, self.key or request.public_key())
        return 200, base64.b64encode(pkcs7.serialize_certificates([certificate], Encoding.DER))

    @contextmanager
    def running(self, expires: datetime | None = None):
        est = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = est.answer(self.headers["Authorization"], body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_words: object) -> None:
                """Quiet."""

        class Server(http.server.HTTPServer):
            def handle_error(self, *_where: object) -> None:
                """A client that does not trust us breaks off."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.authority.files("localhost", expires))
        server = Server(("localhost", 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


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
            "expires": "2030-01-01T00:00:00Z",
            "fleet": address,
            "broker": "localhost:8883",
            "ca": authority.pem,
            "trust": {name: data.decode() for name, data in repo.offered().items()},
            "profile": PROFILE.to_value(),
            **changes,
        }
        path = tmp_path / "kit.json"
        path.write_text(json.dumps(kit))
        return path

    return write


def test_a_device_enrols_and_keeps_key_certificate_trust_and_profile(est, kit_file, tmp_path) -> None:
    state = tmp_path / "state"
    with est.running() as url:
        assert main(["enrol", "--kit", str(kit_file(url)), "--state", str(state)]) == 0
    identity = Identity.load(state)
    assert (identity.device, identity.profile, identity.broker_port) == ("kitchen-1", PROFILE, 8883)
    assert stat.S_IMODE((identity.folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.folder.stat().st_mode) == 0o700
    assert "secret" not in "".join(path.read_text() for path in identity.folder.iterdir())
    file = StateFile.open(state / "agent.db")
    assert file.trust_documents().keys() == {"root", "timestamp", "snapshot", "targets", "release-intents"}
    file.close()
    identity.tls()
    assert isinstance(est.requests[0].public_key(), ec.EllipticCurvePublicKey)


def test_a_used_token_is_refused_and_says_to_make_a_new_kit(est, kit_file, tmp_path, capsys) -> None:
    with est.running() as url:
        kit = kit_file(url)
        assert main(["enrol", "--kit", str(kit), "--state", str(tmp_path / "one")]) == 0
        assert main(["enrol", "--kit", str(kit), "--state", str(tmp_path / "two")]) == 1
    assert "token used or wrong: make a new kit" in capsys.readouterr().err
    assert not (tmp_path / "two" / "identity").exists()


def test_enrolling_twice_in_one_folder_is_refused_before_the_token_is_spent(est, kit_file, tmp_path) -> None:
    with est.running() as url:
        enrol(kit_file(url), tmp_path / "state")
        est.tokens["kitchen-1"] = "secret"
        with pytest.raises(Malformed, match="enrolled here already"):
            enrol(kit_file(url), tmp_path / "state")
    assert est.tokens == {"kitchen-1": "secret"}


def test_an_enrolment_that_was_interrupted_is_repeated_with_the_same_key(est, kit_file, tmp_path) -> None:
    """Accident: the fleet is not there the first time, and the first key file was torn by a crash."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "key.pem").write_bytes(b"-----BEGIN")
    with pytest.raises(Unavailable, match="is the fleet up"):
        enrol(kit_file("https://localhost:1"), state)
    key = device_key(state / "key.pem").public_key()
    with est.running() as url:
        enrol(kit_file(url), state)
    assert est.requests[0].public_key() == key


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
    assert main(["run", "--state", str(tmp_path)]) == 1
    assert "not enrolled: run shoal-agent enrol" in capsys.readouterr().err


def test_a_kit_is_what_the_contract_says(kit_file) -> None:
    kit = EnrolmentKit.from_bytes(kit_file("https://localhost:1").read_bytes())
    assert kit.profile == PROFILE
