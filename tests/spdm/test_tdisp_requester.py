# SPDX-License-Identifier: MIT
"""The host's side of TDISP: what it asks, and which answers it refuses."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.spdm.tdisp_peers import FUNCTION, Device
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.tdisp import (
    HEADER_SIZE,
    DeviceInterfaceReport,
    DeviceInterfaceState,
    ErrorResponse,
    GetDeviceInterfaceState,
    TdispError,
    TdispErrorCode,
    VersionResponse,
)
from tsmfs.spdm.tdisp_requester import TdispRequester


@pytest.fixture
def device() -> Device:
    return Device()


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
