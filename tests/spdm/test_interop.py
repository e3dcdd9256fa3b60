# SPDX-License-Identifier: MIT
"""Tests of requester and responder together over real sockets, for every choice of algorithms."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.spdm.peers import device, offer
from tsmfs.spdm import ide_km
from tsmfs.spdm.algorithms import AeadSuite, BaseAsym, BaseHash, DheGroup
from tsmfs.spdm.doe import PROTOCOLS
from tsmfs.spdm.emu import Server, SocketTransport
from tsmfs.spdm.messages import (
    MEASUREMENT_COUNT,
    KeyOperation,
    RequesterFlags,
    ResponderFlags,
    Version,
)
from tsmfs.spdm.requester import CAPABILITIES, Requester, Session
from tsmfs.spdm.responder import CAPABILITIES as RESPONDER_CAPABILITIES
from tsmfs.spdm.responder import Responder, Settings
from tsmfs.spdm.standalone import INTERFACE, MEASUREMENTS
from tsmfs.spdm.tdisp import LockParameters, Report
from tsmfs.spdm.tdisp_requester import TdispRequester
from tsmfs.spdm.vendor import PciProtocol

TIMEOUT = 10.0


@dataclass(frozen=True)
class Case:
    """What is to be negotiated."""

    version: int
    base_asym: BaseAsym
    base_hash: BaseHash
    dhe: DheGroup
    aead: AeadSuite
    clear: bool = False
    """Whether the handshake of sessions is in the clear."""
    transfer: int = 4096
    """Bytes that either side takes in one piece."""

    def __str__(self) -> str:
        clear = "-clear" if self.clear else ""
        return (
            f"{self.version:#x}-{self.base_asym.name}-{self.base_hash.name}-{self.dhe.name}"
            f"-{self.aead.name}{clear}-{self.transfer}"
        )


_KEYS = {
    BaseAsym.ECDSA_P256: (BaseHash.SHA_256, DheGroup.SECP_256_R1),
    BaseAsym.ECDSA_P384: (BaseHash.SHA_384, DheGroup.SECP_384_R1),
    BaseAsym.RSAPSS_3072: (BaseHash.SHA_512, DheGroup.SECP_384_R1),
}

CASES = [
    Case(version, base_asym, *_KEYS[base_asym], aead)
    for version in (Version.V1_2, Version.V1_3)
    for base_asym in BaseAsym
    for aead in AeadSuite
] + [
    Case(
        version, BaseAsym.ECDSA_P384, BaseHash.SHA_384, DheGroup.SECP_384_R1,
        AeadSuite.AES_256_GCM, clear, transfer,
    )
    for version in (Version.V1_2, Version.V1_3)
    for clear, transfer in ((True, 4096), (False, 64), (True, 64))
] + [
    Case(Version.V1_3, BaseAsym.ECDSA_P256, BaseHash.SHA_384, DheGroup.SECP_384_R1,
         AeadSuite.AES_128_GCM),
    Case(Version.V1_2, BaseAsym.ECDSA_P384, BaseHash.SHA_512, DheGroup.SECP_256_R1,
         AeadSuite.CHACHA20_POLY1305),
]  # fmt: skip


def responder_of(case: Case) -> Responder:
    flags = RESPONDER_CAPABILITIES
    if case.clear:
        flags |= ResponderFlags.HANDSHAKE_IN_THE_CLEAR
    settings = Settings(flags=flags, data_transfer_size=case.transfer, heartbeat_period=30)
    return device(case.base_asym, case.base_hash, settings=settings)


def requester_of(case: Case, transport: SocketTransport) -> Requester:
    flags = CAPABILITIES
    if case.clear:
        flags |= RequesterFlags.HANDSHAKE_IN_THE_CLEAR
    return Requester(
        transport,
        versions=(case.version,),
        capabilities=flags,
        offer=offer(case.base_asym, case.base_hash, case.dhe, case.aead),
        data_transfer_size=case.transfer,
    )


@contextmanager
def served(responder: Responder) -> Iterator[SocketTransport]:
    """A client of a server of `responder`, which ends with the block."""
    with Server(lambda: responder, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_one_by_one)
        thread.start()
        try:
            with SocketTransport.connect(*server.address, timeout=TIMEOUT) as transport:
                yield transport
        finally:
            server.end()
            thread.join(TIMEOUT)


def key_link(session: Session) -> list[ide_km.KeySlot]:
    """Program and start the six keys of a stream; the slots that they are in."""

    def send(message: bytes) -> bytes:
        return session.vendor(PciProtocol.IDE_KM, message)

    assert ide_km.query(send).max_port == 1
    slots = list(ide_km.stream_slots(0, 0))
    for number, slot in enumerate(slots):
        ide_km.key_prog(send, slot, bytes([number]) * ide_km.KEY_SIZE)
    for slot in slots:
        ide_km.k_set_go(send, slot)
    return slots


def run_interface(session: Session) -> list[int]:
    """Lock, report, start and stop the interface; its states on the way."""
    interface = TdispRequester(
        lambda message: session.vendor(PciProtocol.TDISP, message), INTERFACE
    )
    interface.versions()
    flags = interface.capabilities().lock_flags
    states = [interface.state()]
    nonce = interface.lock(LockParameters(flags=flags, mmio_reporting_offset=0xD000_0000))
    states.append(interface.state())
    assert Report.parse(interface.report()).mmio_ranges
    interface.start(nonce)
    states.append(interface.state())
    interface.stop()
    states.append(interface.state())
    return [int(state) for state in states]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_device_authenticates_measures_itself_and_is_keyed(case: Case) -> None:
    responder = responder_of(case)
    count = len(MEASUREMENTS)
    with served(responder) as transport:
        assert tuple(transport.discover()) == PROTOCOLS
        requester = requester_of(case, transport)
        requester.connect()
        assert requester.version == case.version
        assert requester.algorithms.base_hash is case.base_hash
        assert requester.algorithms.aead is case.aead

        digests = requester.digests()
        chain = requester.certificate(0)
        assert case.base_hash.digest(chain) == digests[0]
        requester.challenge()
        assert requester.measurements(MEASUREMENT_COUNT).total == count
        assert requester.measurements(1).blocks == 1
        assert requester.measurements(sign=True).blocks == count

        session = requester.key_exchange()
        session.heartbeat()
        assert session.measurements(raw=True).blocks == count
        assert session.measurements(sign=True).blocks == count
        slots = key_link(session)
        assert run_interface(session) == [0, 1, 2, 0]
        for operation in (KeyOperation.UPDATE_ALL_KEYS, KeyOperation.UPDATE_KEY):
            session.key_update(operation)
            session.heartbeat()
        for slot in slots:
            ide_km.k_set_stop(lambda sent: session.vendor(PciProtocol.IDE_KM, sent), slot)
        session.end()
        assert not responder.sessions
        transport.leave()


def test_two_sessions_live_side_by_side() -> None:
    with served(device()) as transport:
        requester = Requester(transport)
        requester.connect()
        one, other = requester.key_exchange(0), requester.key_exchange(2)
        assert one.id != other.id
        for session in (one, other, one):
            session.heartbeat()
        one.end()
        other.heartbeat()
        other.end()


def test_a_second_client_that_connects_ends_the_session_of_the_first() -> None:
    responder = device()
    with Server(lambda: responder, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_in_threads)
        thread.start()
        try:
            with (
                SocketTransport.connect(*server.address, timeout=TIMEOUT) as first,
                SocketTransport.connect(*server.address, timeout=TIMEOUT) as second,
            ):
                one, other = Requester(first), Requester(second)
                one.connect()
                one.key_exchange().heartbeat()
                assert len(responder.sessions) == 1
                other.connect()
                assert not responder.sessions
                other.key_exchange().end()
        finally:
            server.end()
            thread.join(TIMEOUT)
