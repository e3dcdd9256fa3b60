# SPDX-License-Identifier: MIT
"""Integers as sysfs files take them (lib/kstrtox.c)."""

from __future__ import annotations

import errno

from tsmfs.kernel.errors import fail


def kstrtouint(data: bytes, *, bits: int = 64) -> int:
    """An unsigned integer of *bits*, in C's notation, one newline allowed.

    EINVAL when it is none, ERANGE when it does not fit.
    """
    text = data.split(b"\0")[0].decode("latin-1").removesuffix("\n").removeprefix("+")
    base = 10
    if text[:2].lower() == "0x" and text[2:3].isalnum():
        text, base = text[2:], 16
    elif text[:1] == "0" and len(text) > 1:
        base = 8
    if not text or not text.isascii() or not text.isalnum():
        fail(errno.EINVAL)
    try:
        value = int(text, base)
    except ValueError:
        fail(errno.EINVAL)
    if value >> bits:
        fail(errno.ERANGE)
    return value


def kstrtoint(data: bytes) -> int:
    """A signed 32-bit integer; EINVAL when it is none, ERANGE when it does not fit."""
    negative = data[:1] == b"-"
    value = kstrtouint(data[1:] if negative else data)
    value = -value if negative else value
    if not -(1 << 31) <= value < 1 << 31:
        fail(errno.ERANGE)
    return value
