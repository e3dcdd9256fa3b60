# SPDX-License-Identifier: MIT
"""Integers in sysfs files: C's notation, one newline, and nothing else."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import errno_from, fails
from tsmfs.pci.kstrto import kstrtoint, kstrtouint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"00", 0),
        (b"7\n", 7),
        (b"+7", 7),
        (b"0x1F\n", 31),
        (b"0X1f", 31),
        (b"+0x1f", 31),
        (b"017", 15),
        (b"7\0junk", 7),
        (b"7\n\0", 7),
        (b"18446744073709551615", (1 << 64) - 1),
    ],
)
def test_unsigned_integers_are_read_in_c_notation(text: bytes, value: int) -> None:
    assert kstrtouint(text) == value


NO_INTEGERS = [
    b"", b"\n", b"\0", b"+", b"x", b"0x", b"0xg", b"0x\n", b"08", b"7 ", b" 7", b"7\n\n", b"1_0",
    b"++7", b"+-7", b"0o17", b"0b1", b"0x0x7", b"1.0", b"\xb2", b"\xd9\xa3",
]  # fmt: skip


@pytest.mark.parametrize("text", [*NO_INTEGERS, b"-1", b"-0"])
def test_what_is_no_unsigned_integer_is_refused(text: bytes) -> None:
    with fails(errno.EINVAL):
        kstrtouint(text)


@pytest.mark.parametrize("text", [*NO_INTEGERS, b"-", b"--7", b"-+7", b"-x", b"-\n"])
def test_what_is_no_integer_is_refused(text: bytes) -> None:
    with fails(errno.EINVAL):
        kstrtoint(text)


@pytest.mark.parametrize(("bits", "largest"), [(16, 0xFFFF), (31, 0x7FFFFFFF), (64, (1 << 64) - 1)])
def test_what_does_not_fit_is_out_of_range(bits: int, largest: int) -> None:
    assert kstrtouint(b"%d" % largest, bits=bits) == largest
    with fails(errno.ERANGE):
        kstrtouint(b"%d" % (largest + 1), bits=bits)


@pytest.mark.parametrize("text", [b"2147483648", b"-2147483649", b"1" + b"0" * 40])
def test_a_signed_integer_has_32_bits(text: bytes) -> None:
    with fails(errno.ERANGE):
        kstrtoint(text)


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.sampled_from(("{:d}", "{:+d}", "{:#x}")))
def test_every_integer_is_read_back(value: int, notation: str) -> None:
    assert kstrtoint(notation.format(value).encode()) == value


@given(st.binary(max_size=8))
def test_any_bytes_are_an_integer_or_an_errno(data: bytes) -> None:
    assert errno_from(lambda: kstrtoint(data)) in (None, "EINVAL", "ERANGE")
    assert errno_from(lambda: kstrtouint(data)) in (None, "EINVAL", "ERANGE")
