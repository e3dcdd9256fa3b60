# SPDX-License-Identifier: MIT
"""The semaphore and the mutex: who waits for whom, and what a caller leaves that gives up."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.machines import STUCK, Caller, errno_of_result, fails, threads
from tsmfs.kernel.locking import Mutex, RwSem
from tsmfs.kernel.task import running_as

Take = Callable[[], AbstractContextManager[None]]

#: Long enough for a thread that does not have to wait, short enough to wait for often.
MOMENT = 0.05


class Holder:
    """A thread that takes a lock and keeps it until it is told to let go."""

    def __init__(self, pool: ThreadPoolExecutor, take: Take) -> None:
        self.caller = Caller()
        self.has_it = threading.Event()
        self._let_go = threading.Event()
        self._future: Future[None] = pool.submit(self._run, take)

    def _run(self, take: Take) -> None:
        with running_as(self.caller.task), take():
            self.has_it.set()
            assert self._let_go.wait(STUCK)

    def got_it(self) -> bool:
        return self.has_it.wait(STUCK)

    def waits(self) -> bool:
        """It waits: it does not have the lock, and has looked for signals in vain."""
        return self.caller.waiting.wait(STUCK) and not self.has_it.wait(MOMENT)

    def let_go(self) -> None:
        self._let_go.set()
        self._future.result(STUCK)

    def kill(self) -> int | None:
        """Send it a signal; what its system call returns."""
        self.caller.kill()
        return errno_of_result(self._future)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with threads() as executor:
        yield executor


@pytest.fixture
def rwsem() -> RwSem:
    return RwSem("test")


def test_readers_share(pool: ThreadPoolExecutor, rwsem: RwSem) -> None:
    readers = [Holder(pool, rwsem.read_interruptible) for _ in range(4)]
    assert all(reader.got_it() for reader in readers)
    for reader in readers:
        reader.let_go()


@pytest.mark.parametrize("kind", ["read_interruptible", "write_killable"])
def test_a_writer_is_alone(pool: ThreadPoolExecutor, rwsem: RwSem, kind: str) -> None:
    writer = Holder(pool, rwsem.write)
    assert writer.got_it()
    other = Holder(pool, getattr(rwsem, kind))
    assert other.waits()
    writer.let_go()
    assert other.got_it()
    other.let_go()


@pytest.mark.parametrize("kind", ["read", "write"])
def test_who_waits_without_end_gets_it_too(
    pool: ThreadPoolExecutor, rwsem: RwSem, kind: str
) -> None:
    writer = Holder(pool, rwsem.write)
    assert writer.got_it()
    other = Holder(pool, getattr(rwsem, kind))
    assert not other.has_it.wait(MOMENT)
    writer.let_go()
    assert other.got_it()
    other.let_go()


def test_a_waiting_writer_keeps_later_readers_out(pool: ThreadPoolExecutor, rwsem: RwSem) -> None:
    first = Holder(pool, rwsem.read)
    assert first.got_it()
    writer = Holder(pool, rwsem.write_killable)
    assert writer.waits()
    late = Holder(pool, rwsem.read_interruptible)
    assert late.waits()

    first.let_go()
    assert writer.got_it()
    assert late.waits()
    writer.let_go()
    assert late.got_it()
    late.let_go()


def test_a_killed_writer_lets_the_readers_behind_it_go_on(
    pool: ThreadPoolExecutor, rwsem: RwSem
) -> None:
    first = Holder(pool, rwsem.read)
    assert first.got_it()
    writer = Holder(pool, rwsem.write_killable)
    assert writer.waits()
    # It waits without looking for signals: nothing but the killed writer can wake it.
    late = Holder(pool, rwsem.read)
    assert not late.has_it.wait(MOMENT)

    assert writer.kill() == errno.EINTR
    assert late.got_it()
    late.let_go()
    first.let_go()


def test_a_killed_reader_holds_nothing_up(pool: ThreadPoolExecutor, rwsem: RwSem) -> None:
    writer = Holder(pool, rwsem.write)
    assert writer.got_it()
    reader = Holder(pool, rwsem.read_interruptible)
    assert reader.waits()
    assert reader.kill() == errno.EINTR
    writer.let_go()

    second = Holder(pool, rwsem.write)
    assert second.got_it()
    second.let_go()


@pytest.mark.parametrize("kind", ["read_interruptible", "write_killable"])
def test_a_signal_does_not_matter_to_who_need_not_wait(rwsem: RwSem, kind: str) -> None:
    caller = Caller()
    caller.kill()
    with running_as(caller.task), getattr(rwsem, kind)():
        assert not caller.waiting.is_set()


def test_a_reader_may_read_again_although_a_writer_waits(
    pool: ThreadPoolExecutor, rwsem: RwSem
) -> None:
    with rwsem.read():
        writer = Holder(pool, rwsem.write_killable)
        assert writer.waits()
        with rwsem.read(), rwsem.read_interruptible():
            pass
        assert writer.waits()
    assert writer.got_it()
    writer.let_go()


def test_a_writer_may_read_and_write_again(pool: ThreadPoolExecutor, rwsem: RwSem) -> None:
    with rwsem.write():
        with rwsem.write_killable(), rwsem.read(), rwsem.read_interruptible():
            assert rwsem.held_for_writing()
        assert rwsem.held_for_writing()
        reader = Holder(pool, rwsem.read_interruptible)
        assert reader.waits()
    assert not rwsem.held_for_writing()
    assert reader.got_it()
    reader.let_go()


def test_a_reader_that_wants_to_write_is_told_rather_than_hung(rwsem: RwSem) -> None:
    with rwsem.read(), pytest.raises(AssertionError, match="test: a reader cannot"), rwsem.write():
        pass
    with rwsem.write():
        pass


def test_an_error_inside_releases_it(pool: ThreadPoolExecutor, rwsem: RwSem) -> None:
    for take in (rwsem.read, rwsem.read_interruptible, rwsem.write, rwsem.write_killable):
        with pytest.raises(ValueError, match="inside"), take():
            raise ValueError("inside")
    other = Holder(pool, rwsem.write)
    assert other.got_it()
    other.let_go()


def test_held_for_writing_is_of_this_thread_alone(pool: ThreadPoolExecutor, rwsem: RwSem) -> None:
    with pytest.raises(AssertionError, match="test is not held for writing"):
        rwsem.assert_held_write()
    with rwsem.write():
        rwsem.assert_held_write()
        assert not pool.submit(rwsem.held_for_writing).result(STUCK)


@pytest.mark.parametrize("kind", ["lock", "lock_interruptible"])
def test_the_mutex_excludes(pool: ThreadPoolExecutor, kind: str) -> None:
    mutex = Mutex("test")
    first = Holder(pool, mutex.lock)
    assert first.got_it()
    second = Holder(pool, getattr(mutex, kind))
    assert not second.has_it.wait(MOMENT)
    first.let_go()
    assert second.got_it()
    second.let_go()


def test_the_holder_of_a_mutex_may_take_it_again(pool: ThreadPoolExecutor) -> None:
    mutex = Mutex("test")
    with mutex.lock(), mutex.lock_interruptible(), mutex.lock():
        other = Holder(pool, mutex.lock_interruptible)
        assert other.waits()
    assert other.got_it()
    other.let_go()


def test_a_killed_waiter_of_a_mutex_holds_nothing_up(pool: ThreadPoolExecutor) -> None:
    mutex = Mutex("test")
    first = Holder(pool, mutex.lock)
    assert first.got_it()
    second = Holder(pool, mutex.lock_interruptible)
    assert second.waits()
    assert second.kill() == errno.EINTR
    first.let_go()
    with mutex.lock():
        pass


def test_a_signal_ends_the_wait_for_a_mutex_that_another_holds(pool: ThreadPoolExecutor) -> None:
    mutex = Mutex("test")
    first = Holder(pool, mutex.lock)
    assert first.got_it()
    caller = Caller()
    caller.kill()
    with running_as(caller.task), fails(errno.EINTR), mutex.lock_interruptible():
        pass
    first.let_go()


def test_readers_who_waited_for_a_writer_go_before_the_next_one() -> None:
    sem = RwSem("test")
    order: list[str] = []
    first_holds, go = threading.Event(), threading.Event()

    def first_writer() -> None:
        with sem.write():
            first_holds.set()
            go.wait(10)
            order.append("first writer")

    def second_writer() -> None:
        with sem.write():
            order.append("second writer")

    def reader() -> None:
        with sem.read():
            order.append("reader")

    threads = [threading.Thread(target=first_writer)]
    threads[0].start()
    first_holds.wait(10)
    threads += [threading.Thread(target=second_writer), threading.Thread(target=reader)]
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while not (sem._writers_waiting and sem._readers_waiting) and time.monotonic() < deadline:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first writer", "reader", "second writer"]
