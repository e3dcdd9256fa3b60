# SPDX-License-Identifier: MIT
"""What a process has that an operation which fails must not leave behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def open_files() -> dict[int, str]:
    """The open descriptors, and what each of them is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # That of the directory itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children() -> set[int]:
    """The PIDs of the children, also of those that have ended and were not waited for."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        # Processes that are nobody's here come and go meanwhile.
        with contextlib.suppress(OSError):
            _, parent, *_ = entry.read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                found.add(int(entry.parent.name))
    return found


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Descriptors, children, threads and signals are afterwards what they are now."""
    # What earlier tests have left to the collector goes now; what this one leaves to it is left.
    gc.collect()
    before = _state()
    yield
    assert _state() == before


def _state() -> tuple[object, ...]:
    return (
        open_files(),
        children(),
        {thread.name for thread in threading.enumerate()},
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        [signal.getsignal(number) for number in signal.valid_signals()],
    )


def failing(real: Callable[..., Any], number: int, *, call: int = 1) -> Callable[..., Any]:
    """*real*, whose n-th *call* in this process raises OSError with *number*."""
    process = os.getpid()
    calls = 0

    def function(*arguments: Any) -> Any:
        nonlocal calls
        if os.getpid() == process:
            calls += 1
            if calls == call:
                raise OSError(number, os.strerror(number))
        return real(*arguments)

    return function


NO_PROCESS = pytest.mark.parametrize(
    ("name", "number"), [("fork", errno.EAGAIN), ("pipe2", errno.EMFILE)]
)
"""A function of :mod:`os` by which a process is started, and the error with which it fails."""
