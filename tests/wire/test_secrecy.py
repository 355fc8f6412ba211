"""A model on its way opens for whom it is assigned to, and for nobody else; nothing that was changed opens at all."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import assume, given
from hypothesis import strategies as st

from wire.chunks import digest
from wire.document import dump_json
from wire.errors import Malformed, Untrusted, WireError
from wire.secrecy import (
    TAG,
    blob_key,
    decrypt_chunk,
    encrypt_chunk,
    open_keys,
    public_key,
    public_text,
    seal_keys,
)

SECRET = b"s" * 32
DEVICE = "kitchen-1"
DEVICE_KEY = ec.generate_private_key(ec.SECP256R1())
RING = {digest(bytes([i])): bytes([i]) * 32 for i in range(3)}
SEALED = seal_keys(RING, DEVICE_KEY.public_key(), DEVICE)

secrets = st.binary(min_size=32, max_size=32)
digests = st.binary(max_size=3).map(digest)
cuts = st.none() | digests
indexes = st.integers(0, (1 << 20) - 1)


def flipped(data: bytes, bit: int) -> bytes:
    at = bit % (8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


# --- chunks


@given(secrets, digests, cuts, indexes, st.binary(max_size=500))
def test_a_chunk_comes_back_as_it_was(secret: bytes, blob: str, cut: str | None, index: int, chunk: bytes) -> None:
    key = blob_key(secret, blob, cut)
    data = encrypt_chunk(key, index, chunk)
    assert len(data) == len(chunk) + TAG
    assert data == encrypt_chunk(key, index, chunk)  # one ciphertext for every device and any cache
    assert decrypt_chunk(key, index, data) == chunk


@given(secrets, indexes, st.binary(min_size=1, max_size=200), st.integers(0))
def test_a_chunk_with_any_bit_flipped_does_not_open(key: bytes, index: int, chunk: bytes, bit: int) -> None:
    with pytest.raises(Untrusted, match="does not open"):
        decrypt_chunk(key, index, flipped(encrypt_chunk(key, index, chunk), bit))


@given(secrets, indexes, indexes, st.binary(max_size=50))
def test_a_chunk_at_another_index_does_not_open(key: bytes, index: int, other: int, chunk: bytes) -> None:
    """Attack: the broker swaps two chunks of one blob."""
    assume(index != other)
    with pytest.raises(Untrusted):
        decrypt_chunk(key, other, encrypt_chunk(key, index, chunk))


@given(secrets, secrets, st.binary(max_size=50))
def test_a_chunk_does_not_open_with_another_key(key: bytes, other: bytes, chunk: bytes) -> None:
    assume(key != other)
    with pytest.raises(Untrusted):
        decrypt_chunk(other, 0, encrypt_chunk(key, 0, chunk))


@given(secrets, indexes, st.binary(max_size=64))
def test_any_bytes_as_a_chunk_are_untrusted(key: bytes, index: int, data: bytes) -> None:
    with pytest.raises(Untrusted):
        decrypt_chunk(key, index, data)


# --- keys


@given(st.lists(st.tuples(digests, cuts), min_size=2, max_size=20, unique=True))
def test_no_two_blobs_and_no_two_cuts_of_one_blob_share_a_key(pairs: list[tuple[str, str | None]]) -> None:
    """Else one nonce (the index) would come twice under one key, and both chunks could be read."""
    assert len({blob_key(SECRET, blob, cut) for blob, cut in pairs}) == len(pairs)


@given(secrets, secrets, digests)
def test_the_key_of_a_blob_needs_the_secret_and_is_the_same_on_every_start(a: bytes, b: bytes, blob: str) -> None:
    assume(a != b)
    assert blob_key(a, blob, None) == blob_key(a, blob, None) != blob_key(b, blob, None)


# --- key rings


@given(st.dictionaries(digests, secrets, max_size=20), st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True))
def test_a_key_ring_comes_back_as_it_was_and_differs_every_time(ring: dict[str, bytes], device: str) -> None:
    sealed = seal_keys(ring, DEVICE_KEY.public_key(), device)
    assert open_keys(sealed, DEVICE_KEY, device) == ring
    assert sealed != seal_keys(ring, DEVICE_KEY.public_key(), device)


def test_a_key_ring_is_not_opened_by_another_device_nor_with_another_key() -> None:
    """Attack: the broker gives one device the key ring of another."""
    for private, device in ((DEVICE_KEY, "kitchen-2"), (ec.generate_private_key(ec.SECP256R1()), DEVICE)):
        with pytest.raises(Untrusted, match="not sealed to this device's key"):
            open_keys(SEALED, private, device)


@given(st.integers(0))
def test_a_key_ring_with_any_bit_flipped_does_not_open(bit: int) -> None:
    data = flipped(base64.b64decode(SEALED), bit)
    with pytest.raises(Untrusted):
        open_keys(base64.b64encode(data).decode(), DEVICE_KEY, DEVICE)


@given(st.text(max_size=80) | st.binary(max_size=200).map(lambda data: base64.b64encode(data).decode()))
def test_any_text_as_a_key_ring_is_a_wire_error(text: str) -> None:
    with pytest.raises(WireError):
        open_keys(text, DEVICE_KEY, DEVICE)


@pytest.mark.parametrize(
    ("key", "message"), [("AA==", "has 1 bytes, expected 32"), ("!", "not base64"), ("é", "not base64")]
)
def test_a_key_of_another_size_inside_a_good_seal_is_malformed(
    key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.secrecy.KeyRing.to_bytes", lambda _: dump_json({"keys": {digest(b"x"): key}}))
    with pytest.raises(Malformed, match=message):
        open_keys(seal_keys({}, DEVICE_KEY.public_key(), DEVICE), DEVICE_KEY, DEVICE)


# --- sealing keys


def test_a_sealing_key_comes_back_as_it_was() -> None:
    assert public_key(public_text(DEVICE_KEY.public_key())) == DEVICE_KEY.public_key()


OFF_THE_CURVE = base64.b64encode(b"\x04" + b"\x01" * 64).decode()
OTHER_CURVE = public_text(ec.generate_private_key(ec.SECP384R1()).public_key())


@pytest.mark.parametrize("text", ["", "!", "AA==", "é", OFF_THE_CURVE, OTHER_CURVE])
def test_what_is_no_point_of_the_curve_is_malformed(text: str) -> None:
    """Attack: an invalid-curve key, that would leak the keys sealed to it."""
    with pytest.raises(Malformed, match="not a point of P-256"):
        public_key(text)


@given(st.text(max_size=100) | st.binary(max_size=100).map(lambda data: base64.b64encode(data).decode()))
def test_any_text_as_a_sealing_key_is_a_point_or_malformed(text: str) -> None:
    try:
        public_key(text)
    except Malformed:
        return
