# SPDX-License-Identifier: MIT
"""TDISP's layouts: messages, reports and the numbers in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spdm.tdisp_peers import FUNCTION, REPORT
from tests.spdm.tdisp_strategies import MESSAGES, REPORTS, U8
from tsmfs.spdm import tdisp
from tsmfs.spdm.tdisp import (
    NONCE_SIZE,
    CapabilitiesResponse,
    DeviceInterfaceReport,
    DeviceInterfaceState,
    ErrorResponse,
    GetDeviceInterfaceReport,
    GetTdispVersion,
    LockInterfaceRequest,
    LockInterfaceResponse,
    LockParameters,
    MmioRange,
    Report,
    StartInterfaceRequest,
    TdispCapabilities,
    TdispCode,
    TdispMessage,
    TdiState,
    VdmRequest,
    VersionResponse,
    canonical_function_id,
    function_id,
    request_mask,
)
from tsmfs.spdm.wire import SpdmDecodeError


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
