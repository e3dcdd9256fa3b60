# SPDX-License-Identifier: MIT
"""Tests of messages as tables of fields."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tsmfs.spdm.wire import (
    Message,
    Record,
    Sizes,
    SpdmDecodeError,
    array,
    count,
    counted,
    declare,
    declare_record,
    digests,
    raw,
    reserved,
    rest,
    since,
    sized,
    total,
    u8,
    u16,
    u32,
    u64,
    when,
)


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Record):
    WIRE = (u8("left"), u16("right"))

    left: int = 0
    right: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    CODE = 0x55
    WIRE = (
        u8("mask"),
        count("pairs", 1),
        total(2),
        reserved(2),
        u32("word"),
        u64("long"),
        raw("fixed", 3),
        sized("hashed", "hash"),
        count("data", 2),
        since(0x13, u16("newer")),
        when(lambda values: bool(values["mask"] & 2), u8("extra")),
        counted("data"),
        array("pairs", Pair),
        digests("digests", "mask"),
    )

    mask: int = 0
    word: int = 0
    long: int = 0
    fixed: bytes = bytes(3)
    hashed: bytes = b""
    newer: int = 0
    extra: int = 0
    data: bytes = b""
    pairs: tuple[Pair, ...] = ()
    digests: tuple[bytes, ...] = ()


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Tail(Message):
    CODE = 0x56
    WIRE = (reserved(2), rest("tail"))

    tail: bytes = b""


SIZES = Sizes(hash=2)
SAMPLE = Sample(
    version=0x13,
    mask=0x82,
    word=0x01020304,
    long=0x05,
    fixed=b"abc",
    hashed=b"hh",
    newer=0x0607,
    extra=0x08,
    data=b"data",
    pairs=(Pair(left=1, right=2), Pair(left=3, right=4)),
    digests=(b"d1", b"d7"),
)
PACKED = bytes.fromhex(
    "1355" "82" "02" "2c00" "0000" "04030201" "0500000000000000" "616263" "6868" "0400" "0706" "08"
    "64617461" "010200" "030400" "6431" "6437"
)  # fmt: skip


def test_fields_are_packed_in_their_order_and_little_endian() -> None:
    assert len(PACKED) == 0x2C
    assert SAMPLE.pack(SIZES) == PACKED


def test_a_message_is_taken_from_the_middle_of_others() -> None:
    assert Sample.take(b"before" + PACKED + b"behind", SIZES, 6) == (SAMPLE, len(PACKED))
    with pytest.raises(SpdmDecodeError, match="3 bytes are no SPDM message"):
        Sample.take(PACKED, SIZES, len(PACKED) - 3)


def test_what_was_packed_is_parsed() -> None:
    assert Sample.parse(PACKED, SIZES) == SAMPLE


def test_a_field_of_a_later_version_is_absent_before_it() -> None:
    older = Sample(version=0x12, hashed=b"hh")
    packed = older.pack(SIZES)
    assert len(packed) == 27
    assert Sample.parse(packed, SIZES) == older


def test_a_value_that_the_message_does_not_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="newer"):
        Sample(version=0x12, newer=1, hashed=b"hh").pack(SIZES)
    with pytest.raises(ValueError, match="extra"):
        Sample(extra=1, hashed=b"hh").pack(SIZES)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Sample(hashed=b"h"), "hashed has 1 bytes"),
        (Sample(hashed=b"hh", mask=0x100), "mask does not fit"),
        (Sample(hashed=b"hh", fixed=b""), "fixed has 0 bytes"),
        (Sample(hashed=b"hh", data=bytes(0x10000)), "data is too long"),
        (Sample(hashed=b"hh", mask=1), "0 digests"),
        (Sample(hashed=b"hh", mask=1, digests=(b"x",)), "a digest has 1 bytes"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(message: Sample, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        message.pack(SIZES)


@pytest.mark.parametrize("size", range(len(PACKED)))
def test_a_message_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(SpdmDecodeError):
        Sample.parse(PACKED[:size], SIZES)


def test_a_wrong_total_length_is_refused() -> None:
    wrong = PACKED[:4] + b"\x30" + PACKED[5:]
    with pytest.raises(SpdmDecodeError, match="its length says 48"):
        Sample.parse(wrong, SIZES)


def test_reserved_fields_are_ignored() -> None:
    other = PACKED[:6] + b"\xff\xff" + PACKED[8:]
    assert Sample.parse(other, SIZES) == SAMPLE


def test_another_code_is_refused() -> None:
    with pytest.raises(SpdmDecodeError, match="code 0x56"):
        Sample.parse(b"\x12\x56\x00\x00")


def test_padding_is_taken_as_far_as_it_is_allowed() -> None:
    assert Sample.parse(PACKED + bytes(3), SIZES, padding=3) == SAMPLE
    assert Sample.take(PACKED + bytes(9), SIZES) == (SAMPLE, len(PACKED))
    with pytest.raises(SpdmDecodeError, match="4 bytes behind"):
        Sample.parse(PACKED + bytes(4), SIZES, padding=3)


def test_the_rest_goes_up_to_the_end() -> None:
    assert Tail.parse(b"\x12\x56\x00\x00rest") == Tail(tail=b"rest")
    assert Tail.parse(b"\x12\x56\x00\x00").tail == b""


def test_a_record_has_no_header() -> None:
    assert Pair(left=1, right=0x0203).pack() == b"\x01\x03\x02"
    assert Pair.parse(b"\x01\x03\x02") == Pair(left=1, right=0x0203)
    with pytest.raises(SpdmDecodeError, match="1 bytes behind"):
        Pair.parse(b"\x01\x03\x02\x00")


def test_a_table_that_does_not_fit_its_fields_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="differ"):

        @declare
        @dataclass(frozen=True, slots=True, kw_only=True)
        class Forgotten(Message):
            CODE = 1
            WIRE = (u8("one"),)

            other: int = 0

    with pytest.raises(TypeError, match="no default"):

        @declare
        @dataclass(frozen=True, slots=True, kw_only=True)
        class Absent(Message):
            CODE = 1
            WIRE = (since(0x13, u8("one")),)

            one: int

    with pytest.raises(TypeError, match="differ"):

        @declare_record
        @dataclass(frozen=True, slots=True, kw_only=True)
        class Other(Record):
            WIRE = (u8("one"),)
