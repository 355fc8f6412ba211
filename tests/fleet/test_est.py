"""Enrolment over real TLS."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fleet_process import ApiError, FleetProcess, Publisher, initialise_trust, until

from wire.kit import EnrolmentKit
from wire.units import instant


def kit_for(fleet: FleetProcess, device: str, **headers: str) -> EnrolmentKit:
    body = {"device": device, "profile": "x86-64"}
    return EnrolmentKit.from_value(fleet.api("POST", "/api/v1/devices", body, headers=headers))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_the_ca_certificate_is_public_and_the_one_that_signs(fleet: FleetProcess) -> None:
    status, body = fleet.request("GET", "/.well-known/est/cacerts")
    assert status == 200
    assert b"\n" not in body
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
    assert certificate == x509.load_pem_x509_certificate(fleet.ca_file.read_bytes())


def test_a_kit_gives_one_certificate_for_its_device(fleet: FleetProcess, publisher: Publisher, est: Any) -> None:
    kit, key = kit_for(fleet, "once"), new_key()
    status, body = est.enrol(fleet, "once", kit.token, est.request("once", key))
    assert status == 200
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "once"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert fleet.api("GET", "/api/v1/devices/once")["status"] == "unknown"

    status, body = est.enrol(fleet, "once", kit.token, est.request("once", new_key()))
    assert (status, b"token was used" in body) == (403, True)
    (event,) = fleet.api("GET", "/api/v1/devices/once")["security"]
    assert (event["subject"], "token was used" in event["reason"]) == ("enrolment", True)


def test_a_device_whose_answer_was_lost_gets_the_same_certificate_again(
    fleet: FleetProcess, publisher: Publisher, est: Any
) -> None:
    kit, key = kit_for(fleet, "lost"), new_key()
    first = est.enrol(fleet, "lost", kit.token, est.request("lost", key))
    assert est.enrol(fleet, "lost", kit.token, est.request("lost", key)) == first


def test_a_token_of_another_device_or_no_device_is_refused(fleet: FleetProcess, publisher: Publisher, est: Any) -> None:
    mine, theirs = kit_for(fleet, "mine"), kit_for(fleet, "theirs")
    for device, token in (("mine", theirs.token), ("nobody", mine.token), ("mine", ""), ("mine", "0" * 64)):
        status, body = est.enrol(fleet, device, token, est.request(device, new_key()))
        assert (status, b"wrong token" in body) == (401, True)
    assert fleet.api("GET", "/api/v1/devices/mine")["status"] == "enrolling"


def test_a_request_without_basic_credentials_is_refused(fleet: FleetProcess) -> None:
    for headers in ({}, {"Authorization": "Basic ???"}, {"Authorization": f"Bearer {fleet.token}"}):
        status, _ = fleet.request("POST", "/.well-known/est/simpleenroll", b"AAAA", headers=headers)
        assert status == 401


@pytest.mark.parametrize(
    ("fault", "status"),
    [("name", 422), ("curve", 400), ("rsa", 400), ("garbage", 400), ("signature", 422), ("huge", 413)],
)
def test_a_bad_request_does_not_use_the_token_up(
    fleet: FleetProcess, publisher: Publisher, est: Any, fault: str, status: int
) -> None:
    device = f"bad-{fault}"
    kit, key = kit_for(fleet, device), new_key()
    good = est.request(device, key)
    request = {
        "name": lambda: est.request("another", key),
        "curve": lambda: est.request(device, ec.generate_private_key(ec.SECP384R1())),
        "rsa": lambda: est.request(device, rsa.generate_private_key(65537, 2048)),
        "garbage": lambda: b"\x30\x82garbage",
        "signature": lambda: good[:-1] + bytes([good[-1] ^ 1]),
        "huge": lambda: b"\0" * 20_000,
    }[fault]()
    assert est.enrol(fleet, device, kit.token, request)[0] == status
    assert est.enrol(fleet, device, kit.token, good)[0] == 200


def test_an_expired_token_is_refused(tmp_path: Path, est: Any) -> None:
    with FleetProcess(tmp_path / "fleet", kit_lifetime="1 s") as fleet:
        initialise_trust(fleet)
        kit = kit_for(fleet, "late")

        def refused() -> bool:
            # A name that is wrong keeps the token from being used up while it is still good.
            status, body = est.enrol(fleet, "late", kit.token, est.request("x", new_key()))
            return status == 401 and b"expired" in body

        until(refused, what="the refusal")


def test_an_id_is_given_once_and_a_repeated_request_gives_the_same_kit(
    fleet: FleetProcess, publisher: Publisher
) -> None:
    first = kit_for(fleet, "again", **{"Idempotency-Key": "k"})
    assert kit_for(fleet, "again", **{"Idempotency-Key": "k"}).token == first.token
    for headers in ({}, {"Idempotency-Key": "other"}):
        with pytest.raises(ApiError, match="is taken") as error:
            kit_for(fleet, "again", **headers)
        assert error.value.status == 409


@pytest.mark.parametrize(("device", "profile", "status"), [("Bad Name", "x86-64", 400), ("good", "abacus", 404)])
def test_a_kit_for_a_bad_name_or_unknown_profile_is_refused(
    fleet: FleetProcess, publisher: Publisher, device: str, profile: str, status: int
) -> None:
    with pytest.raises(ApiError) as error:
        fleet.api("POST", "/api/v1/devices", {"device": device, "profile": profile})
    assert error.value.status == status


def test_a_device_that_did_not_enrol_in_time_gets_a_new_kit(tmp_path: Path, est: Any) -> None:
    with FleetProcess(tmp_path / "fleet", kit_lifetime="1 s") as fleet:
        initialise_trust(fleet)
        old = kit_for(fleet, "late")
        until(lambda: instant(old.expires) < datetime.now(UTC), what="the end of the first kit")
        new = kit_for(fleet, "late")
        assert est.enrol(fleet, "late", old.token, est.request("late", new_key()))[0] == 401
        assert est.enrol(fleet, "late", new.token, est.request("late", new_key()))[0] == 200


def test_no_kit_without_a_trust_root(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        with pytest.raises(ApiError, match="shoal release init") as error:
            kit_for(fleet, "early")
        assert error.value.status == 409


def test_a_server_of_another_authority_is_not_trusted(fleet: FleetProcess) -> None:
    """Attack: somebody else answers on the fleet's port."""
    with pytest.raises(ssl.SSLCertVerificationError):
        fleet.request("GET", "/healthz", tls=ssl.create_default_context())
