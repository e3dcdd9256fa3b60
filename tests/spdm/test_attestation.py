# SPDX-License-Identifier: MIT
"""Tests of what a responder proves: certificates, CHALLENGE, measurements."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spdm.peer import IDENTITY, MEASURED, SIZES, Peer, PeerSession, device, error_of, refusal
from tsmfs.spdm import transcript
from tsmfs.spdm.algorithms import BaseAsym, BaseHash, MeasurementHash
from tsmfs.spdm.identity import Slot
from tsmfs.spdm.measurements import Measurement, MeasurementKind, parse_record
from tsmfs.spdm.messages import (
    MEASUREMENT_ALL,
    MEASUREMENT_COUNT,
    SLOT_SIZE_REQUESTED,
    Certificate,
    Challenge,
    ChallengeAuth,
    Code,
    ContentChanged,
    Digests,
    ErrorCode,
    GetCertificate,
    GetDigests,
    GetMeasurements,
    Heartbeat,
    MeasurementAttributes,
    Measurements,
    SummaryType,
)
from tsmfs.spdm.responder import Responder, SigningJob, sign
from tsmfs.spdm.transcript import SigningContext, signing_message
from tsmfs.spdm.wire import Sizes

CHAIN = IDENTITY.slots[0].chain
KEY = IDENTITY.slots[0].key.public_key()
NONCE = bytes(range(32))
INVALID = refusal(ErrorCode.INVALID_REQUEST)
SIGNATURE = MeasurementAttributes.SIGNATURE
SIGNED = Sizes(signature=64)


def verifies(version: int, context: SigningContext, covered: bytes, signature: bytes) -> bool:
    message = signing_message(version, context, hashlib.sha256(covered).digest())
    return BaseAsym.ECDSA_P256.verify(KEY, signature, message, BaseHash.SHA_256)


# --- Certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "supported"), [(0x12, 0), (0x13, 0xFF)])
def test_digests_are_those_of_the_chains(version: int, supported: int) -> None:
    peer = Peer(version=version).connect()
    response = Digests.parse(peer.ask(GetDigests(version=version)), SIZES)
    assert (response.supported_slots, response.slots) == (supported, 0b101)
    assert response.digests == tuple(
        hashlib.sha256(IDENTITY.slots[slot].chain).digest() for slot in (0, 2)
    )


def test_a_chain_is_that_of_the_negotiated_hash() -> None:
    offer = replace(Peer().offer, base_hash=(BaseHash.SHA_512,))
    peer = Peer(offer=offer).connect()
    chain = Certificate.parse(peer.ask(GetCertificate(length=0xFFFF))).portion
    assert chain == IDENTITY.slots[0].chain_with(BaseHash.SHA_512)
    digest = hashlib.sha512(chain).digest()
    assert Digests.parse(peer.ask(GetDigests()), Sizes(hash=64)).digests[0] == digest


@given(st.integers(0, len(CHAIN) - 1), st.integers(0, 0xFFFF))
def test_any_portion_of_a_chain_can_be_read(offset: int, length: int) -> None:
    peer = Peer().connect()
    request = GetCertificate(slot=0, offset=offset, length=length)
    response = Certificate.parse(peer.ask(request))
    assert response.portion == CHAIN[offset : offset + length]
    assert response.remainder == len(CHAIN) - offset - len(response.portion)


@pytest.mark.parametrize(
    "request_",
    [
        GetCertificate(slot=1, length=10),
        GetCertificate(slot=8, length=10),
        GetCertificate(slot=15, length=10),
        GetCertificate(offset=len(CHAIN), length=1),
    ],
)
def test_what_is_not_in_a_slot_cannot_be_read(request_: GetCertificate) -> None:
    assert error_of(Peer().connect().ask(request_)) == INVALID


def test_from_1_3_on_the_size_of_a_slot_can_be_asked() -> None:
    request = GetCertificate(version=0x13, attributes=SLOT_SIZE_REQUESTED, length=9)
    response = Certificate.parse(Peer(version=0x13).connect().ask(request))
    assert (response.portion, response.remainder) == (b"", len(CHAIN))
    older = Certificate.parse(Peer().connect().ask(replace(request, version=0x12)))
    assert older.portion == CHAIN[:9]


# --- CHALLENGE ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0x12, 0x13])
@pytest.mark.parametrize("summary", [SummaryType.NONE, SummaryType.TCB, SummaryType.ALL])
def test_a_challenge_is_signed_over_everything_before_it(
    version: int, summary: SummaryType
) -> None:
    peer = Peer(version=version).connect()
    first = GetDigests(version=version).pack()
    second = GetCertificate(version=version, length=0xFFFF).pack()
    peer.send(first)
    collected = first + peer.send(first) + second + peer.send(second)
    context = b"12345678" if version == 0x13 else b""
    request = Challenge(version=version, summary_type=summary, nonce=NONCE, context=context).pack()
    answer = peer.send(request)
    sizes = replace(SIZES, summary=32 if summary else 0)
    response = ChallengeAuth.parse(answer, sizes)
    assert (response.slot, response.slots, response.context) == (0, 0b101, context)
    assert response.chain_hash == hashlib.sha256(CHAIN).digest()
    covered = peer.vca + collected + request + answer[:-64]
    assert verifies(version, SigningContext.CHALLENGE_AUTH, covered, response.signature)
    again = peer.send(request)
    assert verifies(
        version, SigningContext.CHALLENGE_AUTH, peer.vca + request + again[:-64], again[-64:]
    )


def test_measurements_before_a_challenge_make_it_cover_no_certificates() -> None:
    peer = Peer().connect()
    peer.ask(GetDigests())
    peer.ask(GetMeasurements())
    request = Challenge(nonce=NONCE).pack()
    answer = peer.send(request)
    covered = peer.vca + request + answer[:-64]
    assert verifies(0x12, SigningContext.CHALLENGE_AUTH, covered, answer[-64:])


@pytest.mark.parametrize(
    "request_", [Challenge(slot=1), Challenge(slot=0xFF), Challenge(summary_type=2)]
)
def test_a_challenge_that_cannot_be_answered_is_invalid(request_: Challenge) -> None:
    assert error_of(Peer().connect().ask(request_)) == INVALID


def test_a_challenge_in_a_session_is_unexpected() -> None:
    session = Peer().connect().session()
    assert error_of(session.ask(Challenge())) == refusal(ErrorCode.UNEXPECTED_REQUEST)


# --- Measurements ------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_measurements_are_told_as_they_were_asked_for(raw: bool) -> None:
    peer = Peer().connect()
    attributes = MeasurementAttributes.RAW if raw else MeasurementAttributes(0)
    expected = tuple(one.block(MeasurementHash.SHA_256, raw=raw) for one in MEASURED)
    counted = Measurements.parse(peer.ask(GetMeasurements(operation=MEASUREMENT_COUNT)))
    assert (counted.total, counted.blocks, counted.record) == (3, 0, b"")
    request = GetMeasurements(attributes=attributes, operation=MEASUREMENT_ALL)
    everything = Measurements.parse(peer.ask(request))
    assert (everything.total, everything.blocks) == (0, 3)
    assert parse_record(everything.record) == expected
    single = Measurements.parse(peer.ask(replace(request, operation=5)))
    assert (single.blocks, parse_record(single.record)) == (1, expected[2:])


@pytest.mark.parametrize("version", [0x12, 0x13])
@pytest.mark.parametrize("inside", [False, True])
def test_a_signature_covers_the_measurements_since_the_last_one(version: int, inside: bool) -> None:
    peer = Peer(version=version).connect()
    channel: Peer | PeerSession = peer.session() if inside else peer
    context = b"12345678" if version == 0x13 else b""
    plain = GetMeasurements(version=version, operation=1, context=context).pack()
    signed = GetMeasurements(
        version=version, attributes=SIGNATURE, operation=2, nonce=NONCE, slot=2, context=context
    ).pack()
    for _ in range(2):
        covered = peer.vca + plain + channel.send(plain) + signed
        answer = channel.send(signed)
        response = Measurements.parse(answer, SIGNED)
        covered += answer[:-64]
        assert response.slot == 2 | ContentChanged.UNCHANGED
        assert response.context == context
        assert verifies(version, SigningContext.MEASUREMENTS, covered, response.signature)


def test_another_request_makes_signatures_begin_again() -> None:
    peer = Peer().connect()
    session = peer.session()
    for channel, other in ((peer, GetDigests()), (session, Heartbeat())):
        channel.ask(GetMeasurements())
        channel.ask(other)
        request = GetMeasurements(attributes=SIGNATURE, nonce=NONCE).pack()
        answer = channel.send(request)
        covered = peer.vca + request + answer[:-64]
        assert verifies(0x12, SigningContext.MEASUREMENTS, covered, answer[-64:])


def test_a_refused_request_makes_signatures_begin_again() -> None:
    peer = Peer().connect()
    peer.ask(GetMeasurements())
    assert error_of(peer.ask(GetMeasurements(operation=77))) == INVALID
    request = GetMeasurements(attributes=SIGNATURE, nonce=NONCE).pack()
    answer = peer.send(request)
    covered = peer.vca + request + answer[:-64]
    assert verifies(0x12, SigningContext.MEASUREMENTS, covered, answer[-64:])


def test_a_change_between_two_answers_is_told() -> None:
    values = [MEASURED, (replace(MEASURED[0], value=b"changed"),)]
    peer = Peer(Responder(IDENTITY, lambda: values.pop(0))).connect()
    peer.ask(GetMeasurements())
    answer = peer.ask(GetMeasurements(attributes=SIGNATURE, nonce=NONCE))
    assert Measurements.parse(answer, SIGNED).slot == ContentChanged.CHANGED


def test_a_transcript_that_is_full_is_an_error_and_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = Peer().connect()
    monkeypatch.setattr(transcript, "TRANSCRIPT_LIMIT", 300)
    codes = [peer.ask(GetMeasurements())[1] for _ in range(12)]
    assert codes == ([Code.MEASUREMENTS] * 6 + [Code.ERROR]) + [Code.MEASUREMENTS] * 5
    answer = peer.ask(GetCertificate(length=400))
    assert error_of(answer) == refusal(ErrorCode.UNSPECIFIED)
    assert peer.ask(GetCertificate(length=100))[1] == Code.CERTIFICATE


@pytest.mark.parametrize(
    "request_",
    [
        GetMeasurements(operation=3),
        GetMeasurements(attributes=SIGNATURE, nonce=NONCE, slot=1),
        GetMeasurements(attributes=SIGNATURE, nonce=NONCE, slot=15),
    ],
)
def test_measurements_that_cannot_be_told_are_invalid(request_: GetMeasurements) -> None:
    assert error_of(Peer().connect().ask(request_)) == INVALID


def test_measurements_without_a_specification_are_unexpected() -> None:
    peer = Peer()
    peer.get_version()
    peer.get_capabilities()
    peer.ask(replace(peer.algorithms(), measurement_specification=0))
    assert error_of(peer.ask(GetMeasurements())) == refusal(ErrorCode.UNEXPECTED_REQUEST)
    assert error_of(peer.ask(Challenge(summary_type=0xFF))) == INVALID


def test_a_measurement_that_cannot_be_told_at_all_is_an_error_of_the_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mode = Measurement(1, MeasurementKind.DEVICE_MODE, bytes(0x10000))
    peer = Peer(Responder(IDENTITY, lambda: [mode])).connect()
    answer = peer.ask(GetMeasurements(operation=1))
    assert error_of(answer) == refusal(ErrorCode.UNSPECIFIED)
    assert "measurement 1 has 65536 bytes" in caplog.text


# --- Signing -----------------------------------------------------------------------------------


def test_a_signer_gets_the_slot_and_what_is_signed() -> None:
    seen: list[tuple[Slot, SigningJob]] = []

    def signer(slot: Slot, job: SigningJob) -> bytes:
        seen.append((slot, job))
        return bytes(64)

    responder = device()
    responder.signer = signer
    peer = Peer(responder).connect()
    answer = peer.ask(GetMeasurements(attributes=SIGNATURE, nonce=NONCE, slot=2))
    assert answer[-64:] == bytes(64)
    ((slot, job),) = seen
    assert slot is IDENTITY.slots[2]
    assert (job.version, job.context) == (0x12, SigningContext.MEASUREMENTS)
    assert job.digest == hashlib.sha256(job.transcript).digest()
    assert job.transcript.startswith(peer.vca)
    assert job.message.endswith(job.digest)
    assert BaseAsym.ECDSA_P256.verify(KEY, sign(slot, job), job.message, BaseHash.SHA_256)
