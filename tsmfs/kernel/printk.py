# SPDX-License-Identifier: MIT
"""The kernel log: a ring of timed lines that readers can follow by offset."""

from __future__ import annotations

import enum
import threading
import time
from collections import deque


class Level(enum.IntEnum):
    """Log levels (include/linux/kern_levels.h)."""

    EMERG = 0
    ALERT = 1
    CRIT = 2
    ERR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


class ByteRing:
    """Records of bytes, only ever appended; the oldest go when it is full.

    Offsets count from the first byte ever written, so that a reader keeps its place.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._records: deque[bytes] = deque()
        self._size = 0
        self._start = 0
        self._lock = threading.Lock()

    def append(self, record: bytes) -> None:
        """Add *record*, dropping the oldest ones beyond the capacity (bytes)."""
        with self._lock:
            self._records.append(record)
            self._size += len(record)
            while self._size > self._capacity and len(self._records) > 1:
                gone = len(self._records.popleft())
                self._size -= gone
                self._start += gone

    def read(self, offset: int, count: int) -> bytes:
        """Up to *count* bytes from *offset*; from the oldest kept byte when that is gone."""
        with self._lock:
            wanted = max(0, offset - self._start)
            parts: list[bytes] = []
            for record in self._records:
                if wanted >= len(record):
                    wanted -= len(record)
                    continue
                parts.append(record[wanted : wanted + count])
                count -= len(parts[-1])
                wanted = 0
                if not count:
                    break
        return b"".join(parts)

    @property
    def start(self) -> int:
        """Offset of the oldest byte kept."""
        with self._lock:
            return self._start

    @property
    def end(self) -> int:
        """Offset just behind the newest byte."""
        with self._lock:
            return self._start + self._size


class Log:
    """``printk()``: lines of text with a level and seconds since the machine started."""

    def __init__(self, capacity: int = 1 << 20, loglevel: Level = Level.INFO) -> None:
        self.ring = ByteRing(capacity)
        self.loglevel = loglevel
        """Lines above this level are not kept."""
        self._start = time.monotonic()

    def uptime(self) -> float:
        """Seconds since the machine started."""
        return time.monotonic() - self._start

    def printk(self, level: Level, text: str) -> None:
        """Log *text*, a record for each of its lines, each with the time."""
        if level > self.loglevel:
            return
        stamp = f"[{self.uptime():12.6f}] "
        lines = text.rstrip("\n").split("\n")
        self.ring.append("".join(f"{stamp}{line}\n" for line in lines).encode(errors="replace"))

    def err(self, text: str) -> None:
        """Log an error."""
        self.printk(Level.ERR, text)

    def warn(self, text: str) -> None:
        """Log a warning."""
        self.printk(Level.WARNING, text)

    def info(self, text: str) -> None:
        """Log what an administrator may want to know."""
        self.printk(Level.INFO, text)

    def debug(self, text: str) -> None:
        """Log what only a developer wants to know."""
        self.printk(Level.DEBUG, text)

    def text(self) -> str:
        """All that is kept."""
        return self.ring.read(0, 1 << 31).decode(errors="replace")
