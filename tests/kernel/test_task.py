# SPDX-License-Identifier: MIT
"""The calling task: whose work a thread does, what it may do, and when it gives up."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace

from tests.machines import NO_SUCH_PID, ROOT, USER, Caller, errno_of_result, fails, threads
from tsmfs.kernel import task
from tsmfs.kernel.task import CAP_SYS_ADMIN, Task


def test_a_thread_of_its_own_works_for_the_kernel() -> None:
    seen: list[Task] = []
    thread = threading.Thread(target=lambda: seen.append(task.current()))
    thread.start()
    thread.join()
    assert (seen[0].uid, seen[0].pid, seen[0].interrupted()) == (0, 0, False)
    assert seen[0].capable(task.CAP_SYS_ADMIN)


def test_running_as_nests_and_ends() -> None:
    before = task.current()
    with task.running_as(USER):
        assert task.current() is USER
        with task.running_as(ROOT):
            assert task.current() is ROOT
        assert task.current() is USER
    assert task.current() is before


def test_become_lasts_for_the_thread_and_for_no_other() -> None:
    def work() -> Task:
        task.become(USER)
        return task.current()

    with threads() as pool:
        assert pool.submit(work).result() is USER
    assert task.current() is not USER


def test_capabilities_are_those_of_the_calling_process() -> None:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    here = Task(uid=1000, gid=1000, pid=os.getpid())
    assert [here.capable(n) for n in range(41)] == [bool(effective >> n & 1) for n in range(41)]


def test_of_a_process_that_is_gone_only_roots_is_trusted() -> None:
    assert ROOT.capable(CAP_SYS_ADMIN)
    assert not USER.capable(CAP_SYS_ADMIN)


def test_the_user_who_mounted_the_machine_is_its_root() -> None:
    assert replace(USER, privileged_uid=USER.uid).capable(CAP_SYS_ADMIN)
    other = Task(uid=1001, gid=1001, pid=NO_SUCH_PID, privileged_uid=USER.uid)
    assert not other.capable(CAP_SYS_ADMIN)


def test_sleep_lasts_as_long_as_asked() -> None:
    start = time.monotonic()
    task.sleep(0.03)
    assert time.monotonic() - start >= 0.03


def test_a_killed_sleeper_wakes_at_once() -> None:
    caller = Caller()

    def sleeper() -> None:
        with task.running_as(caller.task):
            task.sleep(3600)

    with threads() as pool:
        future = pool.submit(sleeper)
        assert caller.waiting.wait(20)
        caller.kill()
        assert errno_of_result(future) == errno.EINTR


def test_a_caller_with_a_signal_pending_does_not_sleep_at_all() -> None:
    caller = Caller()
    caller.kill()
    with task.running_as(caller.task), fails(errno.EINTR):
        task.sleep(3600)
