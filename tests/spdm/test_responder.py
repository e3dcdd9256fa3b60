# SPDX-License-Identifier: MIT
"""Tests of the frame of a responder: order, versions, errors, large messages, any bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.spdm.peer import (
    FLAGS,
    IDENTITY,
    MEASURED,
    SIZES,
    Peer,
    PeerSession,
    device,
    error_of,
    refusal,
)
from tsmfs.spdm import responder as responder_module
from tsmfs.spdm.algorithms import DheGroup
from tsmfs.spdm.identity import Slot
from tsmfs.spdm.measurements import Measurement, MeasurementKind
from tsmfs.spdm.messages import (
    LAST_CHUNK,
    MEASUREMENT_ALL,
    MESSAGES,
    Certificate,
    Challenge,
    ChunkGet,
    ChunkResponse,
    ChunkSend,
    ChunkSendAck,
    Code,
    EndSession,
    Error,
    ErrorCode,
    Finish,
    GetCapabilities,
    GetCertificate,
    GetCsr,
    GetDigests,
    GetMeasurements,
    GetVersion,
    Heartbeat,
    KeyExchange,
    KeyUpdate,
    MeasurementAttributes,
    Measurements,
    RequesterFlags,
    ResponderFlags,
    RespondIfReady,
    SetCertificate,
    SpdmError,
    VendorDefinedRequest,
    VendorDefinedResponse,
    Version,
)
from tsmfs.spdm.responder import CAPABILITIES, Responder, Settings, SigningJob, sign
from tsmfs.spdm.secured import RecordError, supported_versions
from tsmfs.spdm.vendor import SessionHandle
from tsmfs.spdm.wire import Message

BIG = Measurement(1, MeasurementKind.MUTABLE_FIRMWARE, bytes(range(256)) * 8)
RAW_ALL = GetMeasurements(attributes=MeasurementAttributes.RAW, operation=MEASUREMENT_ALL)


class Echo:
    """A protocol of the PCI-SIG that returns what it gets, backwards."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []
        self.ended: list[int] = []

    def respond(self, session: SessionHandle | None, payload: bytes) -> bytes:
        self.seen.append(session.id if session else None)
        if payload == b"raise":
            raise RuntimeError("a bug")
        if payload == b"refuse":
            raise SpdmError(ErrorCode.INVALID_STATE, "not now", 7)
        return payload[::-1]

    def session_ended(self, session: int) -> None:
        self.ended.append(session)


def with_echo() -> tuple[Peer, Echo]:
    echo = Echo()
    return Peer(Responder(IDENTITY, lambda: MEASURED, vendor={1: echo})).connect(), echo


# --- Order and versions ------------------------------------------------------------------------


def test_version_tells_every_version_that_is_spoken() -> None:
    peer = Peer()
    assert [entry.version for entry in peer.get_version().entries] == [0x12, 0x13]
    only = Responder(IDENTITY, lambda: MEASURED, versions=(Version.V1_3,))
    assert [entry.version for entry in Peer(only).get_version().entries] == [0x13]


def test_the_connection_is_what_was_negotiated() -> None:
    peer = Peer(version=0x13)
    told = [(peer.responder.version, peer.responder.algorithms is None)]
    peer.connect()
    told.append((peer.responder.version, peer.responder.algorithms is None))
    assert told == [(None, True), (0x13, False)]


@pytest.mark.parametrize("version", [0x12, 0x13, 0x11, 0x00])
def test_get_version_of_another_version_is_refused(version: int) -> None:
    answer = Peer().ask(GetVersion(version=version))
    assert answer[0] == Version.V1_0
    assert error_of(answer) == refusal(ErrorCode.VERSION_MISMATCH)


@pytest.mark.parametrize("version", [0x10, 0x11, 0x14, 0xFF])
def test_a_version_that_is_not_spoken_is_refused(version: int) -> None:
    peer = Peer()
    peer.get_version()
    request = replace(peer.capabilities(), version=version)
    assert error_of(peer.ask(request)) == refusal(ErrorCode.VERSION_MISMATCH)


@pytest.mark.parametrize("version", [0x12, 0x13])
def test_a_refusal_of_capabilities_is_of_the_version_that_was_asked_for(version: int) -> None:
    peer = Peer(version=version)
    peer.get_version()
    answer = peer.ask(replace(peer.capabilities(), data_transfer_size=1))
    assert error_of(answer) == refusal(ErrorCode.INVALID_REQUEST)
    assert answer[0] == version


def test_a_request_of_another_version_than_the_negotiated_is_refused() -> None:
    peer = Peer(version=0x12).connect()
    assert error_of(peer.ask(GetDigests(version=0x13))) == refusal(ErrorCode.VERSION_MISMATCH)


def test_requests_before_their_time_are_unexpected() -> None:
    unexpected = refusal(ErrorCode.UNEXPECTED_REQUEST)
    peer = Peer()
    assert error_of(peer.ask(peer.capabilities())) == unexpected
    peer.get_version()
    assert error_of(peer.ask(peer.algorithms())) == unexpected
    peer.get_capabilities()
    assert error_of(peer.ask(peer.capabilities())) == unexpected
    assert error_of(peer.ask(GetDigests())) == unexpected
    peer.negotiate()
    assert error_of(peer.ask(peer.algorithms())) == unexpected
    assert error_of(peer.ask(peer.capabilities())) == unexpected


def test_capabilities_are_those_of_the_device() -> None:
    peer = Peer()
    peer.get_version()
    told = peer.get_capabilities()
    assert told.flags == CAPABILITIES
    assert not told.flags & (ResponderFlags.CSR | ResponderFlags.SET_CERT)
    assert (told.data_transfer_size, told.max_message_size) == (0x10000, 1 << 20)


@pytest.mark.parametrize(
    "message", [GetCsr(), SetCertificate(chain=b"x"), SetCertificate(attributes=3)]
)
def test_certificates_cannot_be_changed(message: Message) -> None:
    peer = Peer().connect()
    expected = refusal(ErrorCode.UNSUPPORTED_REQUEST, message.CODE)
    assert error_of(peer.ask(message)) == expected
    assert error_of(peer.session().ask(message)) == expected


@pytest.mark.parametrize(
    "code",
    [
        Code.PSK_EXCHANGE,
        Code.GET_ENCAPSULATED_REQUEST,
        Code.GET_ENDPOINT_INFO,
        0xA0,
        Code.SEND_EVENT,
    ],
)
def test_what_is_not_supported_is_named(code: int) -> None:
    answer = Peer().connect().send(bytes((0x12, code, 0, 0)))
    assert error_of(answer) == refusal(ErrorCode.UNSUPPORTED_REQUEST, code)


@pytest.mark.parametrize("request_", [b"", b"\x12", b"\x12\x81\x00", b"\x12\x01\x00\x00"])
def test_what_is_no_request_is_invalid(request_: bytes) -> None:
    assert error_of(Peer().connect().send(request_)) == refusal(ErrorCode.INVALID_REQUEST)


def test_a_response_nobody_waits_for_is_unexpected() -> None:
    answer = Peer().connect().ask(RespondIfReady(request=Code.CHALLENGE, token=1))
    assert error_of(answer) == refusal(ErrorCode.UNEXPECTED_REQUEST)


def test_padding_of_a_dword_is_ignored_and_more_is_refused() -> None:
    peer = Peer().connect()
    plain = peer.ask(GetDigests())
    assert peer.send(GetDigests().pack() + bytes(3)) == plain
    answer = peer.send(GetDigests().pack() + bytes(4))
    assert error_of(answer) == refusal(ErrorCode.INVALID_REQUEST)
    inside = peer.session().send(Heartbeat().pack() + bytes(1))
    assert error_of(inside) == refusal(ErrorCode.INVALID_REQUEST)


def test_a_request_that_is_too_large_is_refused() -> None:
    peer = Peer().connect()
    answer = peer.send(GetDigests().pack() + bytes(0x10000))
    assert error_of(answer) == refusal(ErrorCode.REQUEST_TOO_LARGE)


# --- Begin again -------------------------------------------------------------------------------


def test_get_version_ends_the_connection_and_its_sessions() -> None:
    peer, echo = with_echo()
    ended: list[int] = []
    peer.responder.on_session_end.append(ended.append)
    session = peer.session()
    peer.get_version()
    assert not peer.responder.sessions
    assert ended == echo.ended == [session.keys.id]
    assert peer.responder.version is None
    assert peer.responder.respond_secured(session.keys.seal_request(Heartbeat().pack())) == b""
    assert error_of(peer.ask(GetDigests())) == refusal(ErrorCode.UNEXPECTED_REQUEST)


def test_a_get_version_that_is_refused_changes_nothing() -> None:
    peer = Peer().connect()
    session = peer.session()
    peer.send(b"\x12\x84\x00\x00")
    peer.send(GetVersion(version=0x10).pack() + bytes(4))
    assert list(peer.responder.sessions) == [session.keys.id]


def test_after_a_reset_the_requester_is_told_to_begin_again() -> None:
    peer = Peer().connect()
    session = peer.session()
    peer.responder.reset()
    peer.responder.reset()
    assert not peer.responder.sessions
    for request in (GetDigests(), peer.capabilities(), Challenge()):
        assert error_of(peer.ask(request)) == refusal(ErrorCode.REQUEST_RESYNCH)
    assert peer.responder.respond_secured(session.keys.seal_request(Heartbeat().pack())) == b""
    peer.connect().session()


def test_a_reset_of_a_device_nobody_spoke_to_is_not_told() -> None:
    peer = Peer()
    peer.responder.reset()
    assert error_of(peer.ask(GetDigests())) == refusal(ErrorCode.UNEXPECTED_REQUEST)


# --- Vendor-defined ----------------------------------------------------------------------------


def test_vendor_defined_requests_reach_their_protocol() -> None:
    peer, echo = with_echo()
    request = VendorDefinedRequest(payload=b"\x01abc")
    assert VendorDefinedResponse.parse(peer.ask(request)).payload == b"\x01cba"
    session = peer.session()
    assert VendorDefinedResponse.parse(session.ask(request)).payload == b"\x01cba"
    assert echo.seen == [None, session.keys.id]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (VendorDefinedRequest(payload=b""), refusal(ErrorCode.INVALID_REQUEST)),
        (
            VendorDefinedRequest(payload=b"\x02x"),
            refusal(ErrorCode.UNSUPPORTED_REQUEST, Code.VENDOR_DEFINED_REQUEST),
        ),
        (
            VendorDefinedRequest(standard=0, vendor=b"", payload=b"\x01"),
            refusal(ErrorCode.UNSUPPORTED_REQUEST, Code.VENDOR_DEFINED_REQUEST),
        ),
        (VendorDefinedRequest(payload=b"\x01refuse"), refusal(ErrorCode.INVALID_STATE, 7)),
    ],
)
def test_vendor_defined_requests_are_refused_with_a_reason(
    request_: Message, expected: tuple[int, int]
) -> None:
    peer, _ = with_echo()
    assert error_of(peer.ask(request_)) == expected


def test_a_bug_of_the_device_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    peer, _ = with_echo()
    session = peer.session()
    request = VendorDefinedRequest(payload=b"\x01raise")
    with caplog.at_level(logging.ERROR, responder_module.__name__):
        assert error_of(peer.ask(request)) == refusal(ErrorCode.UNSPECIFIED)
        assert error_of(session.ask(request)) == refusal(ErrorCode.UNSPECIFIED)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "a bug" in caplog.text
    assert session.ask(VendorDefinedRequest(payload=b"\x01ab"))[1] == Code.VENDOR_DEFINED_RESPONSE


def test_a_callback_that_raises_keeps_no_session_alive(caplog: pytest.LogCaptureFixture) -> None:
    peer, echo = with_echo()

    def broken(session: int) -> None:
        raise RuntimeError("a bug")

    peer.responder.on_session_end.append(broken)
    session = peer.session()
    peer.responder.end_session(session.keys.id)
    peer.responder.end_session(session.keys.id)
    assert not peer.responder.sessions
    assert echo.ended == [session.keys.id]
    assert "a bug" in caplog.text


# --- Large messages ----------------------------------------------------------------------------


def collect(ask: Callable[[Message], bytes], announced: bytes) -> bytes:
    """Get the large response that an ERROR announces."""
    error = Error.parse(announced)
    assert error.error == ErrorCode.LARGE_RESPONSE
    whole = b""
    last = False
    sequence = 0
    while not last:
        request = ChunkGet(handle=error.extended[0], sequence=sequence)
        chunk = ChunkResponse.parse(ask(request))
        whole += chunk.chunk
        last = bool(chunk.attributes & LAST_CHUNK)
        sequence += 1
    return whole


def in_chunks(ask: Callable[[Message], bytes], request: bytes, size: int) -> bytes:
    """Send a large request; what the last acknowledgement has behind it."""
    at = sequence = 0
    while True:
        room = size - ChunkSend.OVERHEAD - (0 if sequence else 4)
        piece = request[at : at + room]
        at += len(piece)
        chunk = ChunkSend(
            attributes=LAST_CHUNK if at == len(request) else 0,
            handle=3,
            sequence=sequence,
            large_size=0 if sequence else len(request),
            chunk=piece,
        )
        ack = ChunkSendAck.parse(ask(chunk))
        assert (ack.attributes, ack.handle, ack.sequence) == (0, 3, sequence)
        if at == len(request):
            return ack.response
        assert ack.response == b""
        sequence += 1


@pytest.mark.parametrize("inside", [False, True])
def test_a_large_response_is_got_in_chunks(inside: bool) -> None:
    peer = Peer(Responder(IDENTITY, lambda: [BIG]), transfer_size=300).connect()
    channel = peer.session() if inside else peer
    whole = collect(channel.ask, channel.ask(RAW_ALL))
    record = Measurements.parse(whole).record
    assert record.endswith(BIG.value)
    assert Measurements.parse(channel.ask(GetMeasurements())).total == 1


def test_a_response_that_fits_no_record_is_got_in_chunks() -> None:
    pair = [replace(BIG, index=index, value=bytes(40000)) for index in (1, 2)]
    settings_ = Settings(send_size=1 << 18)
    responder = Responder(IDENTITY, lambda: pair, settings=settings_)
    peer = Peer(responder, transfer_size=1 << 18, max_message_size=1 << 18).connect()
    whole = peer.ask(RAW_ALL)
    assert Measurements.parse(whole).blocks == 2
    session = peer.session()
    got = collect(session.ask, session.ask(RAW_ALL))
    assert Measurements.parse(got).record == Measurements.parse(whole).record


def test_a_large_response_that_is_not_signed_counts_for_the_next_signature() -> None:
    peer = Peer(Responder(IDENTITY, lambda: [BIG]), transfer_size=300).connect()
    whole = collect(peer.ask, peer.ask(RAW_ALL))
    request = GetMeasurements(attributes=MeasurementAttributes.SIGNATURE, nonce=bytes(32))
    jobs: list[SigningJob] = []

    def signer(slot: Slot, job: SigningJob) -> bytes:
        jobs.append(job)
        return sign(slot, job)

    peer.responder.signer = signer
    answer = peer.ask(request)
    assert jobs[0].transcript == peer.vca + RAW_ALL.pack() + whole + request.pack() + answer[:-64]


@pytest.mark.parametrize("inside", [False, True])
def test_a_large_request_is_taken_in_chunks(inside: bool) -> None:
    echo = Echo()
    responder = Responder(
        IDENTITY,
        lambda: MEASURED,
        vendor={1: echo},
        settings=Settings(data_transfer_size=300, max_message_size=4096),
    )
    peer = Peer(responder).connect()
    channel = peer.session() if inside else peer
    payload = bytes(range(200)) * 4
    request = VendorDefinedRequest(payload=b"\x01" + payload).pack()
    assert error_of(channel.send(request)) == refusal(ErrorCode.REQUEST_TOO_LARGE)
    response = in_chunks(channel.ask, request, 300)
    assert VendorDefinedResponse.parse(response).payload == b"\x01" + payload[::-1]


def test_a_large_request_may_have_a_large_response() -> None:
    echo = Echo()
    responder = Responder(
        IDENTITY, lambda: MEASURED, vendor={1: echo}, settings=Settings(data_transfer_size=300)
    )
    peer = Peer(responder, transfer_size=100).connect()
    payload = bytes(range(200)) * 4
    request = VendorDefinedRequest(payload=b"\x01" + payload).pack()
    response = collect(peer.ask, in_chunks(peer.ask, request, 300))
    assert VendorDefinedResponse.parse(response).payload == b"\x01" + payload[::-1]


def test_get_version_interrupts_a_transfer() -> None:
    peer = Peer()
    peer.get_version()
    peer.get_capabilities()
    first = ChunkSend(large_size=100, chunk=bytes(40))
    assert ChunkSendAck.parse(peer.ask(first)).response == b""
    expected = refusal(ErrorCode.UNEXPECTED_REQUEST)
    assert error_of(peer.ask(peer.algorithms())) == expected
    peer.connect()
    assert peer.ask(GetDigests())[1] == Code.DIGESTS


def test_during_a_transfer_everything_else_is_unexpected() -> None:
    peer = Peer(Responder(IDENTITY, lambda: [BIG]), transfer_size=300).connect()
    announced = peer.ask(RAW_ALL)
    expected = refusal(ErrorCode.UNEXPECTED_REQUEST)
    assert error_of(peer.ask(GetDigests())) == expected
    assert error_of(peer.ask(ChunkSend(large_size=100, chunk=bytes(90)))) == expected
    assert Measurements.parse(collect(peer.ask, announced)).blocks == 1


def test_a_chunk_that_cannot_be_is_told_early() -> None:
    peer = Peer().connect()
    ack = ChunkSendAck.parse(peer.ask(ChunkSend(sequence=1, chunk=bytes(90))))
    assert ack.attributes == 1
    assert error_of(ack.response) == refusal(ErrorCode.INVALID_REQUEST)


def test_chunks_of_chunks_are_refused() -> None:
    peer = Peer().connect()
    inner = ChunkSend(large_size=500, chunk=bytes(100)).pack()
    response = in_chunks(peer.ask, inner, 80)
    assert error_of(response) == refusal(ErrorCode.INVALID_REQUEST)


def test_without_chunks_a_large_response_is_refused_with_its_size() -> None:
    flags = FLAGS & ~RequesterFlags.CHUNK
    peer = Peer(Responder(IDENTITY, lambda: [BIG]), flags=flags, transfer_size=300).connect()
    error = Error.parse(peer.ask(RAW_ALL))
    assert error.error == ErrorCode.RESPONSE_TOO_LARGE
    assert int.from_bytes(error.extended, "little") > len(BIG.value)
    expected = refusal(ErrorCode.UNSUPPORTED_REQUEST, Code.CHUNK_GET)
    assert error_of(peer.ask(ChunkGet())) == expected


def test_a_response_larger_than_the_requester_takes_at_all_is_refused() -> None:
    responder = Responder(IDENTITY, lambda: [BIG])
    peer = Peer(responder, transfer_size=300, max_message_size=1000).connect()
    assert error_of(peer.ask(RAW_ALL)) == refusal(ErrorCode.RESPONSE_TOO_LARGE)


# --- Tampering ---------------------------------------------------------------------------------


def test_a_transform_changes_responses_and_no_errors() -> None:
    peer = Peer().connect()
    seen: list[tuple[int, int]] = []

    def transform(request: bytes, response: bytes) -> bytes:
        seen.append((request[1], response[1]))
        return response[:-1] + b"\xee"

    peer.responder.transform = transform
    assert peer.ask(GetDigests())[-1] == 0xEE
    peer.ask(GetCertificate(slot=7))
    assert seen == [(Code.GET_DIGESTS, Code.DIGESTS)]


# --- Any bytes ---------------------------------------------------------------------------------

REQUESTS: list[Message] = [
    GetVersion(version=0x10),
    GetCapabilities(flags=FLAGS, data_transfer_size=4096, max_message_size=8192),
    Peer().algorithms(),
    GetDigests(),
    GetCertificate(length=0xFFFF),
    Challenge(summary_type=0xFF),
    GetMeasurements(operation=MEASUREMENT_ALL),
    GetMeasurements(attributes=1, operation=1, nonce=bytes(32)),
    KeyExchange(exchange=bytes(64)),
    KeyExchange(exchange=DheGroup.SECP_256_R1.generate()[1]),
    KeyExchange(exchange=DheGroup.SECP_256_R1.generate()[1], opaque=supported_versions()),
    Finish(verify=bytes(32)),
    Heartbeat(),
    KeyUpdate(operation=1),
    KeyUpdate(operation=2),
    KeyUpdate(operation=3),
    EndSession(),
    VendorDefinedRequest(payload=b"\x01x"),
    ChunkSend(large_size=100, chunk=bytes(80)),
    ChunkSend(attributes=1, sequence=1, chunk=bytes(20)),
    ChunkGet(handle=1),
]
ANY_REQUEST = st.sampled_from([request.pack(SIZES) for request in REQUESTS])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, a damaged one, or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=80))
    request = bytearray(draw(ANY_REQUEST))
    for _ in range(draw(st.integers(0, 2))):
        request[draw(st.integers(0, len(request) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 9)) == 0:
        request = request[: draw(st.integers(0, len(request)))]
    return bytes(request)


QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def check_response(responder: Responder, request: bytes, response: bytes) -> None:
    assert response[1] in MESSAGES
    answers_it = response[1] == request[1] - 0x80 if len(request) > 1 else False
    assert response[1] == Code.ERROR or answers_it
    assert len(responder.sessions) <= responder.settings.max_sessions


@QUICK
@given(st.booleans(), st.lists(requests(), max_size=25))
def test_whatever_comes_outside_of_sessions_is_answered(
    connected: bool, sequence: list[bytes]
) -> None:
    responder = Responder(IDENTITY, lambda: MEASURED, vendor={1: Echo()})
    if connected:
        Peer(responder).connect()
    for request in sequence:
        check_response(responder, request, responder.respond(request))


@QUICK
@given(st.booleans(), st.lists(requests(), max_size=15))
def test_whatever_comes_inside_a_session_is_answered(
    established: bool, sequence: list[bytes]
) -> None:
    peer = Peer(Responder(IDENTITY, lambda: MEASURED, vendor={1: Echo()})).connect()
    session: PeerSession = peer.session() if established else peer.begin()
    for request in sequence:
        record = peer.responder.respond_secured(session.keys.seal_request(request))
        if not record:
            assert session.keys.id not in peer.responder.sessions
            return
        follow_updates(session, request, record)


def follow_updates(session: PeerSession, request: bytes, record: bytes) -> None:
    """Open a response, with new keys where the request asked for some."""
    keys = session.keys
    try:
        response = keys.open_response(record)
    except RecordError:
        keys.update_response()
        response = keys.open_response(record)
    if response[1] == Code.KEY_UPDATE_ACK and response[2] in (1, 2):
        keys.update_request()
        keys.verified()
    check_response(session.peer.responder, request, response)


@QUICK
@given(st.lists(st.binary(max_size=60), max_size=5), st.data())
def test_whatever_comes_as_a_record_is_answered_or_not(
    records: list[bytes], data: st.DataObject
) -> None:
    peer = Peer().connect()
    session = peer.session()
    good = bytearray(session.keys.seal_request(Heartbeat().pack()))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    for record in (*records, bytes(good)):
        answer = peer.responder.respond_secured(record)
        if answer:
            expected = refusal(ErrorCode.DECRYPT_ERROR)
            assert error_of(session.keys.open_response(answer)) == expected
            assert not peer.responder.sessions


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"data_transfer_size": 41}, "transfer size"),
        ({"data_transfer_size": 100, "max_message_size": 99}, "transfer size"),
        ({"send_size": 41}, "send size"),
        ({"heartbeat_period": 256}, "period"),
        ({"flags": CAPABILITIES & ~ResponderFlags.CHUNK}, "CHUNK_CAP"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(**wrong)


def test_a_device_without_a_capability_refuses_what_needs_it() -> None:
    flags = CAPABILITIES & ~(ResponderFlags.CHAL | ResponderFlags.CERT | ResponderFlags.MEAS_SIG)
    peer = Peer(Responder(IDENTITY, lambda: MEASURED, settings=Settings(flags=flags))).connect()
    for request in (Challenge(), GetDigests(), GetCertificate(), GetMeasurements()):
        expected = refusal(ErrorCode.UNSUPPORTED_REQUEST, request.CODE)
        assert error_of(peer.ask(request)) == expected


def test_a_certificate_is_cut_to_what_fits_a_requester_without_chunks() -> None:
    peer = Peer(flags=FLAGS & ~RequesterFlags.CHUNK, transfer_size=100).connect()
    first = Certificate.parse(peer.ask(GetCertificate(length=0xFFFF)))
    assert len(first.portion) == 100 - 8
    assert len(first.portion) + first.remainder == len(device().identity.slots[0].chain)
