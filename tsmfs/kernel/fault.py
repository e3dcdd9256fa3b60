# SPDX-License-Identifier: MIT
"""Fault injection points, steered as Linux's (Documentation/fault-injection/)."""

from __future__ import annotations

import enum
import errno
import random
import threading
from dataclasses import dataclass, field

from tsmfs.kernel import task
from tsmfs.kernel.errors import fail
from tsmfs.kernel.printk import Log


class Point(enum.StrEnum):
    """The places where a fault can be injected."""

    TSM_PROBE = "tsm_probe"
    TSM_CONNECT = "tsm_connect"
    TSM_DISCONNECT = "tsm_disconnect"
    TSM_BIND = "tsm_bind"
    TSM_LOCK = "tsm_lock"
    TSM_ACCEPT = "tsm_accept"
    IDE_STREAM_ENABLE = "ide_stream_enable"
    DOE_TRANSFER = "doe_transfer"
    DEVICE_PROBE = "device_probe"


@dataclass(slots=True)
class FaultAttr:
    """``struct fault_attr``: when a point fails, and how.

    Defaults are Linux's ``FAULT_ATTR_INITIALIZER``; with probability 0 a point is idle.
    """

    probability: int = 0
    """Percent, 0 to 100."""
    interval: int = 1
    """Only every interval-th call may fail."""
    times: int = 1
    """How many faults are left; -1 is without limit."""
    space: int = 0
    """Budget: it shrinks by one a call, and calls pass while it is above one."""
    errno: int = errno.EIO
    """Error that the operation returns; 0 lets it go on after the delay."""
    delay_ms: int = 0
    """Milliseconds that the operation hangs before it fails or goes on."""
    count: int = 0


@dataclass(slots=True)
class Faults:
    """The fault points of one machine."""

    log: Log
    random: random.Random = field(default_factory=random.Random)
    points: dict[Point, FaultAttr] = field(default_factory=lambda: {p: FaultAttr() for p in Point})
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def should_fail(self, point: Point) -> bool:
        """Whether this call of *point* fails (``should_fail()`` in lib/fault-inject.c)."""
        attr = self.points[point]
        if not attr.probability or not attr.times:
            return False
        with self._lock:
            if attr.space > 1:
                attr.space -= 1
                return False
            if attr.interval > 1:
                attr.count += 1
                if attr.count % attr.interval:
                    return False
            if attr.probability <= self.random.randrange(100) or not attr.times:
                return False
            if attr.times > 0:
                attr.times -= 1
        return True

    def inject(self, point: Point, subject: str) -> None:
        """Delay and fail *point* for *subject* (a device's name) when its turn has come."""
        if not self.should_fail(point):
            return
        attr = self.points[point]
        self.log.info(f"FAULT_INJECTION: forcing a failure. name {point}, {subject}")
        if attr.delay_ms:
            task.sleep(attr.delay_ms / 1000)
        if attr.errno:
            fail(attr.errno, f"{subject}: injected {point} fault")
