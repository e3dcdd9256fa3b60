# SPDX-License-Identifier: MIT
"""Errnos: what crosses to user space and what names them."""

from __future__ import annotations

import errno
import os

import pytest

from tsmfs.kernel.errors import EPROBE_DEFER, errno_of, fail, parse_errno


def test_fail_raises_the_errno_with_its_usual_text() -> None:
    with pytest.raises(OSError, match=rf"\[Errno {errno.EBUSY}\] {os.strerror(errno.EBUSY)}"):
        fail(errno.EBUSY)


def test_fail_keeps_a_message_for_the_log() -> None:
    with pytest.raises(OSError, match="the pool is empty"):
        fail(errno.ENOMEM, "the pool is empty")


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (errno.EBUSY, errno.EBUSY),
        (EPROBE_DEFER, errno.EAGAIN),
        (516, 516),
        (518, errno.EIO),
        (0, errno.EIO),
        (-errno.EBUSY, errno.EIO),
        (None, errno.EIO),
    ],
)
def test_only_errnos_of_user_space_leave_the_kernel(inside: int | None, outside: int) -> None:
    error = OSError()
    error.errno = inside
    assert errno_of(error) == outside


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("EBUSY", errno.EBUSY),
        ("ebusy\n", errno.EBUSY),
        ("-EBUSY", errno.EBUSY),
        ("16", 16),
        ("-16", 16),
        ("0x10", 16),
        ("0", 0),
    ],
)
def test_an_errno_is_read_from_its_name_or_number(text: str, number: int) -> None:
    assert parse_errno(text) == number


@pytest.mark.parametrize("text", ["", "EWHAT", "errorcode", "1.5", "4095", "__name__", "E BUSY"])
def test_what_names_no_errno_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what int() says of a text is its own
        parse_errno(text)
