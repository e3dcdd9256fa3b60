# SPDX-License-Identifier: MIT
"""Tests of DOE data objects as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.doe import (
    HEADER_SIZE,
    MAX_DWORDS,
    MAX_OBJECT_SIZE,
    NO_VENDOR,
    PROTOCOLS,
    DataObject,
    DiscoveryRequest,
    DiscoveryResponse,
    ObjectType,
    discover,
)
from tsmfs.spdm.wire import SpdmDecodeError


def test_an_object_is_laid_out_in_little_endian_dwords() -> None:
    packed = DataObject(ObjectType.CMA_SPDM, bytes.fromhex("10840000")).pack()
    assert packed.hex() == "0100010003000000" + "10840000"


@given(
    vendor=st.integers(0, 0xFFFF),
    kind=st.integers(0, 0xFF),
    payload=st.binary(max_size=70),
)
def test_an_object_comes_back_with_its_padding(vendor: int, kind: int, payload: bytes) -> None:
    packed = DataObject(kind, payload, vendor).pack()
    back = DataObject.parse(packed)
    assert (back.vendor, back.kind) == (vendor, kind)
    assert back.payload == payload + bytes(-len(payload) % 4)
    assert back.pack() == packed


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_that_packs_to_them_or_refused(data: bytes) -> None:
    try:
        found = DataObject.parse(data)
    except SpdmDecodeError:
        return
    reserved = bytearray(data)
    reserved[3] = 0
    reserved[6] &= 0x03
    reserved[7] = 0
    assert found.pack() == bytes(reserved)


def test_the_length_of_the_largest_object_reads_zero() -> None:
    packed = DataObject(1, bytes(MAX_OBJECT_SIZE - HEADER_SIZE)).pack()
    assert packed[4:8] == bytes(4)
    assert len(DataObject.parse(packed).payload) == MAX_OBJECT_SIZE - HEADER_SIZE


def test_an_object_longer_than_the_largest_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{MAX_DWORDS + 1} dwords"):
        DataObject(1, bytes(MAX_OBJECT_SIZE - HEADER_SIZE + 1)).pack()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "0 bytes"),
        ("01000100", "4 bytes"),
        ("010001000300000010840000ff", "13 bytes"),
        ("010001000400000010840000", "4 dwords in 12 bytes"),
        ("0100010000000000", "262144 dwords in 8 bytes"),
    ],
)
def test_an_object_whose_length_is_wrong_is_refused(data: str, reason: str) -> None:
    with pytest.raises(SpdmDecodeError, match=reason):
        DataObject.parse(bytes.fromhex(data))


def test_discovery_lists_each_protocol_once_and_then_ends() -> None:
    found = []
    index = 0
    while True:
        request = DiscoveryRequest.parse(DiscoveryRequest(index).pack())
        entry = DiscoveryResponse.parse(discover(request.index).pack())
        found.append((entry.vendor, entry.kind))
        index = entry.next_index
        if index == 0:
            break
    assert tuple(found) == PROTOCOLS


def test_discovery_of_an_index_out_of_range_names_no_vendor() -> None:
    assert discover(len(PROTOCOLS)) == DiscoveryResponse(NO_VENDOR, 0, 0)


@given(st.binary(max_size=8).filter(lambda data: len(data) != 4))
def test_discovery_of_another_size_is_refused(data: bytes) -> None:
    with pytest.raises(SpdmDecodeError):
        DiscoveryRequest.parse(data)
    with pytest.raises(SpdmDecodeError):
        DiscoveryResponse.parse(data)
