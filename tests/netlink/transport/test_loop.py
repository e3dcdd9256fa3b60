# SPDX-License-Identifier: MIT
"""The loop steps its tasks in turn, one thread at a time each, and none holds up the others."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlink.transport import loop as loops
from netlink.transport.loop import Loop, Next, State
from tests.netlink.transport.harness import PATIENCE, eventually


class Task:
    """Runs a function in each step, as often as it is told to."""

    def __init__(self, function: Callable[[], object], steps: int = 1) -> None:
        self.state = State.WAITING
        self.function = function
        self.left = steps
        self.threads: set[int] = set()
        self.inside = 0
        self.done = threading.Event()

    def step(self) -> Next:
        self.inside += 1
        assert self.inside == 1, "two threads step one task"
        self.threads.add(threading.get_ident())
        self.function()
        self.left -= 1
        self.inside -= 1
        if self.left <= 0:
            self.done.set()
            return Next.WAIT
        return Next.AGAIN


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    loop = Loop()
    loop.start()
    yield loop
    loop.stop()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def wake(loop: Loop, *tasks: Task) -> None:
    """Wake tasks from within the loop, all in one step."""

    def start() -> None:
        for task in tasks:
            loop.wake(task)

    starter = Task(start)
    loop.wake(starter)
    assert starter.done.wait(PATIENCE)


def threads() -> int:
    """The threads of the loop."""
    return sum(one.name == "netlink" for one in threading.enumerate())


def test_tasks_take_turns(loop: Loop) -> None:
    order: list[int] = []
    tasks = [Task(lambda number=number: order.append(number), 5) for number in range(4)]  # type: ignore[misc]
    wake(loop, *tasks)
    assert all(task.done.wait(PATIENCE) for task in tasks)
    assert order == [0, 1, 2, 3] * 5


def test_task_that_waits_is_stepped_when_it_is_woken_and_not_before(loop: Loop) -> None:
    task = Task(lambda: None)
    time.sleep(0.02)
    assert not task.done.is_set()
    wake(loop, task)
    assert task.done.wait(PATIENCE)
    assert (task.left, task.state) == (0, State.WAITING)


def test_timer_wakes_a_task(loop: Loop) -> None:
    at: list[float] = []
    start = time.monotonic()
    task = Task(lambda: at.append(time.monotonic() - start))
    starter = Task(lambda: loop.wake_later(task, 0.05))
    wake(loop, starter)
    assert task.done.wait(PATIENCE)
    assert at[0] >= 0.05


def test_dropped_timers_wake_their_task_no_more_and_the_others_wake_theirs(loop: Loop) -> None:
    order: list[int] = []
    tasks = [Task(lambda number=number: order.append(number)) for number in range(6)]  # type: ignore[misc]
    dropped = Task(lambda: order.append(-1))

    def start() -> None:
        for number, task in reversed(list(enumerate(tasks))):
            loop.wake_later(dropped, 0.02 + number / 100)
            loop.wake_later(task, 0.03 + number / 100)
        loop.drop_timers(dropped)

    wake(loop, Task(start))
    assert all(task.done.wait(PATIENCE) for task in tasks)
    assert order == [0, 1, 2, 3, 4, 5]


def test_task_whose_timers_are_dropped_is_not_kept_for_them() -> None:
    loop = Loop()
    try:
        task = Task(lambda: None)
        left = weakref.ref(task)
        loop.wake_later(task, 3600)
        loop.drop_timers(task)
        del task
        assert left() is None
    finally:
        loop.stop()


def test_waker_is_called_for_what_happens_at_a_descriptor(loop: Loop) -> None:
    ours, theirs = os.pipe()
    task = Task(lambda: None)
    loop.watch(ours, lambda _events: loop.wake(task))
    os.write(theirs, b"x")
    assert task.done.wait(PATIENCE)
    loop.forget(ours)
    loop.forget(ours)
    os.close(ours)
    os.close(theirs)


def test_task_whose_step_fails_is_stepped_again_when_it_is_woken(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    fails = [RuntimeError("a bug"), OSError("no memory")]

    def fail() -> None:
        task.inside = 0
        if fails:
            raise fails.pop()

    task, other = Task(fail), Task(lambda: None)
    for left in (1, 0):
        wake(loop, task)
        assert eventually(lambda left=left: len(fails) == left and task.state is State.WAITING)  # type: ignore[misc]
    wake(loop, task, other)
    assert task.done.wait(PATIENCE)
    assert other.done.wait(PATIENCE)
    assert "a bug" in caplog.text
    assert "no memory" in caplog.text


def test_waker_that_fails_is_told_of_and_the_loop_goes_on(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_events: int) -> None:
        raise RuntimeError("a bug")

    fd = os.eventfd(1)
    loop.watch(fd, fail)
    assert eventually(lambda: "a bug" in caplog.text)
    task = Task(lambda: None)
    wake(loop, task)
    assert task.done.wait(PATIENCE)
    loop.forget(fd)
    os.close(fd)


def test_descriptor_that_cannot_be_watched_is_not_remembered(loop: Loop) -> None:
    class Waker:
        def __call__(self, _events: int) -> None:
            """Nothing is to be done."""

    waker = Waker()
    left = weakref.ref(waker)
    closed = os.eventfd(0)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.watch(closed, waker)
    del waker
    assert left() is None


def test_step_that_is_held_up_holds_up_nobody(loop: Loop) -> None:
    go_on = threading.Event()
    held = [Task(lambda: go_on.wait(2 * PATIENCE), 2) for _ in range(5)]
    brisk = Task(lambda: None, 1000)
    wake(loop, *held)
    wake(loop, brisk)
    assert brisk.done.wait(PATIENCE)
    assert not any(task.done.is_set() for task in held)
    go_on.set()
    assert all(task.done.wait(PATIENCE) for task in held)


def test_task_woken_in_its_step_is_stepped_again(loop: Loop) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert go_on.wait(PATIENCE)

    task = Task(slow)
    wake(loop, task)
    assert entered.wait(PATIENCE)
    entered.clear()
    # Another thread leads by now, and wakes the task that the first one is in.
    wake(loop, task)
    assert task.state is State.WOKEN
    go_on.set()
    assert entered.wait(PATIENCE)


def test_wake_is_not_lost_when_the_watcher_is_slow_to_take_the_lead(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that is about to sleep must not get what the next one is to be woken by."""
    take_lead, timeout = Loop._take_lead, Loop._timeout
    slept = False

    def take_lead_late(self: Loop) -> None:
        assert slow.done.wait(PATIENCE)
        time.sleep(0.05)
        take_lead(self)

    def sleep_late(self: Loop) -> float:
        nonlocal slept
        seconds = timeout(self)
        if slow.done.is_set() and not slept:
            slept = True
            time.sleep(0.1)
        return seconds

    monkeypatch.setattr(Loop, "_take_lead", take_lead_late)
    monkeypatch.setattr(Loop, "_timeout", sleep_late)
    slow, brisk = Task(lambda: time.sleep(4 * loops.STEP_LIMIT)), Task(lambda: None)
    assert eventually(lambda: loop._polling and loop._resting)
    loop.wake(slow)
    assert slow.done.wait(PATIENCE)
    time.sleep(0.2)
    loop.wake(brisk)
    assert brisk.done.wait(PATIENCE)


def test_no_more_than_two_threads_are_left_after_steps_were_held_up(loop: Loop) -> None:
    go_on = threading.Event()
    held = [Task(lambda: go_on.wait(2 * PATIENCE)) for _ in range(5)]
    wake(loop, *held)
    wake(loop, Task(lambda: None))
    assert threads() > 2
    go_on.set()
    assert all(task.done.wait(PATIENCE) for task in held)
    assert eventually(lambda: threads() <= 2)
    assert threads() == 2


def test_loop_that_has_nothing_to_do_does_nothing(loop: Loop) -> None:
    wake(loop, Task(lambda: None))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "STOP_TIMEOUT", 0.1)
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert go_on.wait(2 * PATIENCE)

    loop = Loop()
    loop.start()
    task = Task(slow)
    wake(loop, task)
    assert entered.wait(PATIENCE)
    start = time.monotonic()
    loop.stop()
    assert time.monotonic() - start < PATIENCE
    go_on.set()
    assert task.done.wait(PATIENCE)


def test_step_that_ends_long_after_the_loop_touches_no_other_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loops, "STOP_TIMEOUT", 0.1)
    before = os.listdir("/proc/self/fd")
    go_on = threading.Event()
    loop = Loop()
    loop.start()
    held, other = Task(lambda: go_on.wait(2 * PATIENCE)), Task(lambda: None)
    wake(loop, held)
    wake(loop, other)
    # It has lost the lead, of which it is going to tell the thread that leads.
    assert other.done.wait(PATIENCE)
    loop.stop()
    path = tmp_path / "file"
    files = [path.open("ab", buffering=0) for _ in range(8)]
    go_on.set()
    assert held.done.wait(PATIENCE)
    assert eventually(lambda: threads() == 0)
    assert path.read_bytes() == b""
    for one in files:
        one.close()
    assert os.listdir("/proc/self/fd") == before


def test_loop_without_a_thread_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    loop = Loop()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BlockingIOError):
            loop.start()
    loop.stop()
