# SPDX-License-Identifier: MIT
"""Tests of the SPDM requester: what it keeps, what it verifies, what it makes of bad answers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spdm.peers import Edit, Link, device, offer, without
from tsmfs.spdm.algorithms import AeadSuite, BaseAsym, BaseHash, DheGroup, Offer, PublicKey
from tsmfs.spdm.exchange import BUSY_DELAY, BUSY_RETRIES, MAX_WAIT, PeerError, VerificationError
from tsmfs.spdm.messages import (
    MEASUREMENT_COUNT,
    AlgorithmsResponse,
    Capabilities,
    Certificate,
    ChallengeAuth,
    ChunkGet,
    ChunkResponse,
    Code,
    Error,
    ErrorCode,
    GetMeasurements,
    KeyExchangeResponse,
    KeyOperation,
    Measurements,
    RequesterFlags,
    ResponderFlags,
    RespondIfReady,
    SpdmError,
    SummaryType,
    Version,
)
from tsmfs.spdm.requester import CAPABILITIES, Requester, Session, leaf_key
from tsmfs.spdm.responder import Settings
from tsmfs.spdm.secured import selected_version
from tsmfs.spdm.standalone import MEASUREMENTS
from tsmfs.spdm.transcript import SigningContext, l1, signing_message
from tsmfs.spdm.vendor import PciProtocol
from tsmfs.spdm.wire import Message


class Naps:
    """Stands in for sleeping."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def requester_of(link: Link, **options: object) -> Requester:
    return Requester(link, sleep=Naps(), **options)  # type: ignore[arg-type]


@pytest.fixture
def link() -> Link:
    return Link(device())


@pytest.fixture
def requester(link: Link) -> Requester:
    """Connected to the device behind `link`."""
    requester = requester_of(link)
    requester.connect()
    return requester


@pytest.fixture
def session(requester: Requester) -> Session:
    return requester.key_exchange()


def changed(code: int, change: Callable[[bytearray], object]) -> Edit:
    """Change the response with this code."""

    def edit(request: bytes, response: bytes) -> bytes:
        if response[1] != code:
            return response
        data = bytearray(response)
        change(data)
        return bytes(data)

    return edit


def flipped(at: int) -> Callable[[bytearray], object]:
    def change(data: bytearray) -> None:
        data[at] ^= 1

    return change


def answered(code: int, *answers: bytes) -> Edit:
    """Answer the first requests with this code with `answers`, then leave the others alone."""
    left = list(answers)

    def edit(request: bytes, response: bytes) -> bytes:
        return left.pop(0) if request[1] == code and left else response

    return edit


def error(code: int, extended: bytes = b"", data: int = 0) -> bytes:
    return Error(version=Version.V1_3, error=code, data=data, extended=extended).pack()


# --- Connection --------------------------------------------------------------------------------


def test_the_best_common_version_and_algorithms_are_taken(requester: Requester) -> None:
    assert requester.version == Version.V1_3
    assert requester.algorithms.base_asym is BaseAsym.ECDSA_P256
    assert requester.algorithms.base_hash is BaseHash.SHA_384
    assert requester.algorithms.dhe is DheGroup.SECP_384_R1
    assert requester.algorithms.aead is AeadSuite.AES_256_GCM


def test_vca_is_what_went_over_the_link_without_padding(link: Link) -> None:
    answers: list[bytes] = []

    def note(request: bytes, response: bytes) -> bytes:
        answers.append(response)
        return response

    link.edit = note
    requester = requester_of(link)
    requester.connect()
    sent = zip(link.requests, answers, strict=True)
    assert requester.vca == b"".join(part for pair in sent for part in pair)


def test_nothing_can_be_asked_before_connect(link: Link) -> None:
    requester = requester_of(link)
    for ask in (requester.digests, requester.certificate, requester.challenge,
                requester.measurements, requester.key_exchange):  # fmt: skip
        with pytest.raises(SpdmError, match="no connection"):
            ask()
    assert not link.requests


def test_without_a_common_version_there_is_no_connection(link: Link) -> None:
    requester = requester_of(link, versions=(0x14,))
    with pytest.raises(SpdmError) as caught:
        requester.connect()
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_without_a_common_algorithm_there_is_no_connection(link: Link) -> None:
    requester = requester_of(link, offer=Offer(base_asym=(BaseAsym.ECDSA_P384,)))
    with pytest.raises(SpdmError):
        requester.connect()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Capabilities, {"data_transfer_size": 41}),
        (Capabilities, {"max_message_size": 42}),
        (Capabilities, {"version": Version.V1_2}),
        (AlgorithmsResponse, {"base_hash": 0x40}),
        (AlgorithmsResponse, {"base_hash": 0x03}),
        (AlgorithmsResponse, {"base_asym": 0x03}),
        (AlgorithmsResponse, {"other_params": 0x12}),
    ],
)
def test_impossible_answers_of_negotiation_are_refused(
    link: Link, kind: type[Message], change: dict[str, int]
) -> None:
    def edit(request: bytes, response: bytes) -> bytes:
        if response[1] != kind.CODE:
            return response
        return replace(kind.parse(response), **change).pack()

    link.edit = edit
    with pytest.raises(PeerError) as caught:
        requester_of(link).connect()
    assert caught.value.errno == errno.EPROTO


def test_connecting_again_ends_what_was(requester: Requester, session: Session) -> None:
    requester.connect()
    assert session.ended
    with pytest.raises(SpdmError) as caught:
        session.heartbeat()
    assert caught.value.errno == errno.ENOTCONN
    requester.key_exchange().heartbeat()


@pytest.mark.parametrize("size", [41, (1 << 20) + 1])
def test_a_transfer_size_that_cannot_be_is_refused(link: Link, size: int) -> None:
    with pytest.raises(ValueError, match="transfer size"):
        Requester(link, data_transfer_size=size)


# --- Certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", [42, 100, 4096])
def test_a_chain_is_read_in_portions_that_fit(link: Link, transfer: int) -> None:
    requester = requester_of(link, data_transfer_size=transfer)
    requester.connect()
    chain = requester.certificate()
    portions = [one for one in link.requests if one[1] == Code.GET_CERTIFICATE]
    assert len(portions) == -(-len(chain) // (transfer - 8))
    assert BaseHash.SHA_384.digest(chain) == requester.digests()[0]


def test_chains_of_all_slots_can_be_read(requester: Requester) -> None:
    digests = requester.digests()
    assert set(digests) == {0, 2}
    assert requester.certificate(0) != requester.certificate(2)


def test_a_slot_without_chain_is_refused_by_the_device(requester: Requester) -> None:
    with pytest.raises(SpdmError, match="INVALID_REQUEST"):
        requester.certificate(1)


def test_a_chain_that_is_not_the_one_in_digests_is_refused(
    link: Link, requester: Requester
) -> None:
    requester.digests()
    link.edit = changed(Code.CERTIFICATE, flipped(-1))
    with pytest.raises(VerificationError, match="not the one in DIGESTS"):
        requester.certificate()


@pytest.mark.parametrize(
    "change",
    [
        {"slot": 1},
        {"portion": b""},
        {"portion": bytes(4089)},
        {"portion": b"x", "remainder": 0xFFFF},
    ],
)
def test_impossible_portions_of_a_chain_are_refused(
    link: Link, requester: Requester, change: dict[str, int | bytes]
) -> None:
    def edit(request: bytes, response: bytes) -> bytes:
        return replace(Certificate.parse(response), **change).pack()  # type: ignore[arg-type]

    link.edit = edit
    with pytest.raises(PeerError):
        requester.certificate()


def test_a_chain_whose_length_changes_is_refused(link: Link) -> None:
    requester = requester_of(link, data_transfer_size=600)
    requester.connect()

    def edit(request: bytes, response: bytes) -> bytes:
        message = Certificate.parse(response)
        if message.remainder + len(message.portion) < 600:
            return response
        return replace(message, remainder=message.remainder - 1).pack()

    link.edit = edit
    with pytest.raises(PeerError, match="changes its length"):
        requester.certificate()


def test_bytes_that_are_no_chain_are_not_trusted(link: Link, requester: Requester) -> None:
    link.edit = changed(Code.CERTIFICATE, flipped(8))
    with pytest.raises(VerificationError, match="no certificate chain") as caught:
        requester.certificate()
    assert caught.value.errno == errno.EKEYREJECTED


def test_whoever_judges_chains_may_refuse_them(link: Link) -> None:
    def nobody(chain: bytes, base_hash: BaseHash) -> PublicKey:
        raise VerificationError("nobody is trusted")

    requester = requester_of(link, trust=nobody)
    requester.connect()
    for ask in (requester.challenge, requester.key_exchange):
        with pytest.raises(VerificationError, match="nobody is trusted"):
            ask()


# --- CHALLENGE ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 2])
@pytest.mark.parametrize("summary", list(SummaryType))
def test_a_challenge_over_the_callers_nonce(
    link: Link, requester: Requester, slot: int, summary: SummaryType
) -> None:
    requester.digests()
    result = requester.challenge(slot, b"n" * 32, summary)
    assert b"n" * 32 in link.requests[-1]
    assert result.slots == 0b101
    assert len(result.summary) == (48 if summary else 0)


def test_challenges_in_every_order_of_other_requests(requester: Requester) -> None:
    requester.challenge()
    requester.measurements()
    requester.digests()
    requester.measurements()
    requester.challenge()
    requester.certificate(2)
    requester.challenge(2)


@pytest.mark.parametrize("ask", [Session.heartbeat, Session.measurements, Session.key_update])
def test_a_challenge_after_requests_in_a_session(
    requester: Requester, session: Session, ask: Callable[[Session], object]
) -> None:
    requester.digests()
    ask(session)
    requester.challenge()


def test_a_challenge_after_the_end_of_a_session(requester: Requester, session: Session) -> None:
    requester.digests()
    session.end()
    requester.challenge()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flipped(2), PeerError),
        (flipped(4), VerificationError),
        (flipped(60), VerificationError),
        (flipped(-1), VerificationError),
        (flipped(-97), VerificationError),
    ],
)
def test_a_changed_challenge_auth_is_refused(
    link: Link,
    requester: Requester,
    change: Callable[[bytearray], object],
    problem: type[SpdmError],
) -> None:
    requester.certificate()
    link.edit = changed(Code.CHALLENGE_AUTH, change)
    with pytest.raises(problem):
        requester.challenge()
    link.edit = lambda request, response: response
    requester.challenge()


def test_another_context_in_challenge_auth_is_refused(link: Link, requester: Requester) -> None:
    sizes = replace(requester.algorithms.sizes, summary=48)

    def edit(request: bytes, response: bytes) -> bytes:
        if response[1] != Code.CHALLENGE_AUTH:
            return response
        return replace(ChallengeAuth.parse(response, sizes), context=bytes(8)).pack(sizes)

    link.edit = edit
    with pytest.raises(PeerError, match="another context"):
        requester.challenge()


# --- Measurements ------------------------------------------------------------------------------


def test_the_transcript_of_signed_measurements_verifies_by_itself(requester: Requester) -> None:
    result = requester.measurements(sign=True, nonce=b"n" * 32)
    base_hash = requester.algorithms.base_hash
    size = len(result.signature)
    digest = l1(base_hash, requester.vca, result.transcript[:-size])
    signed = signing_message(requester.version, SigningContext.MEASUREMENTS, digest)
    key = leaf_key(requester.certificate(), base_hash)
    assert requester.algorithms.base_asym.verify(key, result.transcript[-size:], signed, base_hash)
    request, _ = GetMeasurements.take(result.transcript)
    assert request.nonce == b"n" * 32


def test_the_signature_covers_the_unsigned_answers_before_it(requester: Requester) -> None:
    requester.certificate()
    count = requester.measurements(MEASUREMENT_COUNT)
    one = requester.measurements(1)
    assert one.transcript.startswith(count.transcript)
    signed = requester.measurements(2, sign=True)
    assert signed.transcript.startswith(one.transcript)
    assert requester.measurements().transcript.count(b"\x13\xe0") == 1


def test_other_requests_begin_a_new_transcript(requester: Requester) -> None:
    requester.certificate()
    first = requester.measurements(1)
    requester.digests()
    assert not requester.measurements(sign=True).transcript.startswith(first.transcript)


@pytest.mark.parametrize("code", [Code.GET_CSR, Code.HEARTBEAT, Code.KEY_UPDATE])
def test_any_refused_request_begins_a_new_transcript(session: Session, code: int) -> None:
    session.measurements(1)
    with pytest.raises(SpdmError):
        session.request(bytes((session.version, code, 9, 0)) + bytes(8))
    session.measurements(sign=True)


def test_a_refused_index_begins_a_new_transcript(requester: Requester) -> None:
    requester.certificate()
    first = requester.measurements(1)
    with pytest.raises(SpdmError, match="INVALID_REQUEST"):
        requester.measurements(0xEE)
    assert not requester.measurements(sign=True).transcript.startswith(first.transcript)


def test_raw_measurements_are_the_values_themselves(requester: Requester) -> None:
    assert MEASUREMENTS[0].value in requester.measurements(1, raw=True).record
    assert MEASUREMENTS[0].value not in requester.measurements(1).record


@pytest.mark.parametrize("at", [8, 30, -1, -97])
def test_changed_measurements_are_refused(link: Link, requester: Requester, at: int) -> None:
    requester.certificate()
    link.edit = changed(Code.MEASUREMENTS, flipped(at))
    with pytest.raises(VerificationError, match="measurements signing"):
        requester.measurements(sign=True)
    link.edit = lambda request, response: response
    requester.measurements(sign=True)


@pytest.mark.parametrize(
    ("change", "reason"), [({"slot": 0x22}, "slot 2"), ({"context": bytes(8)}, "another context")]
)
def test_measurements_for_somebody_else_are_refused(
    link: Link, requester: Requester, change: dict[str, int | bytes], reason: str
) -> None:
    requester.certificate()
    sizes = requester.algorithms.sizes

    def edit(request: bytes, response: bytes) -> bytes:
        message = replace(Measurements.parse(response, sizes), **change)  # type: ignore[arg-type]
        return message.pack(sizes)

    link.edit = edit
    with pytest.raises(PeerError, match=reason):
        requester.measurements(sign=True)


# --- Sessions ----------------------------------------------------------------------------------


def test_a_session_carries_everything_a_connection_does(session: Session) -> None:
    session.heartbeat()
    assert session.digests()
    assert session.certificate(2)
    session.measurements()
    assert session.measurements(sign=True, slot=2).signature
    session.end()
    assert session.ended


def test_every_key_update_is_followed_by_requests_under_the_new_key(session: Session) -> None:
    for operation in (
        KeyOperation.UPDATE_KEY,
        KeyOperation.UPDATE_ALL_KEYS,
        KeyOperation.UPDATE_ALL_KEYS,
        KeyOperation.UPDATE_KEY,
    ):
        session.key_update(operation)
        session.heartbeat()


def test_sessions_have_ids_of_their_own(requester: Requester) -> None:
    ids = {requester.key_exchange().id for _ in range(3)}
    assert len(ids) == 3


def test_the_session_tells_what_key_exchange_told(session: Session) -> None:
    assert session.heartbeat_period == 30
    assert len(session.summary) == 48


def test_a_request_of_any_kind_passes_a_session(session: Session) -> None:
    with pytest.raises(SpdmError) as caught:
        session.request(bytes((Version.V1_3, Code.GET_CSR, 0, 0)) + bytes(4))
    assert caught.value.errno == errno.EOPNOTSUPP
    session.heartbeat()


def test_an_answer_of_another_protocol_is_refused(session: Session) -> None:
    with pytest.raises(SpdmError):
        session.vendor(7, b"?")
    assert session.vendor(PciProtocol.IDE_KM, bytes(3))


@pytest.mark.parametrize("flag", [ResponderFlags.KEY_EX, ResponderFlags.ENCRYPT])
def test_a_device_without_sessions_has_none(flag: ResponderFlags) -> None:
    lacking = (flag, ResponderFlags.CHUNK, ResponderFlags.HBEAT, ResponderFlags.KEY_UPD)
    requester = requester_of(Link(device(settings=without(*lacking))))
    requester.connect()
    with pytest.raises(SpdmError) as caught:
        requester.key_exchange()
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("at", [8, 50, -1, -49])
@pytest.mark.parametrize("clear", [False, True])
def test_a_changed_key_exchange_is_refused(at: int, clear: bool) -> None:
    flags = Settings().flags
    capabilities = CAPABILITIES
    if clear:
        flags |= ResponderFlags.HANDSHAKE_IN_THE_CLEAR
        capabilities |= RequesterFlags.HANDSHAKE_IN_THE_CLEAR
    link = Link(device(settings=Settings(flags=flags)))
    requester = requester_of(link, capabilities=capabilities)
    requester.connect()
    link.edit = changed(Code.KEY_EXCHANGE_RSP, flipped(at))
    with pytest.raises(VerificationError):
        requester.key_exchange()


def test_a_wrong_hmac_in_the_clear_is_refused() -> None:
    flags = Settings().flags | ResponderFlags.HANDSHAKE_IN_THE_CLEAR
    link = Link(device(settings=Settings(flags=flags)))
    requester = requester_of(
        link, capabilities=CAPABILITIES | RequesterFlags.HANDSHAKE_IN_THE_CLEAR
    )
    requester.connect()
    link.edit = changed(Code.FINISH_RSP, flipped(-1))
    with pytest.raises(VerificationError, match="HMAC"):
        requester.key_exchange()


def test_a_version_of_records_that_was_not_offered_is_refused(
    requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsmfs.spdm.sessions._secured_version", lambda _: selected_version(0x20))
    with pytest.raises(PeerError, match="version 0x20 were not offered"):
        requester.key_exchange()


def test_a_wish_for_our_certificate_is_refused(
    link: Link, requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishing = partial(KeyExchangeResponse, mutual_authentication=1)
    monkeypatch.setattr("tsmfs.spdm.sessions.KeyExchangeResponse", wishing)
    with pytest.raises(PeerError, match="wants our certificate"):
        requester.key_exchange()


@pytest.mark.parametrize("at", [0, 4, 6, -1])
def test_a_record_that_is_not_authentic_ends_the_session(
    link: Link, session: Session, at: int
) -> None:
    def edit(request: bytes, response: bytes) -> bytes:
        data = bytearray(response)
        data[at] ^= 0x80
        return bytes(data)

    link.edit_record = edit
    with pytest.raises(SpdmError) as caught:
        session.heartbeat()
    assert caught.value.errno == errno.EBADMSG
    assert session.ended


def test_a_record_that_is_replayed_ends_the_session(link: Link, session: Session) -> None:
    answers: list[bytes] = []

    def replay(request: bytes, response: bytes) -> bytes:
        answers.append(response)
        return answers[0]

    link.edit_record = replay
    session.heartbeat()
    with pytest.raises(SpdmError):
        session.heartbeat()
    assert session.ended


def test_no_response_to_a_record_ends_the_session(link: Link, session: Session) -> None:
    link.responder.reset()
    with pytest.raises(SpdmError):
        session.heartbeat()
    assert session.ended


def test_a_transport_that_fails_ends_the_session(link: Link, session: Session) -> None:
    def fail(request: bytes, response: bytes) -> bytes:
        raise OSError(errno.EIO, "the mailbox is stuck")

    link.edit_record = fail
    with pytest.raises(OSError, match="stuck"):
        session.heartbeat()
    assert session.ended


def test_a_session_ends_here_even_if_the_device_does_not_say_so(
    link: Link, session: Session
) -> None:
    link.edit_record = lambda request, response: b""
    with pytest.raises(SpdmError):
        session.end()
    assert session.ended


# --- Waiting and chunks ------------------------------------------------------------------------


def test_a_busy_device_is_asked_again(link: Link, requester: Requester) -> None:
    link.edit = answered(Code.GET_DIGESTS, *[error(ErrorCode.BUSY)] * BUSY_RETRIES)
    assert requester.digests()


def test_a_device_that_stays_busy_is_reported(link: Link, requester: Requester) -> None:
    link.edit = answered(Code.GET_DIGESTS, *[error(ErrorCode.BUSY)] * (BUSY_RETRIES + 1))
    with pytest.raises(SpdmError) as caught:
        requester.digests()
    assert caught.value.errno == errno.EBUSY


def not_ready(exponent: int, code: int = Code.GET_DIGESTS, token: int = 9) -> bytes:
    return error(ErrorCode.RESPONSE_NOT_READY, bytes((exponent, code, token, 1)))


def test_a_response_that_is_not_ready_is_waited_for() -> None:
    link = Link(device())
    naps = Naps()
    requester = Requester(link, sleep=naps)
    requester.connect()
    late: list[bytes] = []

    def edit(request: bytes, response: bytes) -> bytes:
        if request[1] == Code.GET_DIGESTS:
            late.append(response)
            return not_ready(10)
        if request[1] == Code.RESPOND_IF_READY:
            asked = RespondIfReady.parse(request)
            assert (asked.request, asked.token) == (Code.GET_DIGESTS, 9)
            return late[0] if len(naps.taken) == 2 else not_ready(12)
        return response

    link.edit = edit
    assert requester.digests()
    assert naps.taken == [1024e-6, 4096e-6]
    # What it took to get DIGESTS is in no transcript.
    requester.challenge()


@pytest.mark.parametrize("answer", [not_ready(40), not_ready(3, code=Code.CHALLENGE)])
def test_waiting_for_too_long_or_for_something_else_is_refused(
    link: Link, requester: Requester, answer: bytes
) -> None:
    link.edit = answered(Code.GET_DIGESTS, answer)
    with pytest.raises(SpdmError) as caught:
        requester.digests()
    assert caught.value.errno == errno.EBUSY


def test_a_device_cannot_make_us_wait_for_ever(link: Link) -> None:
    naps = Naps()
    requester = Requester(link, sleep=naps)
    requester.connect()
    link.edit = lambda request, response: not_ready(20)
    with pytest.raises(SpdmError):
        requester.digests()
    assert sum(naps.taken) <= MAX_WAIT


def test_a_device_cannot_make_us_ask_for_ever(link: Link) -> None:
    naps = Naps()
    requester = Requester(link, sleep=naps)
    requester.connect()
    link.edit = lambda request, response: not_ready(0)
    with pytest.raises(SpdmError):
        requester.digests()
    assert len(naps.taken) <= MAX_WAIT / BUSY_DELAY


@pytest.mark.parametrize("response", [b"", b"\x13", error(ErrorCode.RESPONSE_NOT_READY)])
def test_no_response_is_reported(link: Link, requester: Requester, response: bytes) -> None:
    link.edit = lambda request, _: response
    with pytest.raises(PeerError):
        requester.digests()


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (ErrorCode.UNSPECIFIED, errno.EPROTO),
        (ErrorCode.UNSUPPORTED_REQUEST, errno.EOPNOTSUPP),
        (ErrorCode.SESSION_LIMIT_EXCEEDED, errno.ENOSPC),
        (ErrorCode.REQUEST_RESYNCH, errno.ECONNRESET),
        (0xE0, errno.EPROTO),
    ],
)
def test_errors_have_the_number_that_the_kernel_reports(
    link: Link, requester: Requester, code: int, number: int
) -> None:
    link.edit = answered(Code.GET_DIGESTS, error(code, data=3))
    with pytest.raises(SpdmError, match="GET_DIGESTS was answered with") as caught:
        requester.digests()
    assert (caught.value.code, caught.value.data) == (code, 3)
    assert caught.value.errno == number


@pytest.mark.parametrize(("ours", "theirs"), [(42, 4096), (4096, 42), (42, 42), (97, 55)])
def test_messages_pass_in_chunks_of_any_size(ours: int, theirs: int) -> None:
    link = Link(device(settings=Settings(data_transfer_size=theirs, heartbeat_period=1)))
    requester = requester_of(link, data_transfer_size=ours)
    requester.connect()
    requester.digests()
    requester.challenge()
    assert requester.measurements(sign=True, raw=True).blocks == len(MEASUREMENTS)
    session = requester.key_exchange()
    assert session.measurements(sign=True).blocks == len(MEASUREMENTS)
    session.key_update()
    session.end()
    limit = max(len(one) for one in link.requests)
    assert limit <= max(theirs, 44)


def test_without_chunks_a_request_that_is_too_large_is_not_sent(link: Link) -> None:
    requester = requester_of(link, capabilities=CAPABILITIES & ~RequesterFlags.CHUNK)
    link.edit = lambda request, response: (
        replace(Capabilities.parse(response), data_transfer_size=50).pack()
        if response[1] == Code.CAPABILITIES
        else response
    )
    requester.connect()
    requester.certificate()
    with pytest.raises(SpdmError) as caught:
        requester.key_exchange()
    assert caught.value.errno == errno.EMSGSIZE


@pytest.mark.parametrize(
    "change",
    [flipped(3), flipped(4), flipped(2), flipped(12), flipped(15)],
    ids=["handle", "sequence", "last", "size", "huge"],
)
def test_chunks_that_do_not_fit_are_refused(
    link: Link, change: Callable[[bytearray], object]
) -> None:
    requester = requester_of(link, data_transfer_size=64)
    requester.connect()
    link.edit = changed(Code.CHUNK_RESPONSE, change)
    with pytest.raises(PeerError):
        requester.digests()


def test_a_response_in_chunks_without_number_is_refused(link: Link, requester: Requester) -> None:
    def edit(request: bytes, response: bytes) -> bytes:
        if request[1] != Code.CHUNK_GET:
            return error(ErrorCode.LARGE_RESPONSE, b"\1")
        asked = ChunkGet.parse(request)
        return ChunkResponse(
            version=asked.version,
            handle=asked.handle,
            sequence=asked.sequence,
            large_size=0 if asked.sequence else 1 << 20,
            chunk=b"x",
        ).pack()

    link.edit = edit
    with pytest.raises(PeerError, match="more chunks than can be counted"):
        requester.digests()


def test_a_chunk_that_is_acknowledged_wrongly_is_refused(link: Link) -> None:
    link = Link(device(settings=Settings(data_transfer_size=64)))
    requester = requester_of(link)
    requester.connect()
    requester.certificate()
    link.edit = changed(Code.CHUNK_SEND_ACK, flipped(4))
    with pytest.raises(PeerError, match="acknowledged"):
        requester.key_exchange()


def test_a_large_response_without_chunks_is_an_error(link: Link) -> None:
    requester = requester_of(link, capabilities=CAPABILITIES & ~RequesterFlags.CHUNK)
    requester.connect()
    link.edit = answered(Code.GET_DIGESTS, error(ErrorCode.LARGE_RESPONSE, b"\1"))
    with pytest.raises(SpdmError, match="LARGE_RESPONSE"):
        requester.digests()


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_a_device_answers_is_an_spdm_error_at_worst(data: st.DataObject) -> None:
    link = Link(device(offer=offer()))
    requester = requester_of(link)
    target = data.draw(st.integers(0, 12))
    count = 0

    def mutate(request: bytes, response: bytes) -> bytes:
        nonlocal count
        count += 1
        if count != target or not response:
            return response
        changed = bytearray(response)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed)[: data.draw(st.integers(0, len(changed)))]

    link.edit = link.edit_record = mutate
    with suppress(SpdmError):
        requester.connect()
        requester.digests()
        requester.challenge()
        requester.measurements(sign=True)
        session = requester.key_exchange()
        session.measurements()
        session.key_update()
        session.end()
