# SPDX-License-Identifier: MIT
"""Tests of the walk through everything that a device can do, and of what stops it."""

from __future__ import annotations

import pytest

from tests.spdm.peers import Link, device, offer
from tsmfs.spdm.exchange import VerificationError
from tsmfs.spdm.interface import Interface, fixed_interface
from tsmfs.spdm.messages import Code, ErrorCode, ResponderFlags, SpdmError
from tsmfs.spdm.requester import Requester
from tsmfs.spdm.responder import Responder, Settings
from tsmfs.spdm.standalone import INTERFACE
from tsmfs.spdm.survey import OBJECTS, Survey
from tsmfs.spdm.tdisp import TdispError, TdiState
from tsmfs.spdm.tdisp_responder import TdispResponder
from tsmfs.spdm.vendor import PciProtocol

WALK = [
    "version",
    "capabilities",
    "algorithms",
    "digests",
    "certificate 0",
    "certificate 2",
    "challenge",
    "measurements",
    "  1",
    "  2",
    "  3",
    "  4",
    "key exchange",
    "secured measurements",
    "heartbeat",
    "key update",
    "IDE_KM query",
    "IDE_KM keys",
    "TDISP version",
    "TDISP capabilities",
    "TDISP state",
    "TDISP lock",
    "TDISP report",
    "TDISP start",
    "TDISP stop",
    "IDE_KM stop",
    "end of session",
]


def survey(
    responder: Responder, *, interface: int = INTERFACE, nonce: bytes | None = None
) -> Survey:
    return Survey(Requester(Link(responder), offer=offer()), interface=interface, nonce=nonce)


def walk(one: Survey) -> dict[str, str]:
    return {step.name: step.result for step in one.steps()}


def without(flags: ResponderFlags) -> Settings:
    return Settings(flags=Settings().flags & ~flags)


def interface_of(responder: Responder) -> Interface:
    interface = fixed_interface(INTERFACE, ((0x1000, 0x1000),))
    vendor = {**responder.vendor, PciProtocol.TDISP: TdispResponder({INTERFACE: interface})}
    responder.vendor = vendor
    return interface


def test_walk_goes_through_everything_in_order() -> None:
    responder = device()
    one = survey(responder)
    assert list(walk(one)) == WALK
    assert not responder.sessions
    assert set(one.evidence) == {"cert0", "cert2", "vca", "measurements", "report"}
    assert set(one.evidence) < set(OBJECTS)


def test_measurements_are_signed_over_the_nonce() -> None:
    nonce = bytes(range(32))
    one = survey(device(), nonce=nonce)
    assert nonce.hex() in walk(one)["measurements"]
    assert nonce in one.evidence["measurements"]


@pytest.mark.parametrize(
    ("flags", "passed_over", "absent"),
    [
        (ResponderFlags.CHAL, "challenge", ""),
        (ResponderFlags.MEAS_SIG | ResponderFlags.MEAS_FRESH, "measurements", "measurements"),
        (ResponderFlags.HBEAT, "heartbeat", ""),
        (ResponderFlags.KEY_UPD, "key update", ""),
    ],
)
def test_what_is_not_supported_is_passed_over(
    flags: ResponderFlags, passed_over: str, absent: str
) -> None:
    one = survey(device(settings=without(flags)))
    found = walk(one)
    assert found[passed_over] == "not supported"
    assert list(found)[-1] == "end of session"
    assert absent not in one.evidence


def test_device_without_sessions_is_asked_what_it_can_tell_without() -> None:
    sessions = (
        ResponderFlags.KEY_EX
        | ResponderFlags.ENCRYPT
        | ResponderFlags.MAC
        | ResponderFlags.HBEAT
        | ResponderFlags.KEY_UPD
    )
    found = walk(survey(device(settings=without(sessions))))
    assert list(found)[-1] == "key exchange"
    assert found["key exchange"] == "not supported"


def test_protocols_that_a_device_lacks_are_passed_over() -> None:
    responder = device()
    responder.vendor = {}
    found = walk(survey(responder))
    assert (found["IDE_KM query"], found["TDISP version"]) == ("not supported", "not supported")
    assert "IDE_KM stop" not in found


def test_interface_that_does_not_exist_is_passed_over() -> None:
    found = walk(survey(device(), interface=0x100))
    assert found["TDISP version"] == "no interface 0x100"
    assert found["IDE_KM stop"] == "6 keys"


def test_interface_in_error_is_stopped_before_it_is_locked() -> None:
    responder = device()
    interface = interface_of(responder)
    first = survey(responder).steps()
    assert "TDISP lock" in (step.name for step in first)
    # A new connection ends the session that holds the lock.
    found = walk(survey(responder))
    assert (found["TDISP state"], found["TDISP lock"]) == ("ERROR", "CONFIG_LOCKED")
    assert interface.state is TdiState.CONFIG_UNLOCKED


def test_failing_step_is_told_and_nothing_stays_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    responder = device()
    interface = interface_of(responder)
    monkeypatch.setattr(interface, "start", lambda nonce: interface.report().index(b"nothing"))
    one = survey(responder)
    with pytest.raises((SpdmError, TdispError)):
        walk(one)
    assert one.doing == "TDISP start"
    assert interface.state is TdiState.CONFIG_UNLOCKED
    assert not responder.sessions


def test_wrong_signature_stops_the_walk() -> None:
    def spoil(request: bytes, response: bytes) -> bytes:
        if request[1] != Code.CHALLENGE:
            return response
        return response[:-1] + bytes((response[-1] ^ 1,))

    one = Survey(Requester(Link(device(), spoil), offer=offer()), interface=INTERFACE)
    with pytest.raises(VerificationError):
        walk(one)
    assert one.doing == "challenge"
    assert set(one.evidence) == {"vca", "cert0", "cert2"}


def test_slot_without_a_chain_stops_the_walk() -> None:
    requester = Requester(Link(device()), offer=offer(), slot=5)
    one = Survey(requester, interface=INTERFACE)
    with pytest.raises(SpdmError) as refused:
        walk(one)
    assert refused.value.code == ErrorCode.INVALID_REQUEST
    assert one.doing == "certificate 5"
