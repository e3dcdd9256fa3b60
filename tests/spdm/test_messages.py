# SPDX-License-Identifier: MIT
"""Tests of the layouts of SPDM messages: literal bytes, round trips and mutations."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.messages import (
    CONTEXT_SIZE,
    FINISH_SIGNED,
    MESSAGES,
    NONCE_SIZE,
    SUPPORTED_ALGORITHMS,
    AlgorithmsResponse,
    AlgorithmTable,
    Capabilities,
    Certificate,
    Challenge,
    ChallengeAuth,
    ChunkResponse,
    ChunkSend,
    ChunkSendAck,
    Code,
    Csr,
    Digests,
    Error,
    ErrorCode,
    ExtendedAlgorithm,
    Finish,
    FinishResponse,
    GetCapabilities,
    GetCertificate,
    GetCsr,
    GetMeasurements,
    GetVersion,
    KeyExchange,
    KeyExchangeResponse,
    KeyUpdate,
    MeasurementAttributes,
    Measurements,
    NegotiateAlgorithms,
    SetCertificate,
    SpdmError,
    SupportedAlgorithms,
    VendorDefinedRequest,
    VendorDefinedResponse,
    Version,
    VersionNumber,
    VersionResponse,
    parse,
)
from tsmfs.spdm.wire import NO_SIZES, Message, Sizes, SpdmDecodeError

SIZES = Sizes(hash=32, signature=64, exchange=64, summary=32, verify=32)

BYTE = st.integers(0, 0xFF)
WORD = st.integers(0, 0xFFFF)
LONG = st.integers(0, 0xFFFFFFFF)
DATA = st.binary(max_size=20)
NONCES = st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)
NAMES: Mapping[str, int] = {"ct_exponent": 8, "flags": 32, "data_transfer_size": 32}

EXTENDED = st.lists(st.builds(ExtendedAlgorithm, BYTE, WORD), max_size=3).map(tuple)
TABLES = st.lists(st.builds(AlgorithmTable, BYTE, WORD, EXTENDED), max_size=4).map(tuple)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "entries": st.lists(st.builds(VersionNumber, BYTE, BYTE), max_size=4).map(tuple),
    "extended_asym": EXTENDED,
    "extended_hash": EXTENDED,
    "tables": TABLES,
    "nonce": NONCES,
    "random": NONCES,
    "chain_hash": exactly(32),
    "summary": exactly(32),
    "verify": exactly(32),
    "signature": exactly(64),
    "exchange": exactly(64),
}
for _name in ("portion", "opaque", "record", "extended", "vendor", "payload", "response",
              "requester_info", "csr", "chain", "chunk"):  # fmt: skip
    FIELDS[_name] = DATA
for _name in ("flags", "data_transfer_size", "max_message_size", "base_asym", "base_hash",
              "measurement_hash", "large_size"):  # fmt: skip
    FIELDS[_name] = LONG
for _name in ("offset", "length", "remainder", "standard", "sequence"):
    FIELDS[_name] = WORD
WIDE_SESSIONS = (KeyExchange, KeyExchangeResponse)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message whose fields agree with each other."""
    kind = MESSAGES[draw(st.sampled_from(sorted(MESSAGES)))]
    values: dict[str, Any] = {"version": draw(st.sampled_from((Version.V1_2, Version.V1_3)))}
    for field in fields(kind):
        name = field.name
        if name in ("version", "supported", "context", "digests"):
            continue
        strategy = FIELDS.get(name, BYTE)
        if name == "session" and kind in WIDE_SESSIONS:
            strategy = WORD
        values[name] = draw(strategy)
    return kind(**agreed(kind, values, draw))


def agreed(kind: type[Message], values: dict[str, Any], draw: st.DrawFn) -> dict[str, Any]:
    """`values` with what a message does not carry left out, and what it does carry added."""
    newer = values["version"] >= Version.V1_3
    if kind in (Challenge, ChallengeAuth, GetMeasurements, Measurements) and newer:
        values["context"] = draw(exactly(CONTEXT_SIZE))
    if kind is GetMeasurements and not values["attributes"] & MeasurementAttributes.SIGNATURE:
        values.update(nonce=b"", slot=0)
    if kind is Finish and not values["attributes"] & FINISH_SIGNED:
        values["signature"] = b""
    if kind is Capabilities and newer and values["attributes"] & SUPPORTED_ALGORITHMS:
        values["supported"] = draw(DATA)
    if kind in (ChunkSend, ChunkResponse) and values["sequence"]:
        values["large_size"] = 0
    if kind is Digests:
        values["digests"] = tuple(draw(exactly(32)) for _ in range(values["slots"].bit_count()))
    return values


@given(messages())
def test_every_message_comes_back_as_it_went(message: Message) -> None:
    packed = message.pack(SIZES)
    assert packed[:2] == bytes((message.version, message.CODE))
    assert type(message).parse(packed, SIZES) == message
    assert parse(packed, SIZES) == message


@given(messages(), st.data())
def test_a_mutated_message_is_parsed_or_refused(message: Message, data: st.DataObject) -> None:
    packed = bytearray(message.pack(SIZES))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(BYTE)
    cut = data.draw(st.integers(0, len(packed)))
    for mutated in (bytes(packed), bytes(packed[:cut]), bytes(packed) + bytes(cut)):
        for sizes in (SIZES, NO_SIZES):
            try:
                parsed = type(message).parse(mutated, sizes, padding=3)
            except SpdmDecodeError:
                continue
            assert mutated[1] == parsed.CODE


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for kind in MESSAGES.values():
        try:
            kind.parse(data[:1] + bytes((kind.CODE,)) + data[2:], SIZES)
        except SpdmDecodeError:
            continue


def test_there_is_a_message_for_each_code_that_a_responder_answers() -> None:
    assert {Code(code) for code in MESSAGES} >= {
        Code.GET_VERSION, Code.GET_CAPABILITIES, Code.NEGOTIATE_ALGORITHMS, Code.GET_DIGESTS,
        Code.GET_CERTIFICATE, Code.CHALLENGE, Code.GET_MEASUREMENTS, Code.KEY_EXCHANGE,
        Code.FINISH, Code.HEARTBEAT, Code.KEY_UPDATE, Code.END_SESSION, Code.GET_CSR,
        Code.SET_CERTIFICATE, Code.CHUNK_SEND, Code.CHUNK_GET, Code.VENDOR_DEFINED_REQUEST,
    }  # fmt: skip


N32, N8 = bytes(range(32)), bytes(range(8))


@pytest.mark.parametrize(
    ("message", "packed"),
    [
        (GetVersion(version=0x10), "10840000"),
        (
            VersionResponse(version=0x10, entries=(VersionNumber(0x12), VersionNumber(0x13, 1))),
            "10040000" "00" "02" "0012" "0113",
        ),
        (
            GetCapabilities(
                version=0x12, ct_exponent=20, flags=0x82, data_transfer_size=0x1200,
                max_message_size=0x10000,
            ),
            "12e10000" "00" "14" "0000" "82000000" "00120000" "00000100",
        ),
        (
            Capabilities(
                version=0x13, attributes=1, flags=0x20216, data_transfer_size=64,
                max_message_size=128, supported=b"\xaa",
            ),
            "13610100" "00" "00" "0000" "16020200" "40000000" "80000000" "aa",
        ),
        (
            NegotiateAlgorithms(
                version=0x12, measurement_specification=1, other_params=2, base_asym=0x10,
                base_hash=1, tables=(AlgorithmTable(2, 8), AlgorithmTable(5, 1)),
            ),
            "12e30200" "2800" "01" "02" "10000000" "01000000" + "00" * 12 + "00000000"
            "02200800" "05200100",
        ),
        (
            AlgorithmsResponse(
                version=0x12, measurement_specification=1, other_params=2, measurement_hash=2,
                base_asym=0x80, base_hash=2, tables=(AlgorithmTable(3, 2),),
            ),
            "12630100" "2800" "01" "02" "02000000" "80000000" "02000000" + "00" * 12 + "00000000"
            "03200200",
        ),
        (
            Digests(version=0x13, supported_slots=0xFF, slots=1, digests=(N32,)),
            "1301ff01" + N32.hex(),
        ),
        (GetCertificate(slot=1, offset=0x0102, length=0x0304), "128201000201" "0403"),
        (Certificate(slot=1, remainder=5, portion=b"\xaa\xbb"), "12020100" "0200" "0500" "aabb"),
        (
            Challenge(version=0x13, slot=2, summary_type=0xFF, nonce=N32, context=N8),
            "138302ff" + N32.hex() + N8.hex(),
        ),
        (
            GetMeasurements(version=0x13, attributes=1, operation=0xFF, nonce=N32, slot=3,
                            context=N8),
            "13e001ff" + N32.hex() + "03" + N8.hex(),
        ),
        (GetMeasurements(version=0x12, attributes=2, operation=1), "12e00201"),
        (
            Measurements(version=0x12, total=4, slot=0x21, blocks=1, record=b"\xaa", nonce=N32),
            "12600421" "01" "010000" "aa" + N32.hex() + "0000",
        ),
        (Error(error=ErrorCode.LARGE_RESPONSE, extended=b"\x07"), "127f0f00" "07"),
        (
            VendorDefinedRequest(payload=b"\x01\x02"),
            "12fe0000" "0300" "02" "0100" "0200" "0102",
        ),
        (VendorDefinedResponse(payload=b""), "127e0000" "0300" "02" "0100" "0000"),
        (KeyUpdate(operation=2, tag=0x55), "12e90255"),
        (GetCsr(requester_info=b"i", opaque=b"oo"), "12ed0000" "0100" "0200" "69" "6f6f"),
        (Csr(csr=b"c"), "126d0000" "0100" "0000" "63"),
        (SetCertificate(attributes=3, chain=b"c"), "12ee0300" "63"),
        (
            ChunkSend(attributes=0, handle=9, sequence=0, large_size=100, chunk=b"\xaa"),
            "12850009" "0000" "0000" "01000000" "64000000" "aa",
        ),
        (
            ChunkResponse(attributes=1, handle=9, sequence=1, chunk=b"\xaa"),
            "12060109" "0100" "0000" "01000000" "aa",
        ),
        (ChunkSendAck(handle=9, sequence=1, response=b"\x12"), "12050009" "0100" "12"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else "",
)  # fmt: skip
def test_messages_without_signatures_are_laid_out_as_specified(
    message: Message, packed: str
) -> None:
    sizes = Sizes(hash=32)
    assert message.pack(sizes).hex() == packed
    assert type(message).parse(bytes.fromhex(packed), sizes) == message


def test_signed_messages_are_laid_out_as_specified() -> None:
    sizes = Sizes(hash=2, signature=3, exchange=4, summary=2, verify=2)
    auth = ChallengeAuth(
        version=0x13, slot=1, slots=3, chain_hash=b"CC", nonce=N32, summary=b"SS", opaque=b"o",
        context=N8, signature=b"sig",
    )  # fmt: skip
    assert auth.pack(sizes) == (b"\x13\x03\x01\x03CC" + N32 + b"SS\x01\x00o" + N8 + b"sig")
    exchange = KeyExchange(
        summary_type=0xFF, slot=1, session=0x0102, policy=1, random=N32, exchange=b"EEEE",
        opaque=b"op",
    )  # fmt: skip
    assert exchange.pack(sizes) == b"\x12\xe4\xff\x01\x02\x01\x01\x00" + N32 + b"EEEE\x02\x00op"
    response = KeyExchangeResponse(
        heartbeat_period=5, session=0x0304, random=N32, exchange=b"EEEE", summary=b"SS",
        opaque=b"op", signature=b"sig", verify=b"VV",
    )  # fmt: skip
    assert response.pack(sizes) == (
        b"\x12\x64\x05\x00\x04\x03\x00\x00" + N32 + b"EEEESS\x02\x00opsigVV"
    )
    assert Finish(slot=1, verify=b"VV").pack(sizes) == b"\x12\xe5\x00\x01VV"
    assert Finish(attributes=1, signature=b"sig", verify=b"VV").pack(sizes).endswith(b"sigVV")
    assert FinishResponse(verify=b"VV").pack(sizes) == b"\x12\x65\x00\x00VV"
    assert FinishResponse().pack() == b"\x12\x65\x00\x00"


@given(st.builds(NegotiateAlgorithms, version=st.just(0x13), base_asym=LONG, tables=TABLES))
def test_supported_algorithms_are_a_request_without_its_code(request: NegotiateAlgorithms) -> None:
    block = SupportedAlgorithms(request).pack()
    assert int.from_bytes(block[2:4], "little") == len(block) == len(request.pack()) - 2
    assert SupportedAlgorithms.parse(block).request == request


def test_supported_algorithms_of_a_wrong_length_are_refused() -> None:
    block = SupportedAlgorithms().pack()
    for wrong in (b"", block[:-1], block + b"\0"):
        with pytest.raises(SpdmDecodeError):
            SupportedAlgorithms.parse(wrong)


def test_what_is_no_message_is_refused() -> None:
    for data in (b"", b"\x12\x84\x00", b"\x12\x10\x00\x00"):
        with pytest.raises(SpdmDecodeError):
            parse(data)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (ErrorCode.BUSY, errno.EBUSY),
        (ErrorCode.UNSUPPORTED_REQUEST, errno.EOPNOTSUPP),
        (ErrorCode.VERSION_MISMATCH, errno.EPROTONOSUPPORT),
        (ErrorCode.DECRYPT_ERROR, errno.EBADMSG),
        (ErrorCode.INVALID_REQUEST, errno.EPROTO),
        (0x3F, errno.EPROTO),
    ],
)
def test_an_error_has_a_number_for_the_kernel(code: int, number: int) -> None:
    error = SpdmError(code, "text", 3, b"more")
    assert (error.errno, error.code, error.data, error.extended) == (number, code, 3, b"more")
    assert str(error) == "text"
