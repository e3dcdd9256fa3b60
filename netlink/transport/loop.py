# SPDX-License-Identifier: MIT
"""One loop for all clients of a server, which gives each of them one datagram in turn.

Handlers may wait for locks of the machine, and must not hold up other clients while they do. So
there are two threads: one leads the loop, and the other watches. A leader that stays too long in
the step of a client has lost the lead: the other takes over with all other clients, and the first
comes back when its step is done. Clients are never stepped by two threads at a time.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

log = logging.getLogger(__name__)

STEP_LIMIT: Final = 0.005
"""Seconds that a step may take before another thread goes on with the other clients."""
STEPS_UNSEEN: Final = 16
"""Steps after which it is looked what has happened at the descriptors, or a round if longer."""
STOP_TIMEOUT: Final = 10.0
"""Seconds to wait for a step that is held up in the machine when the loop stops."""

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class Next(Enum):
    """What a client wants after a step."""

    AGAIN = auto()
    """Another step, when the others had theirs."""
    WAIT = auto()
    """None until it is woken."""


class Task(Protocol):
    """What is stepped: a client, or a socket where clients come in."""

    state: State

    def step(self) -> Next:
        """Do a little. What it raises is logged, and it waits until it is woken."""
        ...


class State(Enum):
    """Where a task is."""

    WAITING = auto()
    QUEUED = auto()
    STEPPING = auto()
    WOKEN = auto()
    """Woken while it is stepping: is queued after that."""


class Loop:
    """Steps tasks that are ready, in turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._wakers: dict[int, Callable[[int], None]] = {}
        self._lock = threading.Lock()
        self._queue: deque[Task] = deque()
        self._timers: list[tuple[float, int, Task]] = []
        self._count = itertools.count()
        self._leader: object = None
        self._began = 0.0
        """When the leader's step began; 0 when it is in none."""
        self._resting = True
        """Whether the watcher waits for the leader to have something to do."""
        self._work = threading.Event()
        self._polling = False
        """Whether the leader sleeps until something happens at a descriptor."""
        self._stopping = False
        self._stopped = False
        """Whether :meth:`stop` has waited for the threads, so that the last one has to close."""
        self._threads: set[threading.Thread] = set()
        """Those that make use of the descriptors."""
        self._spawned: list[threading.Thread] = []
        """Those that may still run: a thread leaves ``_threads`` a little before its end."""
        self._watchers = 0

    def start(self) -> None:
        """Start the leader, which starts its watcher. Raises OSError without a thread for it."""
        with self._lock:
            if not self._spawn(self._take_lead):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def stop(self) -> None:
        """End all threads and give the descriptors back. Tasks are not stepped any more.

        A thread that is held up in a step gives them back when that is done.
        """
        self._stopping = True
        os.eventfd_write(self._wake_fd, 1)
        self._work.set()
        end = time.monotonic() + STOP_TIMEOUT
        while True:
            with self._lock:
                threads = [thread for thread in self._spawned if thread.is_alive()]
            if not threads or time.monotonic() > end:
                break
            threads[0].join(max(end - time.monotonic(), 0))
        with self._lock:
            self._stopped = True
            last = not self._threads
        if last:
            self._close()

    def _close(self) -> None:
        """Give the descriptors back, of which no thread makes use any more."""
        self._epoll.close()
        os.close(self._wake_fd)

    def watch(self, fd: int, waker: Callable[[int], None]) -> None:
        """Call *waker* with the events of a descriptor whenever something changes at it.

        Raises OSError when it cannot be watched.
        """
        self._wakers[fd] = waker
        try:
            self._epoll.register(fd, READABLE | WRITABLE | select.EPOLLET)
        except BaseException:
            self._wakers.pop(fd, None)
            raise

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        if self._wakers.pop(fd, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def wake(self, task: Task) -> None:
        """Have a task stepped; from any thread."""
        with self._lock:
            if task.state is State.WAITING:
                task.state = State.QUEUED
                self._queue.append(task)
                self._rouse()
            elif task.state is State.STEPPING:
                task.state = State.WOKEN

    def wake_later(self, task: Task, seconds: float) -> None:
        """Wake a task after a time."""
        with self._lock:
            entry = (time.monotonic() + seconds, next(self._count), task)
            heapq.heappush(self._timers, entry)
            if self._timers[0] is entry:
                self._rouse()

    def drop_timers(self, task: Task) -> None:
        """Forget a task that was to be woken later, as it has ended."""
        with self._lock:
            self._timers = [timer for timer in self._timers if timer[2] is not task]
            heapq.heapify(self._timers)

    def _rouse(self) -> None:
        """Have the leader look at the queue and the timers; with the lock held."""
        if self._polling:
            self._polling = False
            os.eventfd_write(self._wake_fd, 1)

    def _spawn(self, target: Callable[[], None]) -> bool:
        """Start a thread, with the lock held; False when there can be no more of them."""
        thread = threading.Thread(target=self._thread, args=(target,), name="netlink", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            return False
        self._spawned = [*(one for one in self._spawned if one.is_alive()), thread]
        return True

    def _thread(self, target: Callable[[], None]) -> None:
        try:
            target()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                last = self._stopped and not self._threads
            if last:
                self._close()

    def _take_lead(self) -> None:
        """Lead until another thread does, then watch that one."""
        token = object()
        while not self._stopping:
            with self._lock:
                self._leader = token
                self._began = 0.0
                # Without a watcher, a step that is held up holds up all: no reason to serve nobody.
                if self._watchers == 0 and self._spawn(self._watch):
                    self._watchers = 1
            self._lead(token)
            with self._lock:
                if self._stopping or self._watchers:
                    return
                self._watchers += 1
            if not self._watch_leader():
                return

    def _watch(self) -> None:
        if self._watch_leader():
            self._take_lead()

    def _watch_leader(self) -> bool:
        """Wait until the leader is held up; True to lead in its place, False at the end."""
        began = 0.0
        while not self._stopping:
            if self._resting:
                self._work.wait()
            self._work.clear()
            time.sleep(STEP_LIMIT)
            now = self._began
            if now and now == began:
                with self._lock:
                    # Not from a leader whose step has ended meanwhile: it may sleep until something
                    # happens, and what happens then might wake it instead of the new one.
                    if self._began == now:
                        self._leader = None
                        self._began = 0.0
                        self._watchers -= 1
                        return True
            if not now and not began:
                # Two looks without a step: until there is one, nobody need look. The leader
                # first begins its step and then reads this, so one of the two sees the other.
                self._resting = True
                if self._began:
                    self._resting = False
            began = now
        with self._lock:
            self._watchers -= 1
        return False

    def _lead(self, token: object) -> None:
        queue, monotonic = self._queue, time.monotonic
        unseen = STEPS_UNSEEN
        while self._leader is token and not self._stopping:
            if not queue:
                self._poll(self._timeout())
                unseen = 0
            elif unseen >= STEPS_UNSEEN:
                self._poll(0)
                unseen = 0
            unseen += len(queue)
            # One round: those that want another step come after all that are in the queue now.
            for _ in range(len(queue)):
                with self._lock:
                    if self._leader is not token:
                        return
                    if not queue:
                        break
                    task = queue.popleft()
                    task.state = State.STEPPING
                self._began = monotonic()
                if self._resting:
                    self._resting = False
                    self._work.set()
                try:
                    again = task.step()
                except Exception:
                    log.exception("a step of the netlink server failed")
                    again = Next.WAIT
                with self._lock:
                    if self._leader is token:
                        self._began = 0.0
                    woken = again is Next.AGAIN or task.state is State.WOKEN
                    task.state = State.QUEUED if woken else State.WAITING
                    if woken:
                        queue.append(task)
                    if self._leader is not token:
                        # The thread that leads now may be waiting for something to happen.
                        os.eventfd_write(self._wake_fd, 1)
                        return

    def _timeout(self) -> float:
        """Seconds to sleep: 0 for none, -1 until something happens at a descriptor.

        From here on, whoever has something to do for the leader rouses it.
        """
        with self._lock:
            if self._queue:
                return 0
            self._polling = True
            if not self._timers:
                return -1
            return max(self._timers[0][0] - time.monotonic(), 0)

    def _poll(self, timeout: float) -> None:
        """Queue the tasks to which something has happened."""
        try:
            events = self._epoll.poll(timeout)
        except ValueError:
            return
        # What is woken from here on is seen without being roused.
        self._polling = False
        for fd, happened in events:
            if fd == self._wake_fd:
                if not self._stopping:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
                continue
            waker = self._wakers.get(fd)
            if waker is None:
                continue
            try:
                waker(happened)
            except Exception:
                log.exception("an event of the netlink server was not seen to")
        if self._timers:
            now = time.monotonic()
            due = []
            with self._lock:
                while self._timers and self._timers[0][0] <= now:
                    due.append(heapq.heappop(self._timers)[2])
            for task in due:
                self.wake(task)
