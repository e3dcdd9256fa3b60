# SPDX-License-Identifier: MIT
"""Tests of a responder's sessions: key exchange, handshake, heartbeat, key update, end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.spdm.peer import (
    FLAGS,
    IDENTITY,
    MEASURED,
    SIZES,
    Peer,
    PeerSession,
    error_of,
    refusal,
)
from tsmfs.spdm.algorithms import BaseAsym, BaseHash, DheGroup, Offer
from tsmfs.spdm.messages import (
    Code,
    Digests,
    EndSession,
    EndSessionAck,
    ErrorCode,
    Finish,
    GetCapabilities,
    GetDigests,
    GetVersion,
    Heartbeat,
    HeartbeatAck,
    KeyExchange,
    KeyExchangeResponse,
    KeyOperation,
    KeyUpdate,
    KeyUpdateAck,
    NegotiateAlgorithms,
    OtherParams,
    RequesterFlags,
    ResponderFlags,
    SessionPolicy,
    SummaryType,
)
from tsmfs.spdm.requester import Requester
from tsmfs.spdm.responder import CAPABILITIES, Responder, Settings
from tsmfs.spdm.secured import (
    OpaqueElement,
    pack_opaque,
    parse_opaque,
    parse_selected_version,
    supported_versions,
)
from tsmfs.spdm.transcript import SessionTranscript, SigningContext, signing_message
from tsmfs.spdm.wire import Message

CLEAR = RequesterFlags.HANDSHAKE_IN_THE_CLEAR
PUBLIC = DheGroup.SECP_256_R1.generate()[1]
EXCHANGE = KeyExchange(exchange=PUBLIC, opaque=supported_versions())
(KNOWN,) = parse_opaque(supported_versions())
INVALID = refusal(ErrorCode.INVALID_REQUEST)
UNEXPECTED = refusal(ErrorCode.UNEXPECTED_REQUEST)
REQUIRED = refusal(ErrorCode.SESSION_REQUIRED)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """A transport that is a function call."""

    def __init__(self, answering: Responder) -> None:
        self.plain = answering.respond
        self.secured = answering.respond_secured


def responder(settings: Settings) -> Responder:
    return Responder(IDENTITY, lambda: MEASURED, settings=settings)


def in_the_clear(version: int = 0x12) -> Peer:
    settings = Settings(flags=CAPABILITIES | ResponderFlags.HANDSHAKE_IN_THE_CLEAR)
    return Peer(
        Responder(IDENTITY, lambda: MEASURED, settings=settings),
        version=version,
        flags=FLAGS | CLEAR,
    ).connect()


# --- Handshake ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0x12, 0x13])
def test_a_session_comes_about_with_an_encrypted_handshake(version: int) -> None:
    peer = Peer(version=version).connect()
    session = peer.begin()
    (known,) = peer.responder.sessions.values()
    established = [known.established]
    session.finish()
    assert [*established, known.established] == [False, True]
    assert known.id == session.keys.id
    assert known.keys.export_master == session.keys.export_master != b""
    response = Digests.parse(session.ask(GetDigests(version=version)), SIZES)
    assert response.slots == 0b101


@pytest.mark.parametrize("version", [0x12, 0x13])
def test_a_session_comes_about_with_a_handshake_in_the_clear(version: int) -> None:
    peer = in_the_clear(version)
    session = peer.session()
    assert peer.responder.sessions[session.keys.id].established
    assert session.ask(GetDigests(version=version))[1] == Code.DIGESTS


def test_one_endpoint_alone_does_not_make_the_handshake_clear() -> None:
    peer = Peer(flags=FLAGS | CLEAR).connect()
    assert peer.session().ask(GetDigests())[1] == Code.DIGESTS


def test_the_key_exchange_is_signed_and_tells_the_versions_of_records() -> None:
    peer = Peer().connect()
    request = replace(EXCHANGE, summary_type=SummaryType.ALL, slot=2).pack(SIZES)
    answered = peer.send(request)
    response = KeyExchangeResponse.parse(answered, replace(SIZES, summary=32))
    assert parse_selected_version(response.opaque) == 0x12
    chain = IDENTITY.slots[2].chain
    th = SessionTranscript(BaseHash.SHA_256, peer.vca, BaseHash.SHA_256.digest(chain))
    th.append(request)
    th.append(answered[: -64 - 32])
    message = signing_message(0x12, SigningContext.KEY_EXCHANGE_RSP, th.digest())
    key = IDENTITY.slots[2].key.public_key()
    assert BaseAsym.ECDSA_P256.verify(key, response.signature, message, BaseHash.SHA_256)


def test_without_versions_of_records_none_is_told() -> None:
    peer = Peer().connect()
    answered = peer.ask(replace(EXCHANGE, opaque=b""), SIZES)
    assert KeyExchangeResponse.parse(answered, SIZES).opaque == b""


@pytest.mark.parametrize(
    "request_",
    [
        replace(EXCHANGE, slot=1),
        replace(EXCHANGE, slot=0xFF),
        replace(EXCHANGE, summary_type=2),
        replace(EXCHANGE, exchange=bytes(64)),
        replace(EXCHANGE, opaque=supported_versions((0x20,))),
        replace(EXCHANGE, opaque=b"garbage!"),
        replace(EXCHANGE, opaque=pack_opaque((KNOWN, OpaqueElement(0, b"", bytes(1024))))),
    ],
)
def test_a_key_exchange_that_cannot_be_is_invalid(request_: KeyExchange) -> None:
    peer = Peer().connect()
    assert error_of(peer.ask(request_, SIZES)) == INVALID
    assert not peer.responder.sessions


def test_events_cannot_be_subscribed_to() -> None:
    request = replace(EXCHANGE, version=0x13, policy=SessionPolicy.EVENT_ALL)
    assert error_of(Peer(version=0x13).connect().ask(request, SIZES)) == INVALID


def test_sessions_need_opaque_data_of_the_general_format() -> None:
    peer = Peer()
    peer.get_version()
    peer.get_capabilities()
    peer.ask(replace(peer.algorithms(), other_params=OtherParams.OPAQUE_FORMAT_0))
    assert error_of(peer.ask(EXCHANGE, SIZES)) == INVALID


def test_sessions_need_encryption_on_both_sides() -> None:
    peer = Peer(flags=FLAGS & ~RequesterFlags.ENCRYPT).connect()
    expected = refusal(ErrorCode.UNSUPPORTED_REQUEST, Code.KEY_EXCHANGE)
    assert error_of(peer.ask(EXCHANGE, SIZES)) == expected


def test_a_wrong_finish_ends_the_session() -> None:
    peer = Peer().connect()
    session = peer.begin()
    wrong = replace(session.finished(), verify=bytes(32))
    assert error_of(session.ask(wrong, SIZES)) == refusal(ErrorCode.DECRYPT_ERROR)
    assert not peer.responder.sessions
    clear = in_the_clear()
    begun = clear.begin()
    wrong = replace(begun.finished(), verify=bytes(32))
    assert error_of(clear.ask(wrong, SIZES)) == refusal(ErrorCode.DECRYPT_ERROR)
    assert not clear.responder.sessions


def test_a_finish_with_a_signature_is_invalid_and_may_be_repeated_without() -> None:
    session = Peer().connect().begin()
    signed = Finish(attributes=1, signature=bytes(64), verify=bytes(32))
    assert error_of(session.ask(signed, SIZES)) == INVALID
    session.finish()


def test_a_finish_in_the_wrong_place_is_refused() -> None:
    finish = Finish(verify=bytes(32))
    peer = Peer().connect()
    assert error_of(peer.ask(finish, SIZES)) == REQUIRED
    session = peer.session()
    assert error_of(session.ask(finish, SIZES)) == UNEXPECTED
    clear = in_the_clear()
    assert error_of(clear.ask(finish, SIZES)) == REQUIRED
    assert error_of(clear.session().ask(finish, SIZES)) == UNEXPECTED


@pytest.mark.parametrize(
    "request_", [GetDigests(), Heartbeat(), KeyUpdate(), EndSession(), GetVersion(version=0x10)]
)
def test_a_handshake_is_followed_by_nothing_but_finish(request_: Message) -> None:
    session = Peer().connect().begin()
    assert error_of(session.ask(request_)) == UNEXPECTED
    session.finish()


@pytest.mark.parametrize(
    "request_",
    [
        GetVersion(version=0x10),
        GetCapabilities(data_transfer_size=64, max_message_size=64),
        NegotiateAlgorithms(base_asym=0x10, base_hash=1),
        EXCHANGE,
    ],
)
def test_a_connection_is_not_made_in_a_session(request_: Message) -> None:
    session = Peer().connect().session()
    assert error_of(session.ask(request_, SIZES)) == UNEXPECTED


@pytest.mark.parametrize("request_", [Heartbeat(), KeyUpdate(), EndSession()])
def test_requests_of_a_session_need_one(request_: Message) -> None:
    assert error_of(Peer().connect().ask(request_)) == REQUIRED


def test_a_finish_in_chunks_establishes_the_session() -> None:
    small = Settings(data_transfer_size=64, max_message_size=4096)
    offer = Offer(base_hash=(BaseHash.SHA_512,))
    requester = Requester(Loop(responder(small)), offer=offer)
    requester.connect()
    session = requester.key_exchange()
    assert session.digests()[0]


def test_a_finish_whose_answer_fails_establishes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = Peer().connect()
    session = peer.begin()

    def broken(request: bytes, response: bytes) -> bytes:
        raise RuntimeError("a bug")

    peer.responder.transform = broken
    answer = session.ask(session.finished(), SIZES)
    assert error_of(answer) == refusal(ErrorCode.UNSPECIFIED)
    assert not peer.responder.sessions[session.keys.id].established
    assert "a bug" in caplog.text


# --- Several sessions --------------------------------------------------------------------------


def test_sessions_do_not_disturb_each_other() -> None:
    peer = Peer().connect()
    sessions = [peer.session(half=7) for _ in range(4)]
    assert len({session.keys.id for session in sessions}) == 4
    for _ in range(2):
        for session in sessions:
            assert session.ask(GetDigests())[1] == Code.DIGESTS
    sessions[1].ask(EndSession())
    assert len(peer.responder.sessions) == 3
    assert sessions[2].ask(GetDigests())[1] == Code.DIGESTS


def test_there_is_a_limit_that_unfinished_handshakes_do_not_count_for() -> None:
    peer = Peer(responder(Settings(max_sessions=2))).connect()
    begun = peer.begin()
    first = peer.session()
    second = peer.session()
    assert set(peer.responder.sessions) == {first.keys.id, second.keys.id}
    assert begun.keys.id not in peer.responder.sessions
    expected = refusal(ErrorCode.SESSION_LIMIT_EXCEEDED)
    assert error_of(peer.ask(EXCHANGE, SIZES)) == expected
    second.ask(EndSession())
    peer.session()


def test_a_finish_in_the_clear_is_for_the_last_handshake() -> None:
    peer = in_the_clear()
    peer.begin()
    session = peer.session(half=2)
    assert peer.responder.sessions[session.keys.id].established


# --- Records -----------------------------------------------------------------------------------


def test_a_record_of_no_session_is_not_answered() -> None:
    peer = Peer().connect()
    session = peer.session()
    record = session.keys.seal_request(GetDigests().pack())
    other = (session.keys.id ^ 1).to_bytes(4, "little") + record[4:]
    for wrong in (other, b"", record[:5]):
        assert peer.responder.respond_secured(wrong) == b""
    assert session.keys.open_response(peer.responder.respond_secured(record))[1] == Code.DIGESTS


def test_a_record_that_is_not_authentic_ends_the_session() -> None:
    peer = Peer().connect()
    session = peer.session()
    record = session.keys.seal_request(GetDigests().pack())
    answer = peer.responder.respond_secured(record[:-1] + bytes((record[-1] ^ 1,)))
    expected = refusal(ErrorCode.DECRYPT_ERROR)
    assert error_of(session.keys.open_response(answer)) == expected
    assert peer.responder.respond_secured(record) == b""


def test_a_key_that_is_used_up_ends_the_session(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer().connect()
    session = peer.session()
    (known,) = peer.responder.sessions.values()
    known.keys._response.sequence = 1 << 64
    record = session.keys.seal_request(GetDigests().pack())
    assert peer.responder.respond_secured(record) == b""
    assert not peer.responder.sessions
    assert "no sequence numbers" in caplog.text


# --- Heartbeat ---------------------------------------------------------------------------------


def test_a_session_ends_after_two_silent_periods() -> None:
    clock = Clock()
    silent = Responder(
        IDENTITY, lambda: MEASURED, settings=Settings(heartbeat_period=5), clock=clock
    )
    peer = Peer(silent).connect()
    session = peer.session()
    assert session.response.heartbeat_period == 5
    for request in (Heartbeat(), GetDigests(), Heartbeat()):
        clock.now += 9.9
        assert session.ask(request)[1] == request.CODE - 0x80
    clock.now += 10.1
    record = session.keys.seal_request(Heartbeat().pack())
    assert silent.respond_secured(record) == b""
    assert not silent.sessions


def test_the_owner_can_look_for_silent_sessions_without_a_request() -> None:
    clock = Clock()
    silent = Responder(
        IDENTITY, lambda: MEASURED, settings=Settings(heartbeat_period=1), clock=clock
    )
    ended: list[int] = []
    silent.on_session_end.append(ended.append)
    session = Peer(silent).connect().session()
    silent.expire()
    clock.now += 3
    silent.expire()
    assert ended == [session.keys.id]


@pytest.mark.parametrize("flags", [FLAGS, FLAGS & ~RequesterFlags.HBEAT])
def test_without_a_heartbeat_sessions_stay(flags: int) -> None:
    clock = Clock()
    period = 0 if flags & RequesterFlags.HBEAT else 5
    lasting = Responder(
        IDENTITY, lambda: MEASURED, settings=Settings(heartbeat_period=period), clock=clock
    )
    session = Peer(lasting, flags=flags).connect().session()
    assert session.response.heartbeat_period == 0
    clock.now += 1e6
    expected = (
        UNEXPECTED
        if flags & RequesterFlags.HBEAT
        else refusal(ErrorCode.UNSUPPORTED_REQUEST, Code.HEARTBEAT)
    )
    assert error_of(session.ask(Heartbeat())) == expected


def test_a_heartbeat_is_acknowledged() -> None:
    session = Peer(responder(Settings(heartbeat_period=5))).connect().session()
    assert HeartbeatAck.parse(session.ask(Heartbeat())) == HeartbeatAck()


# --- Key update --------------------------------------------------------------------------------


def update(session: PeerSession, operation: KeyOperation, tag: int = 1) -> bytes:
    """KEY_UPDATE under the keys as they are; those of responses as they then have to be."""
    record = session.keys.seal_request(KeyUpdate(operation=operation, tag=tag).pack())
    answer = session.peer.responder.respond_secured(record)
    if operation is KeyOperation.UPDATE_ALL_KEYS:
        session.keys.update_response()
    return session.keys.open_response(answer)


def use_new_key(session: PeerSession) -> None:
    session.keys.update_request()
    session.keys.verified()


@pytest.mark.parametrize("operation", [KeyOperation.UPDATE_KEY, KeyOperation.UPDATE_ALL_KEYS])
def test_keys_are_updated_as_often_as_one_likes(operation: KeyOperation) -> None:
    session = Peer().connect().session()
    for tag in range(3):
        ack = KeyUpdateAck.parse(update(session, operation, tag))
        assert (ack.operation, ack.tag) == (operation, tag)
        use_new_key(session)
        ack = KeyUpdateAck.parse(update(session, KeyOperation.VERIFY_NEW_KEY, 9))
        assert (ack.operation, ack.tag) == (KeyOperation.VERIFY_NEW_KEY, 9)
        assert session.ask(GetDigests())[1] == Code.DIGESTS


def test_other_requests_may_come_in_the_middle_of_an_update() -> None:
    session = Peer().connect().session()
    update(session, KeyOperation.UPDATE_KEY)
    assert session.ask(GetDigests())[1] == Code.DIGESTS
    use_new_key(session)
    assert session.ask(GetDigests())[1] == Code.DIGESTS
    update(session, KeyOperation.VERIFY_NEW_KEY)
    assert session.ask(GetDigests())[1] == Code.DIGESTS


@pytest.mark.parametrize("operation", [KeyOperation.UPDATE_KEY, KeyOperation.UPDATE_ALL_KEYS])
def test_an_update_whose_acknowledgement_was_lost_may_be_repeated(operation: KeyOperation) -> None:
    session = Peer().connect().session()
    update(session, operation, 4)
    ack = KeyUpdateAck.parse(update_again(session, operation, 4))
    assert (ack.operation, ack.tag) == (operation, 4)
    use_new_key(session)
    assert update(session, KeyOperation.VERIFY_NEW_KEY)[1] == Code.KEY_UPDATE_ACK
    assert session.ask(GetDigests())[1] == Code.DIGESTS


def update_again(session: PeerSession, operation: KeyOperation, tag: int) -> bytes:
    """The same KEY_UPDATE once more, under the old key."""
    return session.ask(KeyUpdate(operation=operation, tag=tag))


def test_a_second_update_before_the_first_is_verified_is_invalid() -> None:
    session = Peer().connect().session()
    update(session, KeyOperation.UPDATE_KEY, 1)
    assert error_of(update_again(session, KeyOperation.UPDATE_KEY, 2)) == INVALID
    use_new_key(session)
    assert error_of(session.ask(KeyUpdate(operation=1, tag=1))) == INVALID
    assert update(session, KeyOperation.VERIFY_NEW_KEY)[1] == Code.KEY_UPDATE_ACK


def test_an_update_is_verified_under_the_new_key_alone() -> None:
    session = Peer().connect().session()
    assert error_of(session.ask(KeyUpdate(operation=3))) == INVALID
    update(session, KeyOperation.UPDATE_KEY)
    assert error_of(session.ask(KeyUpdate(operation=3))) == INVALID
    use_new_key(session)
    assert session.ask(KeyUpdate(operation=3))[1] == Code.KEY_UPDATE_ACK


def test_once_verified_the_new_key_is_the_only_one() -> None:
    session = Peer().connect().session()
    update(session, KeyOperation.UPDATE_KEY)
    late = session.keys.seal_request(GetDigests().pack())
    use_new_key(session)
    update(session, KeyOperation.VERIFY_NEW_KEY)
    answer = session.peer.responder.respond_secured(late)
    expected = refusal(ErrorCode.DECRYPT_ERROR)
    assert error_of(session.keys.open_response(answer)) == expected


@pytest.mark.parametrize("operation", [0, 4, 255])
def test_an_unknown_key_operation_is_invalid(operation: int) -> None:
    session = Peer().connect().session()
    assert error_of(session.ask(KeyUpdate(operation=operation))) == INVALID


# --- End ---------------------------------------------------------------------------------------


def test_the_end_of_a_session_is_acknowledged_in_it() -> None:
    peer = Peer().connect()
    session = peer.session()
    assert EndSessionAck.parse(session.ask(EndSession())) == EndSessionAck()
    assert not peer.responder.sessions
    record = session.keys.seal_request(GetDigests().pack())
    assert peer.responder.respond_secured(record) == b""
    peer.session()


def test_ids_are_used_in_turn_and_never_zero() -> None:
    peer = Peer(responder(Settings(max_sessions=2))).connect()
    peer.responder._table._last_id = 0xFFFE
    halves = []
    for _ in range(3):
        session = peer.session()
        halves.append(session.response.session)
        if len(halves) > 1:
            session.ask(EndSession())
    assert halves == [0xFFFF, 1, 2]
