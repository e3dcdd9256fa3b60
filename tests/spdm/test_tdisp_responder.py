# SPDX-License-Identifier: MIT
"""The device's side of TDISP: what is answered, in which state, to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.spdm.tdisp_peers import FUNCTION, REPORT, Device, OneSession, refused
from tests.spdm.tdisp_strategies import MESSAGES
from tsmfs.spdm import tdisp
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.tdisp import (
    HEADER_SIZE,
    NONCE_SIZE,
    DeviceInterfaceReport,
    DeviceInterfaceState,
    ErrorResponse,
    GetDeviceInterfaceReport,
    GetDeviceInterfaceState,
    GetTdispVersion,
    LockInterfaceRequest,
    LockParameters,
    Report,
    StartInterfaceRequest,
    TdispErrorCode,
    TdispMessage,
    TdiState,
    VersionResponse,
    function_id,
)


@pytest.fixture
def device() -> Device:
    return Device()


def test_the_whole_life_of_an_interface_over_the_wire(device: Device) -> None:
    host = device.host()
    assert host.versions() == (0x10,)
    capabilities = host.capabilities()
    assert capabilities == device.interface.capabilities
    states = [host.state()]
    nonce = host.lock(
        LockParameters(flags=capabilities.lock_flags, mmio_reporting_offset=0xD0000000)
    )
    states.append(host.state())
    assert Report.parse(host.report()) == REPORT
    host.start(nonce)
    states.append(host.state())
    host.set_mmio_attribute(REPORT.mmio_ranges[0])
    host.stop()
    states.append(host.state())
    assert states == [0, 1, 2, 0]


@pytest.mark.parametrize("portion", [1, 7, 20, 21, 59, 1000])
def test_the_report_is_read_in_portions_of_any_size(device: Device, portion: int) -> None:
    host = device.host()
    host.lock(LockParameters())
    assert host.report(portion) == REPORT.pack()


def test_a_portion_tells_what_remains(device: Device) -> None:
    device.interface.lock(LockParameters(), 1)
    size = len(REPORT.pack())
    for offset, length, got in ((0, 8, 8), (0, 0xFFFF, 20), (size - 3, 8, 3)):
        answer = device.ask(
            GetDeviceInterfaceReport(function_id=FUNCTION, offset=offset, length=length)
        )
        assert answer == DeviceInterfaceReport(
            function_id=FUNCTION,
            portion=REPORT.pack()[offset : offset + got],
            remainder=size - offset - got,
        )


def error_of(message: TdispMessage) -> tuple[int, int]:
    assert isinstance(message, ErrorResponse)
    assert message.version == 0x10
    return message.error, message.data


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (GetDeviceInterfaceReport(offset=0xFFFF, length=1), TdispErrorCode.INVALID_REQUEST),
        (GetDeviceInterfaceReport(offset=0, length=0), TdispErrorCode.INVALID_REQUEST),
        (GetDeviceInterfaceReport(offset=59, length=1), TdispErrorCode.INVALID_REQUEST),
        (StartInterfaceRequest(nonce=bytes(NONCE_SIZE)), TdispErrorCode.INVALID_NONCE),
        (LockInterfaceRequest(), TdispErrorCode.INVALID_INTERFACE_STATE),
        (GetDeviceInterfaceState(version=0x11), TdispErrorCode.VERSION_MISMATCH),
        (GetTdispVersion(version=0x20), TdispErrorCode.VERSION_MISMATCH),
    ],
)
def test_errors_of_a_locked_interface(
    device: Device, request_: TdispMessage, error: TdispErrorCode
) -> None:
    device.interface.lock(LockParameters(), 1)
    answer = device.ask(replace(request_, function_id=FUNCTION))
    assert error_of(answer) == (error, 0)
    assert answer.function_id == FUNCTION
    assert device.interface.state is TdiState.CONFIG_LOCKED


def test_every_minor_version_may_ask_for_the_versions(device: Device) -> None:
    answer = device.ask(GetTdispVersion(function_id=FUNCTION, version=0x1F))
    assert answer == VersionResponse(function_id=FUNCTION)


def test_an_interface_that_does_not_exist_is_invalid(device: Device) -> None:
    for code, message in tdisp.MESSAGES.items():
        if device.interface.capabilities.supports(code):
            answer = device.ask(message(function_id=0x0101))
            assert error_of(answer) == (TdispErrorCode.INVALID_INTERFACE, 0)
            assert answer.function_id == 0x0101


def test_what_is_no_supported_request_is_told_by_its_code(device: Device) -> None:
    header = GetDeviceInterfaceState(function_id=FUNCTION).pack()
    supported = {code for code in range(256) if device.interface.capabilities.supports(code)}
    assert supported == set(range(0x81, 0x88)) | {0x8A}
    for code in set(range(256)) - supported:
        packed = header[:1] + bytes((code,)) + header[2:]
        answer = tdisp.parse(device.responder.respond(OneSession(1), packed))
        assert error_of(answer) == (TdispErrorCode.UNSUPPORTED_REQUEST, code)


@pytest.mark.parametrize("change", [lambda packed: packed[:-1], lambda packed: packed + b"\0"])
def test_requests_of_a_wrong_size_are_invalid(
    device: Device, change: Callable[[bytes], bytes]
) -> None:
    for code, message in tdisp.MESSAGES.items():
        packed = change(message(function_id=FUNCTION).pack())
        if not device.interface.capabilities.supports(code) or len(packed) < HEADER_SIZE:
            continue
        answer = tdisp.parse(device.responder.respond(OneSession(1), packed))
        assert error_of(answer) == (TdispErrorCode.INVALID_REQUEST, 0)
    assert device.interface.state is TdiState.CONFIG_UNLOCKED


def test_segment_0_and_reserved_bits_name_the_same_function(device: Device) -> None:
    for function in (FUNCTION, 0x01000000 | FUNCTION, 0xFE000000 | FUNCTION):
        answer = device.ask(GetDeviceInterfaceState(function_id=function))
        assert answer == DeviceInterfaceState(function_id=function)
    answer = device.ask(GetDeviceInterfaceState(function_id=function_id(FUNCTION, 1)))
    assert error_of(answer)[0] == TdispErrorCode.INVALID_INTERFACE


def test_another_session_may_look_but_not_touch(device: Device) -> None:
    nonce = device.host(1).lock(LockParameters())
    other = device.host(2)
    assert other.state() is TdiState.CONFIG_LOCKED
    assert other.versions() == (0x10,)
    for action in (other.report, lambda: other.start(nonce), other.stop):
        with refused(TdispErrorCode.INVALID_REQUEST):
            action()
    with refused(TdispErrorCode.INVALID_INTERFACE_STATE):
        other.lock(LockParameters())
    assert device.interface.state is TdiState.CONFIG_LOCKED


def test_after_the_end_of_a_session_the_next_one_unlocks(device: Device) -> None:
    device.host(1).lock(LockParameters())
    device.responder.session_ended(1)
    other = device.host(2)
    assert other.state() is TdiState.ERROR
    with refused(TdispErrorCode.INVALID_INTERFACE_STATE):
        other.report()
    other.stop()
    other.lock(LockParameters())
    assert device.interface.owner == 2


def test_outside_of_a_session_nothing_is_answered(device: Device) -> None:
    with pytest.raises(SpdmError) as caught:
        device.responder.respond(None, LockInterfaceRequest(function_id=FUNCTION).pack())
    assert caught.value.code == ErrorCode.SESSION_REQUIRED
    assert device.interface.state is TdiState.CONFIG_UNLOCKED


@pytest.mark.parametrize("size", [0, 1, HEADER_SIZE - 1])
def test_what_has_no_header_is_an_spdm_error(device: Device, size: int) -> None:
    with pytest.raises(SpdmError) as caught:
        device.responder.respond(OneSession(1), b"\x10" * size)
    assert caught.value.code == ErrorCode.INVALID_REQUEST


@given(st.lists(st.one_of(st.binary(min_size=HEADER_SIZE, max_size=60), MESSAGES), max_size=8))
def test_whatever_comes_is_answered(payloads: list[bytes | TdispMessage]) -> None:
    responder = Device().responder
    for payload in payloads:
        packed = (
            payload
            if isinstance(payload, bytes)
            else replace(payload, version=0x10, function_id=FUNCTION).pack()
        )
        answer = tdisp.parse(responder.respond(OneSession(1), packed))
        assert answer.CODE < 0x80


class InterfaceMachine(RuleBasedStateMachine):
    """An interface beside a model: its state, the session that locked it, the valid nonce."""

    @initialize()
    def begin(self) -> None:
        self.device = Device()
        self.state = TdiState.CONFIG_UNLOCKED
        self.owner: int | None = None
        self.nonce: bytes | None = None
        self.seen: list[bytes] = [bytes(NONCE_SIZE)]

    SESSIONS = st.integers(1, 2)

    def attempt(self, action: Callable[[], object], *errors: tuple[bool, TdispErrorCode]) -> bool:
        """Run `action`; it has to fail with the error of the first condition that holds."""
        expected = next((code for holds, code in errors if holds), None)
        if expected is None:
            action()
            return True
        with refused(expected):
            action()
        return False

    @property
    def in_use(self) -> bool:
        return self.state in (TdiState.CONFIG_LOCKED, TdiState.RUN)

    def foreign(self, session: int) -> tuple[bool, TdispErrorCode]:
        return self.owner not in (None, session), TdispErrorCode.INVALID_REQUEST

    def not_in(self, *states: TdiState) -> tuple[bool, TdispErrorCode]:
        return self.state not in states, TdispErrorCode.INVALID_INTERFACE_STATE

    @rule(session=SESSIONS, flags=st.sampled_from((0, 7, 8, 0xFF00)))
    def lock(self, session: int, flags: int) -> None:
        nonces: list[bytes] = []
        if self.attempt(
            lambda: nonces.append(self.device.host(session).lock(LockParameters(flags=flags))),
            (bool(flags & 8), TdispErrorCode.INVALID_REQUEST),
            self.not_in(TdiState.CONFIG_UNLOCKED),
        ):
            self.state, self.owner = TdiState.CONFIG_LOCKED, session
            (self.nonce,) = nonces
            assert self.nonce not in self.seen
            self.seen.append(self.nonce)

    @rule(session=SESSIONS, data=st.data())
    def start(self, session: int, data: st.DataObject) -> None:
        nonce = data.draw(st.sampled_from(self.seen[-3:]))
        if self.attempt(
            lambda: self.device.host(session).start(nonce),
            self.foreign(session),
            self.not_in(TdiState.CONFIG_LOCKED),
            (nonce != self.nonce, TdispErrorCode.INVALID_NONCE),
        ):
            self.state, self.nonce = TdiState.RUN, None

    @rule(session=SESSIONS)
    def report(self, session: int) -> None:
        self.attempt(
            lambda: self.device.host(session).report(),
            self.foreign(session),
            self.not_in(TdiState.CONFIG_LOCKED, TdiState.RUN),
        )

    @rule(session=SESSIONS)
    def set_mmio_attribute(self, session: int) -> None:
        self.attempt(
            lambda: self.device.host(session).set_mmio_attribute(REPORT.mmio_ranges[0]),
            self.foreign(session),
            self.not_in(TdiState.RUN),
        )

    @rule(session=SESSIONS)
    def stop(self, session: int) -> None:
        if self.attempt(self.device.host(session).stop, self.foreign(session)):
            self.unlocked()

    @rule()
    def reset(self) -> None:
        self.device.interface.reset()
        self.unlocked()

    @rule()
    def error(self) -> None:
        self.device.interface.error("something changed")
        if self.in_use:
            self.state, self.nonce = TdiState.ERROR, None

    @rule(session=SESSIONS)
    def session_ended(self, session: int) -> None:
        self.device.responder.session_ended(session)
        if session == self.owner:
            self.owner = None
            if self.in_use:
                self.state, self.nonce = TdiState.ERROR, None

    def unlocked(self) -> None:
        self.state, self.owner, self.nonce = TdiState.CONFIG_UNLOCKED, None, None

    @invariant()
    def the_state_is_that_of_the_model(self) -> None:
        interface = self.device.interface
        assert self.device.host().state() is self.state
        assert interface.owner == self.owner
        assert (interface.reason is not None) == (self.state is TdiState.ERROR)
        assert (interface.parameters is None) == (self.state is TdiState.CONFIG_UNLOCKED)


InterfaceMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
test_an_interface_behaves_like_its_model = InterfaceMachine.TestCase
