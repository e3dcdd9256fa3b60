# SPDX-License-Identifier: MIT
"""Tests of the key schedule, of secured records and of how their version is chosen."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.algorithms import AeadSuite, BaseHash
from tsmfs.spdm.secured import (
    RECORD_HEADER_SIZE,
    RECORD_ROOM,
    SECURED_VERSIONS,
    SEQUENCE_LIMIT,
    DataSecrets,
    Direction,
    HandshakeSecrets,
    OpaqueElement,
    RecordError,
    SecuredSession,
    bin_str,
    hkdf_expand,
    hkdf_extract,
    pack_opaque,
    parse_opaque,
    parse_selected_version,
    parse_supported_versions,
    record_session,
    selected_version,
    session_id,
    supported_versions,
)
from tsmfs.spdm.wire import SpdmDecodeError

SHARED, TH1, TH2 = bytes(range(32)), b"\x11" * 32, b"\x22" * 32
SESSION = 0x0004_0102
SUITE = AeadSuite.AES_256_GCM


def session_pair(suite: AeadSuite = SUITE) -> tuple[SecuredSession, SecuredSession]:
    """The same session on both sides, established: the requester's, the responder's."""
    sides = []
    for _ in range(2):
        side = SecuredSession(SESSION, 0x12, BaseHash.SHA_256, suite, SHARED, TH1)
        side.establish(TH2)
        sides.append(side)
    return sides[0], sides[1]


# --- Key schedule ------------------------------------------------------------------------------


def test_hkdf_is_that_of_rfc_5869() -> None:
    material, salt = b"\x0b" * 22, bytes(range(13))
    secret = hkdf_extract(BaseHash.SHA_256, salt, material)
    assert secret.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    expanded = hkdf_expand(BaseHash.SHA_256, secret, bytes(range(0xF0, 0xFA)), 42)
    assert expanded.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


@given(st.sampled_from(BaseHash), st.binary(min_size=32), st.binary(), st.integers(1, 200))
def test_expanding_agrees_with_another_implementation(
    base_hash: BaseHash, secret: bytes, info: bytes, length: int
) -> None:
    expected = HKDFExpand(base_hash.primitive, length, info).derive(secret)
    assert hkdf_expand(base_hash, secret, info, length) == expected


def test_labels_have_length_version_and_context() -> None:
    assert bin_str(0x12, 48, b"req hs data", b"TH1") == b"\x30\x00spdm1.2 req hs dataTH1"
    assert bin_str(0x13, 12, b"iv") == b"\x0c\x00spdm1.3 iv"


def test_secrets_follow_from_the_shared_secret_and_the_transcript() -> None:
    sha = BaseHash.SHA_256

    def expanded(secret: bytes, label: bytes, th: bytes) -> bytes:
        info = b"\x20\x00spdm1.2 " + label + th
        return HKDFExpand(sha.primitive, 32, info).derive(secret)

    handshake = HandshakeSecrets.derive(0x12, sha, SHARED, TH1)
    root = hkdf_extract(sha, bytes(32), SHARED)
    assert handshake.handshake == root
    assert handshake.request == expanded(root, b"req hs data", TH1)
    assert handshake.response == expanded(root, b"rsp hs data", TH1)
    assert handshake.request_finished == expanded(handshake.request, b"finished", b"")
    assert handshake.response_finished == expanded(handshake.response, b"finished", b"")
    data = DataSecrets.derive(0x12, sha, root, TH2)
    master = hkdf_extract(sha, expanded(root, b"derived", b""), bytes(32))
    assert data.request == expanded(master, b"req app data", TH2)
    assert data.response == expanded(master, b"rsp app data", TH2)
    assert data.export_master == expanded(master, b"exp master", TH2)


def test_secrets_depend_on_the_version() -> None:
    older = HandshakeSecrets.derive(0x12, BaseHash.SHA_384, SHARED, TH1)
    newer = HandshakeSecrets.derive(0x13, BaseHash.SHA_384, SHARED, TH1)
    assert older.handshake == newer.handshake
    assert older.request != newer.request


def test_secrets_are_not_shown() -> None:
    secrets = HandshakeSecrets.derive(0x12, BaseHash.SHA_256, SHARED, TH1)
    data = DataSecrets.derive(0x12, BaseHash.SHA_256, secrets.handshake, TH2)
    shown = repr(secrets) + repr(data) + repr(session_pair()[0])
    for secret in (secrets.handshake, secrets.request, data.request, data.export_master):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


# --- Records -----------------------------------------------------------------------------------


def test_a_session_id_has_the_requesters_half_first_on_the_wire() -> None:
    assert session_id(0x0102, 0x0304).to_bytes(4, "little").hex() == "02010403"


def test_a_record_is_laid_out_as_specified() -> None:
    secret = bytes(32)
    direction = Direction(0x12, BaseHash.SHA_256, AeadSuite.AES_128_GCM, secret)
    key = HKDFExpand(BaseHash.SHA_256.primitive, 16, b"\x10\x00spdm1.2 key").derive(secret)
    iv = HKDFExpand(BaseHash.SHA_256.primitive, 12, b"\x0c\x00spdm1.2 iv").derive(secret)
    for number in range(300):
        record = direction.seal(SESSION, b"message", b"random")
        header = bytes.fromhex("02010400") + (2 + 7 + 6 + 16).to_bytes(2, "little")
        assert record[:RECORD_HEADER_SIZE] == header
        nonce = bytearray(iv)
        nonce[0] ^= number & 0xFF
        nonce[1] ^= number >> 8
        body = AESGCM(key).decrypt(bytes(nonce), record[RECORD_HEADER_SIZE:], header)
        assert body == b"\x07\x00messagerandom"


@pytest.mark.parametrize("suite", AeadSuite)
def test_records_go_both_ways_and_each_direction_counts_for_itself(suite: AeadSuite) -> None:
    requester, responder = session_pair(suite)
    for number in range(3):
        request = b"request %d" % number
        assert responder.open_request(requester.seal_request(request)) == (request, False)
    assert requester.open_response(responder.seal_response(b"response")) == b"response"


def test_padding_behind_a_record_is_ignored() -> None:
    requester, responder = session_pair()
    record = requester.seal_request(b"12345") + bytes(3)
    assert responder.open_request(record) == (b"12345", False)


def test_a_repeated_record_is_not_opened() -> None:
    requester, responder = session_pair()
    record = requester.seal_request(b"once")
    responder.open_request(record)
    with pytest.raises(RecordError):
        responder.open_request(record)


@given(st.data())
def test_a_mutated_record_is_refused_and_the_next_good_one_is_not(data: st.DataObject) -> None:
    requester, responder = session_pair()
    record = bytearray(requester.seal_request(data.draw(st.binary(max_size=40))))
    at = data.draw(st.integers(0, len(record) - 1))
    changed = bytes(record[:at]) + bytes((record[at] ^ data.draw(st.integers(1, 255)),))
    changed += bytes(record[at + 1 :])
    cut = bytes(record[: data.draw(st.integers(0, len(record) - 1))])
    for wrong in (changed, cut, data.draw(st.binary(max_size=60))):
        with pytest.raises(RecordError):
            responder.open_request(wrong)
    assert responder.open_request(bytes(record))[1] is False


def test_an_inner_length_beyond_the_record_is_refused() -> None:
    sender = Direction(0x12, BaseHash.SHA_256, SUITE, bytes(32))
    receiver = Direction(0x12, BaseHash.SHA_256, SUITE, bytes(32))
    header = SESSION.to_bytes(4, "little") + (2 + 1 + 16).to_bytes(2, "little")
    nonce = sender._nonce()
    record = header + sender._cipher.encrypt(nonce, b"\x02\x00x", header)
    with pytest.raises(RecordError, match="longer than its record"):
        receiver.open(record)


def test_the_largest_message_fits_a_record_and_no_larger_one() -> None:
    requester, responder = session_pair()
    largest = bytes(RECORD_ROOM)
    assert responder.open_request(requester.seal_request(largest))[0] == largest
    with pytest.raises(RecordError, match="do not fit"):
        requester.seal_request(largest + b"x")


def test_a_key_that_is_used_up_seals_and_opens_nothing() -> None:
    direction = Direction(0x12, BaseHash.SHA_256, SUITE, bytes(32))
    direction.sequence = SEQUENCE_LIMIT
    with pytest.raises(RecordError, match="no sequence numbers"):
        direction.seal(SESSION, b"")


def test_a_record_of_another_session_is_refused() -> None:
    requester, responder = session_pair()
    other = SecuredSession(7, 0x12, BaseHash.SHA_256, SUITE, SHARED, TH1)
    other.establish(TH2)
    with pytest.raises(RecordError, match="of session 0x00000007"):
        responder.open_request(other.seal_request(b"x"))
    assert record_session(requester.seal_request(b"")) == SESSION
    with pytest.raises(RecordError):
        record_session(b"\x01\x02\x03\x04\x05")


def test_keys_of_the_handshake_are_gone_after_it() -> None:
    side = SecuredSession(SESSION, 0x12, BaseHash.SHA_256, SUITE, SHARED, TH1)
    early = side.seal_request(b"early")
    assert len(side.request_finished) == len(side.response_finished) == 32
    assert (side.established, side.export_master) == (False, b"")
    side.establish(TH2)
    assert side.established
    assert len(side.export_master) == 32
    with pytest.raises(RecordError, match="handshake is over"):
        _ = side.request_finished
    with pytest.raises(RecordError):
        side.open_request(early)


# --- Key update --------------------------------------------------------------------------------


def test_after_an_update_the_old_key_is_good_until_the_new_one_is_verified() -> None:
    requester, responder = session_pair()
    old = requester.seal_request(b"update")
    repeated = requester.seal_request(b"update again")
    assert responder.open_request(old) == (b"update", False)
    responder.update_request()
    updating = [responder.updating]
    assert responder.open_request(repeated) == (b"update again", True)
    requester.update_request()
    requester.verified()
    assert responder.open_request(requester.seal_request(b"verify")) == (b"verify", False)
    responder.verified()
    assert [*updating, responder.updating] == [True, False]
    with pytest.raises(RecordError):
        responder.open_request(old)


def test_directions_are_updated_one_by_one() -> None:
    requester, responder = session_pair()
    responder.update_response()
    record = responder.seal_response(b"new")
    with pytest.raises(RecordError):
        requester.open_response(record)
    requester.update_response()
    assert requester.open_response(record) == b"new"
    assert responder.open_request(requester.seal_request(b"old")) == (b"old", False)


def test_an_updated_secret_is_expanded_from_the_last_one() -> None:
    secret = bytes(32)
    info = b"\x20\x00spdm1.3 traffic upd"
    expected = HKDFExpand(BaseHash.SHA_256.primitive, 32, info).derive(secret)
    direction = Direction(0x13, BaseHash.SHA_256, SUITE, secret)
    direction.sequence = 5
    updated = direction.updated()
    assert updated.sequence == 0
    fresh = Direction(0x13, BaseHash.SHA_256, SUITE, expected)
    assert updated.seal(1, b"x") == fresh.seal(1, b"x")


# --- Opaque data -------------------------------------------------------------------------------

ELEMENTS = st.lists(
    st.builds(
        OpaqueElement,
        st.integers(0, 0x0B),
        st.binary(max_size=5),
        st.binary(max_size=12),
    ),
    min_size=1,
    max_size=4,
).map(tuple)


def test_versions_are_laid_out_as_specified() -> None:
    assert supported_versions((0x12, 0x11)).hex() == (
        "01000000" "0000" "0700" "01" "01" "02" "0012" "0011" "00"
    )  # fmt: skip
    assert selected_version(0x11).hex() == "010000000000040001000011"


def test_versions_come_back() -> None:
    assert parse_supported_versions(supported_versions()) == SECURED_VERSIONS
    assert parse_selected_version(selected_version(0x12)) == 0x12


@given(ELEMENTS)
def test_opaque_data_comes_back(elements: tuple[OpaqueElement, ...]) -> None:
    packed = pack_opaque(elements)
    assert len(packed) % 4 == 0
    assert parse_opaque(packed) == elements


@given(ELEMENTS, st.data())
def test_mutated_opaque_data_is_parsed_or_refused(
    elements: tuple[OpaqueElement, ...], data: st.DataObject
) -> None:
    packed = bytearray(pack_opaque((*elements, *parse_opaque(supported_versions()))))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    for parse in (parse_opaque, parse_supported_versions, parse_selected_version):
        for mutated in (bytes(packed), cut):
            try:
                parse(mutated)
            except SpdmDecodeError:
                continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(4),
        supported_versions()[:-4],
        supported_versions() + bytes(4),
        pack_opaque((OpaqueElement(0, b"", b"\x01\x01\x02\x00\x11"),)),
        pack_opaque((OpaqueElement(3, b"\x01\x00", b"\x01\x01\x01\x00\x11"),)),
        selected_version(0x11),
    ],
)
def test_opaque_data_without_a_list_of_versions_is_refused(data: bytes) -> None:
    with pytest.raises(SpdmDecodeError):
        parse_supported_versions(data)
