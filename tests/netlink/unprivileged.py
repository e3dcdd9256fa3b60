# SPDX-License-Identifier: MIT
"""Runs a part of a test as a user without any privilege."""

from __future__ import annotations

import os
from collections.abc import Callable

NOBODY = 65534
FAILED = 255


def as_nobody(function: Callable[[], int]) -> int:
    """What *function* returns, a number below 255, in a process of a user without capabilities.

    Where the tests do not run as the superuser it is the user that runs them.
    """
    child = os.fork()
    if child == 0:
        status = FAILED
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
