# SPDX-License-Identifier: MIT
"""The calling task: who asks, and whether it still waits for the answer (``current``)."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tsmfs.kernel.errors import fail

POLL_INTERVAL = 0.02
"""Seconds between two looks at a waiting caller's pending signals."""

CAP_SYS_ADMIN = 21
"""Capability number (include/uapi/linux/capability.h)."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Task:
    """A process inside one system call."""

    uid: int
    gid: int
    pid: int
    interrupted: Callable[[], bool] = _never
    """True once a signal is pending for the caller: it gives up waiting."""

    privileged_uid: int = 0
    """The uid that is root of this machine: the user who mounted it, when not root itself."""

    def capable(self, capability: int) -> bool:
        """True when the caller's effective set has *capability* (a number).

        The machine's own root has them all, as a process in its user namespace has.
        """
        if self.privileged_uid != 0 and self.uid == self.privileged_uid:
            return True
        try:
            with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
                for line in status:
                    if line.startswith("CapEff:"):
                        return bool(int(line.split()[1], 16) >> capability & 1)
        except OSError:
            pass
        return self.uid == self.privileged_uid


@dataclass(frozen=True, slots=True)
class _KernelThread(Task):
    """No process at all: the kernel itself, which may do everything."""

    def capable(self, capability: int) -> bool:
        return True


_local = threading.local()
_KERNEL_THREAD = _KernelThread(uid=0, gid=0, pid=0)


def current() -> Task:
    """The task that this thread works for; a kernel thread (root, uninterruptible) if none."""
    return getattr(_local, "task", _KERNEL_THREAD)


def become(task: Task) -> None:
    """Let this thread work for *task* from now on."""
    _local.task = task


@contextlib.contextmanager
def running_as(task: Task) -> Iterator[None]:
    """Let this thread work for *task* inside the block."""
    previous = getattr(_local, "task", None)
    _local.task = task
    try:
        yield
    finally:
        if previous is None:
            del _local.task
        else:
            _local.task = previous


def sleep(seconds: float) -> None:
    """Sleep as ``msleep_interruptible()``; raises EINTR when the caller gave up."""
    deadline = time.monotonic() + seconds
    task = current()
    while (left := deadline - time.monotonic()) > 0:
        if task.interrupted():
            fail(errno.EINTR)
        time.sleep(min(left, POLL_INTERVAL))
