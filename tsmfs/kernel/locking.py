# SPDX-License-Identifier: MIT
"""Sleeping locks as the kernel has them: a fair reader/writer semaphore and a mutex."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator

from tsmfs.kernel import task
from tsmfs.kernel.errors import fail


def _wait(condition: threading.Condition, ready: Callable[[], bool]) -> None:
    while not ready():
        condition.wait()


def _wait_interruptible(condition: threading.Condition, ready: Callable[[], bool]) -> None:
    caller = task.current()
    while not ready():
        if caller.interrupted():
            fail(errno.EINTR)
        condition.wait(task.POLL_INTERVAL)


_Wait = Callable[[threading.Condition, Callable[[], bool]], None]


class _ReadLock:
    """Holds a semaphore for reading in a ``with`` block; one serves all readers."""

    __slots__ = ("_sem",)

    def __init__(self, sem: RwSem) -> None:
        self._sem = sem

    def __enter__(self) -> None:
        self._sem._down_read(_wait_interruptible)

    def __exit__(self, *exception: object) -> None:
        self._sem._up_read()


class RwSem:
    """Reader/writer semaphore: a waiting writer keeps later readers out.

    Unlike the kernel's, a holder may take it again (a writer for reading or writing, a
    reader for reading), so that a driver that calls back into the core cannot hang a mount.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._read_lock = _ReadLock(self)
        self._readers: dict[int, int] = {}
        self._writer: int | None = None
        self._depth = 0
        self._writers_waiting = 0
        self._readers_waiting = 0
        self._granted = 0
        """Readers who go before the next writer: they waited while one wrote."""

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Hold for reading; waits without end (``down_read()``)."""
        self._down_read(_wait)
        try:
            yield
        finally:
            self._up_read()

    def read_interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Hold for reading; EINTR when the caller gives up (``down_read_interruptible()``)."""
        return self._read_lock

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Hold for writing; waits without end (``down_write()``)."""
        self._down_write(_wait)
        try:
            yield
        finally:
            self._up_write()

    @contextlib.contextmanager
    def write_killable(self) -> Iterator[None]:
        """Hold for writing; EINTR when the caller gives up (``down_write_killable()``)."""
        self._down_write(_wait_interruptible)
        try:
            yield
        finally:
            self._up_write()

    def held_for_writing(self) -> bool:
        """True when this thread holds it for writing."""
        return self._writer == threading.get_ident()

    def assert_held_write(self) -> None:
        """``lockdep_assert_held_write()``."""
        if not self.held_for_writing():
            raise AssertionError(f"{self.name} is not held for writing")

    def _down_read(self, wait: _Wait) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._writer == me:
                self._depth += 1
                return
            held = self._readers.get(me, 0)
            if not held and (self._writer is not None or self._writers_waiting):
                self._wait_to_read(wait)
            self._readers[me] = held + 1

    def _wait_to_read(self, wait: _Wait) -> None:
        self._readers_waiting += 1
        try:
            wait(
                self._condition,
                lambda: self._writer is None and bool(self._granted or not self._writers_waiting),
            )
            self._granted -= self._granted > 0
        finally:
            self._readers_waiting -= 1
            if self._granted > self._readers_waiting:
                self._granted = self._readers_waiting
                self._condition.notify_all()

    def _up_read(self) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._writer == me:
                self._depth -= 1
                return
            held = self._readers.pop(me) - 1
            if held:
                self._readers[me] = held
            elif self._writers_waiting:
                self._condition.notify_all()

    def _down_write(self, wait: _Wait) -> None:
        me = threading.get_ident()
        with self._condition:
            if self._writer == me:
                self._depth += 1
                return
            if me in self._readers:
                raise AssertionError(f"{self.name}: a reader cannot become a writer")
            self._writers_waiting += 1
            try:
                wait(
                    self._condition,
                    lambda: self._writer is None and not self._readers and not self._granted,
                )
            except OSError:
                # The readers that this writer kept out may go on.
                self._condition.notify_all()
                raise
            finally:
                self._writers_waiting -= 1
            self._writer = me
            self._depth = 1

    def _up_write(self) -> None:
        with self._condition:
            self._depth -= 1
            if not self._depth:
                self._writer = None
                self._granted = self._readers_waiting
                self._condition.notify_all()


class Mutex:
    """Mutual exclusion; the holder may take it again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold; waits without end (``mutex_lock()``)."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def lock_interruptible(self) -> Iterator[None]:
        """Hold; EINTR when the caller gives up (``mutex_lock_interruptible()``)."""
        if not self._lock.acquire(blocking=False):
            caller = task.current()
            while not self._lock.acquire(timeout=task.POLL_INTERVAL):
                if caller.interrupted():
                    fail(errno.EINTR)
        try:
            yield
        finally:
            self._lock.release()
