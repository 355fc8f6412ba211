"""Enrolment with clients that are not ours: strongSwan's `pki`, and curl with openssl."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7
from fleet_process import FleetProcess, Publisher
from joining import EST, Batch, kit_for


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed: {', '.join(missing)} (strongswan-pki, curl, openssl)"
    )


@pytest.fixture(autouse=True)
def _with_trust(publisher: Publisher) -> None:
    """Every kit carries signed metadata."""


def run(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> bytes:
    done = subprocess.run(words, cwd=cwd, capture_output=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, (words, done.stderr[-3000:], done.stdout[-300:])
    return done.stdout


@pytest.fixture
def pki(fleet: FleetProcess, tmp_path: Path) -> Callable[..., bytes]:
    """strongSwan's pki, in a folder with the fleet's CA. Of itself it goes up to TLS 1.2, and the fleet from 1.3 on."""
    shutil.copy(fleet.ca_file, tmp_path / "ca.pem")
    (tmp_path / "strongswan.conf").write_text("libtls {\n  version_max = 1.3\n}\n")
    env = {**os.environ, "STRONGSWAN_CONF": str(tmp_path / "strongswan.conf")}
    return lambda *words: run("pki", *words, cwd=tmp_path, env=env)


def pki_request(pki: Callable[..., bytes], folder: Path, name: str, stem: str) -> None:
    """A key and a certificate request, made by pki."""
    (folder / f"{stem}.key").write_bytes(pki("--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"))
    words = ("--req", "--type", "priv", "--in", f"{stem}.key", "--dn", f"CN={name}", "--outform", "pem")
    (folder / f"{stem}.csr").write_bytes(pki(*words))


@needs("pki", "openssl")
def test_strongswan_gets_the_ca_enrols_with_a_token_and_renews(
    fleet: FleetProcess, tmp_path: Path, pki: Callable[..., bytes]
) -> None:
    pki("--estca", "--url", fleet.url, "--cacert", "ca.pem", "--caout", "got.pem", "--outform", "pem", "--force")
    (got,) = tmp_path.glob("got*.pem")
    ours = x509.load_pem_x509_certificate(fleet.ca_file.read_bytes())
    assert x509.load_pem_x509_certificate(got.read_bytes()) == ours

    kit = kit_for(fleet, "swan")
    pki_request(pki, tmp_path, "swan", "first")
    server = ("--est", "--url", fleet.url, "--cacert", "ca.pem", "--outform", "pem")
    first = pki(*server, "--in", "first.csr", "--userpass", f"swan:{kit.token}")
    (tmp_path / "first.pem").write_bytes(first)
    run("openssl", "verify", "-CAfile", "ca.pem", "first.pem", cwd=tmp_path)
    assert fleet.api("GET", "/api/v1/devices/swan")["status"] == "unknown"

    # Given --cert it asks simplereenroll, over mutual TLS.
    pki_request(pki, tmp_path, "swan", "second")
    second = pki(*server, "--in", "second.csr", "--cert", "first.pem", "--key", "first.key")
    shown = fleet.api("GET", "/api/v1/devices/swan")["certificates"]
    serials = {state: c["serial"] for c in shown if (state := c["state"])}
    loaded = [f"{x509.load_pem_x509_certificate(pem).serial_number:x}" for pem in (first, second)]
    assert [serials["current"], serials["next"]] == loaded


@needs("pki")
def test_strongswan_is_refused_with_a_wrong_token(
    fleet: FleetProcess, tmp_path: Path, pki: Callable[..., bytes]
) -> None:
    kit_for(fleet, "swan-wrong")
    pki_request(pki, tmp_path, "swan-wrong", "wrong")
    words = (
        "pki",
        "--est",
        "--url",
        fleet.url,
        "--cacert",
        "ca.pem",
        "--in",
        "wrong.csr",
        "--userpass",
        "swan-wrong:no",
    )
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert fleet.api("GET", "/api/v1/devices/swan-wrong")["status"] == "enrolling"


@pytest.fixture
def curl(fleet: FleetProcess, tmp_path: Path) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """One request with curl: status and body."""
    shutil.copy(fleet.ca_file, tmp_path / "ca.pem")

    def ask(path: str, *words: str) -> tuple[int, bytes]:
        options = (
            "--silent",
            "--show-error",
            "--cacert",
            "ca.pem",
            "--output",
            "answer",
            "--write-out",
            "%{http_code}",
        )
        status = run("curl", *options, *words, f"{fleet.url}{path}", cwd=tmp_path)
        return int(status), (tmp_path / "answer").read_bytes()

    return ask


def openssl_request(folder: Path, name: str, stem: str) -> None:
    """A key and a certificate request in base64, made by openssl."""
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{stem}.key", cwd=folder)
    request = ("openssl", "req", "-new", "-key", f"{stem}.key", "-subj", f"/CN={name}", "-outform", "DER")
    run(*request, "-out", f"{stem}.der", cwd=folder)
    # With line breaks, as RFC 7030 has it.
    run("openssl", "base64", "-in", f"{stem}.der", "-out", f"{stem}.p10", cwd=folder)


def openssl_certificate(folder: Path, body: bytes, stem: str) -> None:
    """The certificate of an EST answer, read by openssl."""
    (folder / f"{stem}.p7").write_bytes(base64.b64decode(body, validate=True))
    words = ("openssl", "pkcs7", "-inform", "DER", "-in", f"{stem}.p7", "-print_certs", "-out", f"{stem}.pem")
    run(*words, cwd=folder)
    run("openssl", "verify", "-CAfile", "ca.pem", f"{stem}.pem", cwd=folder)


@needs("curl", "openssl")
def test_curl_and_openssl_enrol_with_a_token_and_renew(
    fleet: FleetProcess, tmp_path: Path, curl: Callable[..., tuple[int, bytes]]
) -> None:
    status, body = curl(f"{EST}/cacerts")
    assert status == 200
    assert pkcs7.load_der_pkcs7_certificates(base64.b64decode(body)) == [
        x509.load_pem_x509_certificate(fleet.ca_file.read_bytes())
    ]
    kit = kit_for(fleet, "curled")
    openssl_request(tmp_path, "curled", "first")
    send = ("--header", "Content-Type: application/pkcs10", "--data-binary")
    status, body = curl(f"{EST}/simpleenroll", "--user", f"curled:{kit.token}", *send, "@first.p10")
    assert status == 200, body
    openssl_certificate(tmp_path, body, "first")
    openssl_request(tmp_path, "curled", "second")
    mine = ("--cert", "first.pem", "--key", "first.key")
    status, body = curl(f"{EST}/simplereenroll", *mine, *send, "@second.p10")
    assert status == 200, body
    openssl_certificate(tmp_path, body, "second")
    # Shown to the gateway, the next one is promoted, and the first one is good for nothing.
    assert curl("/v1/models", "--cert", "second.pem", "--key", "second.key")[0] != 403
    assert curl("/v1/models", *mine)[0] == 403


@needs("curl", "openssl")
def test_curl_asks_with_a_claim_certificate_until_it_is_accepted(
    fleet: FleetProcess, tmp_path: Path, curl: Callable[..., tuple[int, bytes]]
) -> None:
    batch = Batch.make(fleet, tmp_path, "curls")
    assert batch.kit.claim is not None
    (tmp_path / "claim.pem").write_text(batch.kit.claim.certificate)
    (tmp_path / "claim.key").write_text(batch.kit.claim.key)
    openssl_request(tmp_path, "curls-1", "device")
    send = ("--cert", "claim.pem", "--key", "claim.key", "--data-binary", "@device.p10")
    status, body = curl(f"{EST}/simpleenroll", *send, "--dump-header", "headers")
    assert (status, b"waits" in body) == (202, True)
    assert "\nretry-after: " in (tmp_path / "headers").read_text().lower()
    fleet.api("POST", "/api/v1/devices/curls-1/accept", {})
    status, body = curl(f"{EST}/simpleenroll", *send)
    assert status == 200
    openssl_certificate(tmp_path, body, "device")
