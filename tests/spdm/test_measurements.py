# SPDX-License-Identifier: MIT
"""Tests of measurement blocks, their record and their summary."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.algorithms import BaseHash, MeasurementHash
from tsmfs.spdm.measurements import (
    MAX_VALUE_SIZE,
    Measurement,
    MeasurementBlock,
    MeasurementKind,
    pack_record,
    parse_record,
    summary_hash,
)
from tsmfs.spdm.messages import SummaryType
from tsmfs.spdm.wire import SpdmDecodeError

SHA = MeasurementHash.SHA_256
ROM = Measurement(1, MeasurementKind.IMMUTABLE_ROM, b"rom")
FIRMWARE = Measurement(2, MeasurementKind.MUTABLE_FIRMWARE, b"firmware")
FUSES = Measurement(3, MeasurementKind.HARDWARE_CONFIGURATION, b"fuses")
SVN = Measurement(4, MeasurementKind.SECURE_VERSION_NUMBER, bytes(8))

BLOCKS = st.lists(
    st.builds(
        MeasurementBlock,
        st.integers(0, 255),
        st.integers(0, 0x7F),
        st.booleans(),
        st.binary(max_size=40),
    ),
    max_size=5,
)


def test_a_block_is_laid_out_as_specified() -> None:
    raw = pack_record((ROM.block(SHA, raw=True),))
    assert raw.hex() == "01010600800300" + b"rom".hex()
    digest = pack_record((FIRMWARE.block(SHA, raw=False),))
    assert digest.hex() == "02012300012000" + hashlib.sha256(b"firmware").hexdigest()


def test_a_kind_that_says_something_by_itself_is_always_raw() -> None:
    assert SVN.block(SHA, raw=False) == MeasurementBlock(4, SVN.kind, True, bytes(8))


def test_without_a_hash_everything_is_raw() -> None:
    assert ROM.block(MeasurementHash.RAW_ONLY, raw=False).raw


def test_a_value_that_fits_no_block_is_told_as_its_digest() -> None:
    largest = Measurement(1, MeasurementKind.MUTABLE_FIRMWARE, bytes(MAX_VALUE_SIZE))
    assert largest.block(SHA, raw=True).raw
    larger = Measurement(1, MeasurementKind.MUTABLE_FIRMWARE, bytes(MAX_VALUE_SIZE + 1))
    assert not larger.block(SHA, raw=True).raw
    with pytest.raises(ValueError, match="65533 bytes"):
        larger.block(MeasurementHash.RAW_ONLY, raw=True)


@pytest.mark.parametrize("index", [0, 0xFF, -1])
def test_an_index_that_stands_for_something_else_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="index"):
        Measurement(index, MeasurementKind.IMMUTABLE_ROM, b"")


@given(BLOCKS)
def test_a_record_comes_back_as_it_went(blocks: list[MeasurementBlock]) -> None:
    assert parse_record(pack_record(blocks)) == tuple(blocks)


@given(BLOCKS, st.data())
def test_a_mutated_record_is_parsed_or_refused(
    blocks: list[MeasurementBlock], data: st.DataObject
) -> None:
    record = bytearray(pack_record(blocks)) or bytearray(1)
    record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(record[: data.draw(st.integers(0, len(record)))])
    for mutated in (bytes(record), cut):
        try:
            parsed = parse_record(mutated)
        except SpdmDecodeError:
            continue
        assert pack_record(parsed) == mutated


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("0101", "cut off"),
        ("01020300800000", "specification 0x02"),
        ("01010400800000", "wrong size"),
        ("01010400800100", "wrong size"),
    ],
)
def test_a_record_that_is_none_is_refused(record: str, reason: str) -> None:
    with pytest.raises(SpdmDecodeError, match=reason):
        parse_record(bytes.fromhex(record))


def test_a_summary_covers_the_blocks_of_its_kind() -> None:
    blocks = [one.block(SHA, raw=False) for one in (ROM, FIRMWARE, FUSES)]
    everything = hashlib.sha384(pack_record(blocks)).digest()
    trusted = hashlib.sha384(pack_record(blocks[:2])).digest()
    assert summary_hash(blocks, SummaryType.ALL, BaseHash.SHA_384) == everything
    assert summary_hash(blocks, SummaryType.TCB, BaseHash.SHA_384) == trusted
    assert summary_hash(blocks, SummaryType.NONE, BaseHash.SHA_384) == b""
