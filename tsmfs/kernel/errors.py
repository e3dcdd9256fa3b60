# SPDX-License-Identifier: MIT
"""Errors as the kernel returns them: an errno, with a message for the log."""

from __future__ import annotations

import errno as errnos
import os
from typing import NoReturn

EPROBE_DEFER = 517
"""Internal errno of a driver that asks to be probed later (include/linux/errno.h)."""


def fail(errno: int, message: str | None = None) -> NoReturn:
    """Raise ``OSError`` with *errno*; *message* is for the log, user space sees the errno."""
    raise OSError(errno, message or os.strerror(errno))


def errno_of(error: OSError) -> int:
    """The errno that user space may see for *error*: EIO when it carries none of user space's.

    EPROBE_DEFER never leaves the kernel; a write that meets it sees EAGAIN
    (``__device_driver_attach()`` in drivers/base/dd.c).
    """
    if error.errno == EPROBE_DEFER:
        return errnos.EAGAIN
    if not isinstance(error.errno, int) or not 0 < error.errno < EPROBE_DEFER:
        return errnos.EIO
    return error.errno


def parse_errno(text: str) -> int:
    """An errno from its name (``EBUSY``) or number, with or without a minus sign.

    Raises ValueError when it is neither.
    """
    text = text.strip()
    number = getattr(errnos, text.upper().lstrip("-"), None)
    if isinstance(number, int):
        return number
    value = abs(int(text, 0))
    if value and value not in errnos.errorcode:
        raise ValueError(f"{value} is no errno")
    return value
