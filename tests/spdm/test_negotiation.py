# SPDX-License-Identifier: MIT
"""Tests of what a responder makes of GET_CAPABILITIES and NEGOTIATE_ALGORITHMS."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spdm.peer import FLAGS, IDENTITY, MEASURED, Peer, error_of, refusal
from tsmfs.spdm.algorithms import AeadSuite, BaseAsym, BaseHash, DheGroup, MeasurementHash, Offer
from tsmfs.spdm.messages import (
    SUPPORTED_ALGORITHMS,
    AlgorithmTable,
    AlgorithmType,
    Capabilities,
    ErrorCode,
    ExtendedAlgorithm,
    GetCapabilities,
    NegotiateAlgorithms,
    RequesterFlags,
    ResponderFlags,
    SpdmError,
    SupportedAlgorithms,
    Version,
)
from tsmfs.spdm.negotiation import check_capabilities, negotiate, offered
from tsmfs.spdm.responder import CAPABILITIES, Responder, Settings

F = RequesterFlags
GOOD = GetCapabilities(flags=FLAGS, data_transfer_size=64, max_message_size=128)


def invalid(request: GetCapabilities) -> bool:
    try:
        check_capabilities(request)
    except SpdmError as error:
        return error.code == ErrorCode.INVALID_REQUEST
    return False


@pytest.mark.parametrize(
    "flags",
    [
        F(0),
        F.CERT | F.CHAL,
        F.KEY_EX | F.MAC,
        FLAGS,
        FLAGS | F.HANDSHAKE_IN_THE_CLEAR,
        FLAGS | F.CERT | F.MUT_AUTH,
        F.KEY_EX | F.ENCRYPT | 1 << 10,
        F.CERT | F.EP_INFO_SIG,
        F.CERT | F.CHAL | F.MULTI_KEY_NEG,
    ],
)
def test_flags_that_agree_are_taken(flags: int) -> None:
    assert not invalid(replace(GOOD, version=Version.V1_3, flags=flags | F.CHUNK))


@pytest.mark.parametrize(
    "flags",
    [
        F.MAC,
        F.HBEAT,
        F.KEY_UPD,
        F.KEY_EX,
        F.KEY_EX | F.MAC | 2 << 10,
        F.HANDSHAKE_IN_THE_CLEAR | F.MAC | 1 << 10,
        F.CERT,
        F.CERT | F.PUB_KEY_ID | F.CHAL,
        F.CHAL,
        FLAGS | F.MUT_AUTH,
        F.CERT | F.EP_INFO_SIG | F.MUT_AUTH,
        F.EVENT,
        F.EP_INFO_SIG,
        F.EP_INFO_NO_SIG | F.EP_INFO_SIG | F.CERT | F.CHAL,
        F.MULTI_KEY_ONLY | F.MULTI_KEY_NEG | F.CERT | F.CHAL,
        F.MULTI_KEY_ONLY | F.PUB_KEY_ID | F.CHAL,
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: int) -> None:
    assert invalid(replace(GOOD, version=Version.V1_3, flags=flags | F.CHUNK))


def test_flags_of_a_later_version_are_ignored() -> None:
    later = F.EVENT | F.EP_INFO_SIG | F.EP_INFO_NO_SIG | F.MULTI_KEY_ONLY | F.MULTI_KEY_NEG
    assert not invalid(replace(GOOD, flags=F.CHUNK | later))


@pytest.mark.parametrize(
    "change",
    [
        {"data_transfer_size": 41},
        {"data_transfer_size": 129},
        {"flags": int(FLAGS & ~F.CHUNK)},
        {"ct_exponent": 32},
        {"version": 0x13, "attributes": 1, "flags": 0, "max_message_size": 64},
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    assert invalid(replace(GOOD, **change))
    peer = Peer()
    peer.get_version()
    answer = peer.ask(replace(GOOD, **change))
    assert error_of(answer) == refusal(ErrorCode.INVALID_REQUEST)
    assert peer.get_capabilities().flags


def test_the_supported_algorithms_are_told_to_those_who_ask() -> None:
    peer = Peer(version=0x13)
    peer.get_version()
    request = replace(peer.capabilities(), attributes=SUPPORTED_ALGORITHMS)
    told = SupportedAlgorithms.parse(Capabilities.parse(peer.ask(request)).supported).request
    assert told == offered(Offer(base_asym=(BaseAsym.ECDSA_P256,)), 0x13)
    older = Peer()
    older.get_version()
    response = Capabilities.parse(older.ask(replace(older.capabilities(), attributes=1)))
    assert (response.attributes, response.supported) == (0, b"")


def test_only_the_algorithm_of_the_key_is_selected() -> None:
    peer = Peer(offer=Offer())
    peer.get_version()
    peer.get_capabilities()
    assert peer.negotiate().base_asym == BaseAsym.ECDSA_P256.bit


OFFERS = st.builds(
    Offer,
    base_hash=st.permutations(list(BaseHash)).map(tuple),
    dhe=st.permutations(list(DheGroup)).map(tuple),
    aead=st.permutations(list(AeadSuite)).map(tuple),
)


@given(OFFERS, st.integers(0, 7), st.integers(0, 0x98), st.integers(0, 0x1F), st.integers(0, 7))
def test_what_is_selected_was_offered_by_both(
    offer: Offer, hashes: int, signatures: int, groups: int, suites: int
) -> None:
    tables = tuple(
        AlgorithmTable(kind, supported)
        for kind, supported in ((2, groups), (3, suites), (4, 1), (5, 1))
        if supported
    )
    request = NegotiateAlgorithms(base_asym=signatures, base_hash=hashes, tables=tables)
    if not hashes or not signatures & 0x98:
        with pytest.raises(SpdmError):
            negotiate(offer, request, sessions=False, measures=True)
        return
    algorithms, response = negotiate(offer, request, sessions=False, measures=True)
    assert algorithms.base_hash.bit & hashes == response.base_hash
    assert algorithms.base_asym.bit & signatures == response.base_asym
    assert [table.kind for table in response.tables] == [table.kind for table in tables]
    for table, asked in zip(response.tables, tables, strict=True):
        assert table.supported & ~asked.supported == 0
        assert table.supported.bit_count() <= 1
    if algorithms.dhe and algorithms.aead:
        selected = {table.kind: table.supported for table in response.tables}
        assert selected[AlgorithmType.DHE] == algorithms.dhe.bit
        assert selected[AlgorithmType.AEAD] == algorithms.aead.bit


def test_measurements_have_the_hash_of_the_connection() -> None:
    request = offered(Offer(base_hash=(BaseHash.SHA_512,)), 0x12)
    algorithms, response = negotiate(Offer(), request, sessions=True, measures=True)
    assert algorithms.measurement_hash is MeasurementHash.SHA_512
    assert response.measurement_hash == MeasurementHash.SHA_512.bit
    raw = Offer(measurement_hash=(MeasurementHash.RAW_ONLY,))
    assert negotiate(raw, request, sessions=True, measures=True)[1].measurement_hash == 1


@pytest.mark.parametrize("measures", [False, True])
def test_without_measurements_there_is_no_hash_for_them(measures: bool) -> None:
    request = replace(offered(Offer(), 0x12), measurement_specification=0 if measures else 1)
    algorithms, response = negotiate(Offer(), request, sessions=True, measures=measures)
    assert algorithms.measurement_hash is None
    assert (response.measurement_specification, response.measurement_hash) == (0, 0)


BASE = NegotiateAlgorithms(base_asym=0x10, base_hash=1)
EXTENDED = tuple(ExtendedAlgorithm(0, number) for number in range(15))


@pytest.mark.parametrize(
    "request_",
    [
        replace(BASE, base_hash=8),
        replace(BASE, base_asym=1),
        replace(BASE, tables=(AlgorithmTable(3, 1), AlgorithmTable(2, 8))),
        replace(BASE, tables=(AlgorithmTable(2, 8), AlgorithmTable(2, 8))),
        replace(BASE, tables=(AlgorithmTable(1, 1),)),
        replace(BASE, tables=(AlgorithmTable(6, 1),)),
        replace(BASE, tables=(AlgorithmTable(2, 0),)),
        replace(BASE, extended_asym=EXTENDED, extended_hash=EXTENDED),
        replace(BASE, tables=(AlgorithmTable(2, 8, EXTENDED), AlgorithmTable(3, 1, EXTENDED))),
        replace(BASE, tables=(AlgorithmTable(2, 8),)),
        BASE,
    ],
)
def test_an_offer_that_makes_no_session_is_refused_and_may_be_made_better(
    request_: NegotiateAlgorithms,
) -> None:
    peer = Peer()
    peer.get_version()
    peer.get_capabilities()
    assert error_of(peer.ask(request_)) == refusal(ErrorCode.INVALID_REQUEST)
    assert peer.negotiate().base_hash == BaseHash.SHA_256.bit


def test_without_sessions_their_algorithms_may_be_missing() -> None:
    flags = CAPABILITIES & ~ResponderFlags.KEY_EX
    peer = Peer(Responder(IDENTITY, lambda: MEASURED, settings=Settings(flags=flags)))
    peer.get_version()
    peer.get_capabilities()
    peer.ask(BASE)
    algorithms = peer.responder.algorithms
    assert algorithms is not None
    assert (algorithms.dhe, algorithms.aead, algorithms.other_params) == (None, None, 0)
