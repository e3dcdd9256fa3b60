# SPDX-License-Identifier: MIT
"""The state machine of a TEE device interface."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.spdm.tdisp_peers import FUNCTION, REPORT, in_state, make_interface, refused
from tsmfs.spdm.interface import Interface, fixed_interface
from tsmfs.spdm.tdisp import (
    MAX_REPORT_SIZE,
    NONCE_SIZE,
    LockFlags,
    LockParameters,
    MmioRange,
    RangeAttributes,
    Report,
    TdispError,
    TdispErrorCode,
    TdiState,
)


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


@pytest.mark.parametrize("offset", [1, -1, 0x800, -0x1001])
def test_a_reporting_offset_of_no_whole_pages_is_refused(offset: int) -> None:
    interface = make_interface()
    with refused(TdispErrorCode.INVALID_REQUEST):
        interface.lock(LockParameters(mmio_reporting_offset=offset), 1)
    assert interface.state is TdiState.CONFIG_UNLOCKED
    interface.lock(LockParameters(mmio_reporting_offset=-0x1000), 1)


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
def test_what_happens_while_locking_prevents_the_lock(disturb: Callable[[Interface], None]) -> None:
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


def test_an_interface_without_a_device_reports_its_ranges() -> None:
    interface = fixed_interface(0xBEEF, [(0x10000000, 0x4000), (0x20000000, 0x1000)])
    interface.lock(LockParameters(flags=1, mmio_reporting_offset=0xD0000000), 1)
    report = Report.parse(interface.report())
    assert report.interface_info == 3
    assert report.mmio_ranges == (
        MmioRange(first_page=0xE0000, pages=4, range_id=0),
        MmioRange(first_page=0xF0000, pages=1, range_id=1),
    )
