# SPDX-License-Identifier: MIT
"""Integers as sysfs files take them (lib/kstrtox.c)."""

from __future__ import annotations

import errno
import re

from tsmfs.kernel.errors import fail

_NUMBER = re.compile(rb"0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)")


def kstrtouint(data: bytes, *, bits: int = 64) -> int:
    """An unsigned integer of *bits*, in C's notation, one newline allowed.

    EINVAL when it is none, ERANGE when it does not fit.
    """
    text = data.split(b"\0")[0].removeprefix(b"+").removesuffix(b"\n")
    match = _NUMBER.fullmatch(text)
    if match is None:
        fail(errno.EINVAL)
    hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    if value >> bits:
        fail(errno.ERANGE)
    return value


def kstrtoint(data: bytes) -> int:
    """A signed 32-bit integer; EINVAL when it is none, ERANGE when it does not fit."""
    negative = data[:1] == b"-"
    if data[:2] == b"-+":
        fail(errno.EINVAL)
    value = kstrtouint(data[1:] if negative else data)
    value = -value if negative else value
    if not -(1 << 31) <= value < 1 << 31:
        fail(errno.ERANGE)
    return value
