# SPDX-License-Identifier: MIT
"""Tests of TDISP: layouts, the state machine, the device's side and the host's side."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tsmfs.spdm import tdisp
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.tdisp import (
    HEADER_SIZE,
    MAX_REPORT_SIZE,
    NONCE_SIZE,
    CapabilitiesResponse,
    DeviceInterfaceReport,
    DeviceInterfaceState,
    ErrorResponse,
    GetDeviceInterfaceReport,
    GetDeviceInterfaceState,
    GetTdispVersion,
    Interface,
    InterfaceInfo,
    LockFlags,
    LockInterfaceRequest,
    LockInterfaceResponse,
    LockParameters,
    MmioRange,
    RangeAttributes,
    Report,
    StartInterfaceRequest,
    TdispCapabilities,
    TdispCode,
    TdispError,
    TdispErrorCode,
    TdispMessage,
    TdispRequester,
    TdispResponder,
    TdiState,
    VdmRequest,
    VersionResponse,
    canonical_function_id,
    fixed_interface,
    function_id,
    request_mask,
)
from tsmfs.spdm.wire import SpdmDecodeError

FUNCTION = 0x0100
UPDATABLE = RangeAttributes.IS_MEM_ATTR_UPDATABLE
REPORT = Report(
    interface_info=InterfaceInfo.NO_FW_UPDATE | InterfaceInfo.DMA_WITHOUT_PASID,
    msix_message_control=0x8007,
    lnr_control=0x0102,
    tph_control=0x01020304,
    mmio_ranges=(
        MmioRange(first_page=0xD0000, pages=16, attributes=UPDATABLE, range_id=0),
        MmioRange(first_page=0xD0010, pages=1, attributes=RangeAttributes.MSIX_TABLE, range_id=2),
    ),
    device_info=b"net",
)


@dataclass(frozen=True)
class OneSession:
    id: int


def make_interface(**options: object) -> Interface:
    return Interface(FUNCTION, lambda parameters: REPORT, **options)  # type: ignore[arg-type]


@dataclass
class Device:
    """A responder with one interface."""

    interface: Interface = field(default_factory=make_interface)

    def __post_init__(self) -> None:
        self.responder = TdispResponder({FUNCTION: self.interface}, portion_limit=20)

    def host(self, session: int = 1, function: int = FUNCTION) -> TdispRequester:
        return TdispRequester(
            lambda payload: self.responder.respond(OneSession(session), payload), function
        )

    def ask(self, message: TdispMessage, session: int = 1) -> TdispMessage:
        return tdisp.parse(self.responder.respond(OneSession(session), message.pack()))


@pytest.fixture
def device() -> Device:
    return Device()


def in_state(interface: Interface, state: TdiState) -> bytes:
    """Bring an unlocked interface to `state`; the nonce of its lock."""
    if state is TdiState.CONFIG_UNLOCKED:
        return b""
    nonce = interface.lock(LockParameters(), 1)
    if state is TdiState.RUN:
        interface.start(nonce)
    elif state is TdiState.ERROR:
        interface.error("a test")
    assert interface.state is state
    return nonce


@contextmanager
def refused(code: TdispErrorCode) -> Iterator[None]:
    with pytest.raises(TdispError) as caught:
        yield
    assert caught.value.code == code


U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
RANGES = st.builds(MmioRange, first_page=U64, pages=U32, attributes=U16, range_id=U16)
REPORTS = st.builds(
    Report,
    interface_info=U16,
    msix_message_control=U16,
    lnr_control=U16,
    tph_control=U32,
    mmio_ranges=st.lists(RANGES, max_size=5).map(tuple),
    device_info=st.binary(max_size=20),
)
LOCKS = st.builds(
    LockParameters,
    flags=U16,
    stream_id=U8,
    mmio_reporting_offset=st.integers(-(1 << 63), (1 << 63) - 1),
    bind_p2p_address_mask=U64,
)
CAPABILITIES = st.builds(
    TdispCapabilities,
    dsm_caps=U32,
    requests=st.integers(0, (1 << 128) - 1),
    lock_flags=U16,
    address_width=U8,
    outstanding=U8,
    outstanding_all=U8,
)
NONCES = st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)
FIELDS = {
    "versions": st.binary(max_size=255),
    "tsm_caps": U32,
    "capabilities": CAPABILITIES,
    "parameters": LOCKS,
    "nonce": NONCES,
    "offset": U16,
    "length": U16,
    "remainder": U16,
    "portion": st.binary(max_size=40),
    "state": U8,
    "stream_id": U8,
    "mmio_range": RANGES,
    "registry": U8,
    "vendor": st.binary(max_size=255),
    "data": st.binary(max_size=20),
    "config": U32,
    "error": U32,
    "extended": st.binary(max_size=20),
    "function_id": U32,
    "version": U8,
}


def messages_of(kind: type[TdispMessage]) -> st.SearchStrategy[TdispMessage]:
    values = {each.name: FIELDS[each.name] for each in fields(kind)}
    if kind is ErrorResponse:
        values["data"] = U32
    return st.builds(kind, **values)


MESSAGES = st.sampled_from(sorted(tdisp.MESSAGES)).flatmap(
    lambda code: messages_of(tdisp.MESSAGES[code])
)


@given(MESSAGES)
def test_messages_are_parsed_as_they_were_packed(message: TdispMessage) -> None:
    assert tdisp.parse(message.pack()) == message


@given(MESSAGES, st.data())
def test_mutated_messages_raise_nothing_but_the_decode_error(
    message: TdispMessage, data: st.DataObject
) -> None:
    cut = mutated(message.pack(), data)
    try:
        parsed = tdisp.parse(cut)
    except SpdmDecodeError:
        return
    assert tdisp.parse(parsed.pack()) == parsed


@given(REPORTS)
def test_reports_are_parsed_as_they_were_packed(report: Report) -> None:
    packed = report.pack()
    assert Report.parse(packed) == report
    assert len(packed) == 20 + 16 * len(report.mmio_ranges) + len(report.device_info)


@given(REPORTS, st.data())
def test_mutated_reports_raise_nothing_but_the_decode_error(
    report: Report, data: st.DataObject
) -> None:
    cut = mutated(report.pack(), data)
    try:
        parsed = Report.parse(cut)
    except SpdmDecodeError:
        return
    assert Report.parse(parsed.pack()) == parsed


def mutated(packed: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(packed)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(U8)
    kept = data.draw(st.sampled_from((len(changed), data.draw(st.integers(0, len(changed))))))
    return bytes(changed[:kept]) + data.draw(st.binary(max_size=4))


def test_every_type_has_a_layout() -> None:
    assert set(tdisp.MESSAGES) == set(TdispCode)


INTERFACE_ID = "00010000 0000000000000000"


@pytest.mark.parametrize(
    ("message", "packed"),
    [
        (GetTdispVersion(function_id=FUNCTION), f"10 81 0000 {INTERFACE_ID}"),
        (VersionResponse(function_id=FUNCTION), f"10 01 0000 {INTERFACE_ID} 01 10"),
        (
            CapabilitiesResponse(
                function_id=FUNCTION,
                capabilities=TdispCapabilities(
                    dsm_caps=1,
                    requests=0xFE,
                    lock_flags=7,
                    address_width=52,
                    outstanding=2,
                    outstanding_all=3,
                ),
            ),
            f"10 02 0000 {INTERFACE_ID} 01000000 fe {'00' * 15} 0700 000000 34 02 03",
        ),
        (
            LockInterfaceRequest(
                function_id=FUNCTION,
                parameters=LockParameters(
                    flags=0x1F,
                    stream_id=9,
                    mmio_reporting_offset=-0x1000,
                    bind_p2p_address_mask=0x0102030405060708,
                ),
            ),
            f"10 83 0000 {INTERFACE_ID} 1f00 09 00 00f0ffffffffffff 0807060504030201",
        ),
        (
            GetDeviceInterfaceReport(function_id=FUNCTION, offset=0x1234, length=0x40),
            f"10 84 0000 {INTERFACE_ID} 3412 4000",
        ),
        (
            DeviceInterfaceReport(function_id=FUNCTION, portion=b"\xaa\xbb", remainder=5),
            f"10 04 0000 {INTERFACE_ID} 0200 0500 aabb",
        ),
        (
            DeviceInterfaceState(function_id=FUNCTION, state=TdiState.ERROR),
            f"10 05 0000 {INTERFACE_ID} 03",
        ),
        (
            ErrorResponse(function_id=FUNCTION, error=0x104, data=6),
            f"10 7f 0000 {INTERFACE_ID} 04010000 06000000",
        ),
        (
            VdmRequest(function_id=FUNCTION, registry=1, vendor=b"\x98\x1e", data=b"\x05"),
            f"10 8b 0000 {INTERFACE_ID} 01 02 981e 05",
        ),
    ],
)
def test_layouts_are_those_of_the_specification(message: TdispMessage, packed: str) -> None:
    assert message.pack() == bytes.fromhex(packed)


def test_the_report_is_laid_out_to_the_bit() -> None:
    assert REPORT.pack() == bytes.fromhex(
        "0300 0000 0780 0201 04030201 02000000"
        "00000d0000000000 10000000 0800 0000"
        "10000d0000000000 01000000 0100 0200"
        "03000000 6e6574"
    )


@pytest.mark.parametrize("kind", [LockInterfaceResponse, StartInterfaceRequest])
def test_the_nonce_shows_in_no_representation(kind: type[TdispMessage]) -> None:
    message = kind(nonce=b"n" * NONCE_SIZE)  # type: ignore[call-arg]
    assert "nnnn" not in repr(message)


def test_a_function_has_a_segment_only_when_it_is_not_the_first() -> None:
    assert function_id(0x1234) == 0x1234
    assert function_id(0x1234, 5) == 0x01051234
    assert canonical_function_id(0xFF051234) == 0x01051234
    assert canonical_function_id(0x01001234) == 0x1234
    assert canonical_function_id(0x00051234) == 0x1234


@given(st.integers(0, (1 << 52) - 1), st.integers(-(1 << 51), 1 << 51))
def test_a_range_gives_its_address_back(page: int, moved: int) -> None:
    offset = moved << 12
    reported = MmioRange.of(page << 12, 0x3000, offset, attributes=0, range_id=4)
    assert reported.first_page == page + moved & (1 << 52) - 1
    assert reported.address(offset) == page << 12
    assert (reported.pages, reported.size) == (3, 0x3000)


def test_the_request_mask_counts_from_80h() -> None:
    assert request_mask((TdispCode.GET_TDISP_VERSION, TdispCode.STOP_INTERFACE_REQUEST)) == 0x82


# The state machine of one interface


def test_an_interface_is_locked_run_and_stopped() -> None:
    interface = make_interface()
    seen = [interface.state]
    nonce = interface.lock(LockParameters(stream_id=4), 1)
    seen.append(interface.state)
    assert (interface.owner, interface.parameters) == (1, LockParameters(stream_id=4))
    assert Report.parse(interface.report()) == REPORT
    interface.start(nonce)
    seen.append(interface.state)
    assert Report.parse(interface.report()) == REPORT
    interface.stop()
    seen.append(interface.state)
    assert seen == [0, 1, 2, 0]
    assert (interface.owner, interface.parameters) == (None, None)


LEGAL = {
    "lock": {TdiState.CONFIG_UNLOCKED},
    "report": {TdiState.CONFIG_LOCKED, TdiState.RUN},
    "start": {TdiState.CONFIG_LOCKED},
    "set_mmio_attribute": {TdiState.RUN},
}


@pytest.mark.parametrize("state", TdiState)
@pytest.mark.parametrize("action", LEGAL)
def test_requests_are_refused_in_other_states(action: str, state: TdiState) -> None:
    interface = make_interface()
    nonce = in_state(interface, state)
    actions: dict[str, Callable[[], object]] = {
        "lock": lambda: interface.lock(LockParameters(), 1),
        "report": interface.report,
        "start": lambda: interface.start(nonce),
        "set_mmio_attribute": lambda: interface.set_mmio_attribute(REPORT.mmio_ranges[0]),
    }
    if state in LEGAL[action]:
        actions[action]()
        return
    with refused(TdispErrorCode.INVALID_INTERFACE_STATE):
        actions[action]()
    assert interface.state is state


@pytest.mark.parametrize("state", TdiState)
def test_stop_and_reset_unlock_from_every_state(state: TdiState) -> None:
    for leave in (Interface.stop, Interface.reset):
        interface = make_interface()
        in_state(interface, state)
        leave(interface)
        assert interface.state is TdiState.CONFIG_UNLOCKED
        assert (interface.reason, interface.owner) == (None, None)


@pytest.mark.parametrize("state", TdiState)
def test_a_failure_counts_only_when_locked_or_running(state: TdiState) -> None:
    interface = make_interface()
    in_state(interface, state)
    interface.error("BAR 0 changed")
    if state in (TdiState.CONFIG_LOCKED, TdiState.RUN):
        assert interface.state is TdiState.ERROR
        assert interface.reason == "BAR 0 changed"
    else:
        assert interface.state is state
        assert interface.reason == (None if state is TdiState.CONFIG_UNLOCKED else "a test")


def test_a_wrong_nonce_leaves_the_interface_locked_and_the_nonce_valid() -> None:
    interface = make_interface()
    nonce = interface.lock(LockParameters(), 1)
    for wrong in (bytes(NONCE_SIZE), nonce[:-1], b""):
        with refused(TdispErrorCode.INVALID_NONCE):
            interface.start(wrong)
    interface.start(nonce)
    assert interface.state is TdiState.RUN


def test_the_nonce_of_an_earlier_lock_does_not_start() -> None:
    interface = make_interface()
    old = interface.lock(LockParameters(), 1)
    interface.stop()
    interface.lock(LockParameters(), 1)
    with refused(TdispErrorCode.INVALID_NONCE):
        interface.start(old)


@pytest.mark.parametrize(
    "state", [TdiState.CONFIG_LOCKED, TdiState.RUN, TdiState.ERROR, TdiState.CONFIG_UNLOCKED]
)
def test_the_end_of_the_session_that_locked_is_an_error(state: TdiState) -> None:
    interface = make_interface()
    in_state(interface, state)
    interface.session_ended(2)
    assert interface.state is state
    interface.session_ended(1)
    expected = state if state is TdiState.CONFIG_UNLOCKED else TdiState.ERROR
    assert interface.state is expected
    assert interface.owner is None


def test_lock_flags_that_are_not_supported_are_refused_and_reserved_ones_ignored() -> None:
    interface = make_interface()
    with refused(TdispErrorCode.INVALID_REQUEST):
        interface.lock(LockParameters(flags=LockFlags.BIND_P2P), 1)
    interface.lock(LockParameters(flags=0xFFE0 | LockFlags.LOCK_MSIX), 1)


def test_the_hardware_decides_whether_an_interface_can_be_locked() -> None:
    asked: list[tuple[LockParameters, int]] = []

    def lockable(parameters: LockParameters, session: int) -> None:
        asked.append((parameters, session))
        raise TdispError(TdispErrorCode.INVALID_REQUEST, "the stream has no keys")

    interface = make_interface(lockable=lockable)
    with refused(TdispErrorCode.INVALID_REQUEST):
        interface.lock(LockParameters(stream_id=3), 8)
    assert asked == [(LockParameters(stream_id=3), 8)]
    assert interface.state is TdiState.CONFIG_UNLOCKED


def _no_entropy(size: int) -> bytes:
    raise OSError("no entropy")


@pytest.mark.parametrize("random", [_no_entropy, lambda size: b""])
def test_without_entropy_nothing_is_locked(random: Callable[[int], bytes]) -> None:
    interface = make_interface(random=random)
    with refused(TdispErrorCode.INSUFFICIENT_ENTROPY):
        interface.lock(LockParameters(), 1)
    assert interface.state is TdiState.CONFIG_UNLOCKED


@pytest.mark.parametrize(
    "report", [Report(device_info=bytes(MAX_REPORT_SIZE)), Report(interface_info=1 << 16)]
)
def test_a_report_that_cannot_be_sent_prevents_the_lock(report: Report) -> None:
    interface = Interface(FUNCTION, lambda parameters: report)
    with refused(TdispErrorCode.INVALID_DEVICE_CONFIGURATION):
        interface.lock(LockParameters(), 1)
    assert interface.state is TdiState.CONFIG_UNLOCKED


@pytest.mark.parametrize(
    "disturb",
    [
        lambda interface: interface.error("BAR 0 changed"),
        Interface.reset,
        lambda interface: interface.session_ended(1),
    ],
)
def test_what_happens_while_locking_prevents_the_lock(
    disturb: Callable[[Interface], None],
) -> None:
    def report(parameters: LockParameters) -> Report:
        disturb(interface)
        return REPORT

    interface = Interface(FUNCTION, report)
    with refused(TdispErrorCode.INVALID_DEVICE_CONFIGURATION):
        interface.lock(LockParameters(), 1)
    assert interface.state is TdiState.CONFIG_UNLOCKED


def test_a_second_lock_while_the_first_is_under_way_is_busy() -> None:
    answers: list[int] = []

    def report(parameters: LockParameters) -> Report:
        with pytest.raises(TdispError) as caught:
            interface.lock(parameters, 2)
        answers.append(caught.value.code)
        return REPORT

    interface = Interface(FUNCTION, report)
    interface.lock(LockParameters(), 1)
    assert answers == [TdispErrorCode.BUSY]
    assert interface.owner == 1


def test_the_hardware_learns_of_every_change() -> None:
    seen: list[tuple[TdiState, TdiState]] = []
    interface = make_interface(on_change=lambda which, old, new: seen.append((old, new)))
    interface.stop()
    interface.start(interface.lock(LockParameters(), 1))
    interface.error("a stream was lost")
    interface.error("and another one")
    interface.stop()
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 0)]


def test_the_hardware_may_look_and_act_from_its_callbacks() -> None:
    def on_change(which: Interface, old: TdiState, new: TdiState) -> None:
        if new is TdiState.RUN:
            which.error("failed at once")

    interface = make_interface(on_change=on_change)
    interface.start(interface.lock(LockParameters(), 1))
    assert interface.state is TdiState.ERROR


def test_an_updatable_range_changes_and_the_report_does_not() -> None:
    interface = make_interface()
    in_state(interface, TdiState.RUN)
    updatable, fixed = REPORT.mmio_ranges
    assert not interface.is_non_tee(updatable)
    shared = replace(updatable, attributes=RangeAttributes.IS_NON_TEE_MEM)
    interface.set_mmio_attribute(shared)
    assert interface.is_non_tee(updatable)
    assert Report.parse(interface.report()) == REPORT
    interface.set_mmio_attribute(replace(shared, attributes=0))
    assert not interface.is_non_tee(updatable)
    for other in (fixed, replace(shared, pages=1), replace(shared, range_id=9)):
        with refused(TdispErrorCode.INVALID_REQUEST):
            interface.set_mmio_attribute(other)
    interface.set_mmio_attribute(shared)
    interface.stop()
    in_state(interface, TdiState.RUN)
    assert not interface.is_non_tee(updatable)


def test_errors_from_many_threads_while_locking_never_leave_a_broken_lock() -> None:
    interface = make_interface()
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            interface.error("changed")
            interface.stop()

    threads = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in threads:
        thread.start()
    outcomes = set()
    try:
        for _ in range(200):
            try:
                interface.start(interface.lock(LockParameters(), 1))
                outcomes.add(0)
            except TdispError as error:
                outcomes.add(error.code)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert outcomes <= {
        0,
        TdispErrorCode.INVALID_DEVICE_CONFIGURATION,
        TdispErrorCode.INVALID_INTERFACE_STATE,
        TdispErrorCode.INVALID_NONCE,
    }
    interface.stop()
    assert interface.state is TdiState.CONFIG_UNLOCKED


# The device's side


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


# The host's side


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        bytes(HEADER_SIZE),
        DeviceInterfaceState(function_id=FUNCTION + 1).pack(),
        DeviceInterfaceState(function_id=FUNCTION, version=0x11).pack(),
        DeviceInterfaceState(function_id=FUNCTION, state=4).pack(),
        DeviceInterfaceState(function_id=FUNCTION).pack() + b"\0",
        VersionResponse(function_id=FUNCTION).pack(),
        GetDeviceInterfaceState(function_id=FUNCTION).pack(),
    ],
)
def test_the_host_refuses_an_answer_to_something_else(answer: bytes) -> None:
    with pytest.raises(SpdmError) as caught:
        TdispRequester(lambda payload: answer, FUNCTION).state()
    assert caught.value.code == ErrorCode.INVALID_RESPONSE_CODE


@pytest.mark.parametrize(
    "portions",
    [
        [(b"", 5)],
        [(b"abcde", 0)],
        [(b"abcd", 5), (b"ef", 2)],
        [(b"abcd", 5), (b"ef", 4)],
        [(b"abcd", 0xFFFF)],
        [(b"abcd", 2), (b"ef", 0xFFFF)],
    ],
)
def test_the_host_refuses_portions_that_do_not_fit_together(
    portions: list[tuple[bytes, int]],
) -> None:
    answers: Iterator[bytes] = (
        DeviceInterfaceReport(function_id=FUNCTION, portion=portion, remainder=remainder).pack()
        for portion, remainder in portions
    )
    with pytest.raises(SpdmError) as caught:
        TdispRequester(lambda payload: next(answers), FUNCTION).report(4)
    assert caught.value.code == ErrorCode.INVALID_RESPONSE_CODE


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (TdispErrorCode.BUSY, errno.EBUSY),
        (TdispErrorCode.INVALID_INTERFACE, errno.ENODEV),
        (TdispErrorCode.UNSUPPORTED_REQUEST, errno.EOPNOTSUPP),
        (TdispErrorCode.UNSPECIFIED, errno.EPROTO),
        (0x999, errno.EPROTO),
    ],
)
def test_the_host_raises_what_the_device_answered(code: int, number: int) -> None:
    answer = ErrorResponse(function_id=FUNCTION, error=code, data=3, extended=b"more").pack()
    with pytest.raises(TdispError) as caught:
        TdispRequester(lambda payload: answer, FUNCTION).stop()
    error = caught.value
    assert (error.code, error.data, error.extended, error.errno) == (code, 3, b"more", number)


def test_optional_requests_reach_the_device(device: Device) -> None:
    host = device.host()
    for action, code in (
        (lambda: host.bind_p2p_stream(1), 0x88),
        (lambda: host.unbind_p2p_stream(1), 0x89),
        (lambda: host.vdm(0, b"\x01\x00", b"x"), 0x8B),
        (lambda: host.set_config(1), 0x8C),
    ):
        with pytest.raises(TdispError) as caught:
            action()
        assert (caught.value.code, caught.value.data) == (TdispErrorCode.UNSUPPORTED_REQUEST, code)


def test_an_interface_without_a_device_reports_its_ranges() -> None:
    interface = fixed_interface(0xBEEF, [(0x10000000, 0x4000), (0x20000000, 0x1000)])
    interface.lock(LockParameters(flags=1, mmio_reporting_offset=0xD0000000), 1)
    report = Report.parse(interface.report())
    assert report.interface_info == 3
    assert report.mmio_ranges == (
        MmioRange(first_page=0xE0000, pages=4, range_id=0),
        MmioRange(first_page=0xF0000, pages=1, range_id=1),
    )


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
